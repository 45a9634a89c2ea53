"""Who may see a page.

The rules of this file:
- Without a setting, the report is for whoever asks from this machine: a loopback peer, by the connection itself, over a
  name of this machine (or a site in a browser could ask under a name of its own), and not through a proxy, whose own
  connection is a loopback one for everybody.
- A token is compared in constant time, as `Authorization: Bearer` or as the cookie that the login page gets for it.
- Whoever is refused learns nothing, not even whether there is anything.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["COOKIE", "Caller", "cookie_of", "may_see"]

COOKIE: Final = "heap_middleware_report"
_BEARER: Final = "bearer "
_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as the server knows. Header names are in lower case."""

    peer: str = ""
    """The address at the other end of the connection; empty if there is none, as with a Unix socket."""
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: Any = None
    """The environ or scope."""


def may_see(access: Any, caller: Caller) -> bool:
    """Whether `access`, a token, a callable or None, lets them in. What the callable raises is raised."""
    if access is None:
        return _is_of_this_machine(caller)
    if isinstance(access, str):
        return _has_token(access, caller)
    check: Callable[[Any], object] = access
    return check(caller.raw) is True


def cookie_of(token: str) -> str:
    """The value of the cookie that stands for a token; the token cannot be found from it."""
    return hmac.new(token.encode(), b"heap_middleware report", hashlib.sha256).hexdigest()


def _has_token(token: str, caller: Caller) -> bool:
    given = caller.headers.get("authorization", "")
    if given[: len(_BEARER)].lower() == _BEARER:
        return hmac.compare_digest(given[len(_BEARER) :].strip().encode(), token.encode())
    # Not by the standard library, which refuses the whole header for a name that others gave to theirs.
    cookies = (cookie.strip().partition("=") for cookie in caller.headers.get("cookie", "").split(";"))
    wanted = cookie_of(token).encode()
    return any(name == COOKIE and hmac.compare_digest(value.encode(), wanted) for name, _, value in cookies)


def _is_of_this_machine(caller: Caller) -> bool:
    if any(name in caller.headers for name in _FORWARDED):
        return False
    host = caller.headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return _is_loopback(caller.peer) and name.lower() in _LOCAL_NAMES


def _is_loopback(peer: str) -> bool:
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
