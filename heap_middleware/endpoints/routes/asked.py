"""The user's own answer, the `route_of` setting."""

from collections.abc import Callable, MutableMapping
from typing import Any

__all__ = ["RouteOf", "asked", "text"]

RouteOf = Callable[[MutableMapping[str, Any]], str | None]


def text(value: Any) -> str | None:
    """Return the value if it can be a template. A `str` exactly: a subclass runs its own code in the ledger."""
    return value if type(value) is str and value else None


def asked(route_of: RouteOf | None, request: MutableMapping[str, Any]) -> str | None:
    """Ask the user's callable; a fault of it costs the label, never the response."""
    if route_of is None:
        return None
    try:
        return text(route_of(request))
    except Exception:
        return None
