"""A metrics page somewhere, fetched over HTTP; whatever goes wrong is one line."""

import os
import ssl
from types import TracebackType
from typing import Final, Self

import httpx

from heap_middleware.cli.reading import NotOurs, Reading, read
from heap_middleware.errors import CommandError

__all__ = ["Page"]

_LARGEST: Final = 512 << 20
"""Bytes; a page of 32 workers with 500 routes and 200 types has 29 MB."""
_MEANING: Final = {
    401: "it wants to know who asks: --token",
    403: "it wants a token, or another one: --token",
    404: "there is no such page; the middleware's metrics_path is /metrics unless set",
    503: "its census failed, see the service's log",
}


class Page:
    """The metrics page at `url`. Raises `CommandError` for an address that is none, and when a reading fails."""

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 10.0) -> None:
        self._address = _address(url)
        self.shown = str(self._address.copy_with(username=None, password=None))
        """The address without a password in it."""
        headers = {"Accept": "text/plain;version=0.0.4"}
        if token is not None:
            if not (token.isascii() and token.isprintable()):
                raise CommandError("the token has characters that no token has; allowed: printable ASCII")
            headers["Authorization"] = f"Bearer {token}"
        self._client = httpx.Client(headers=headers, timeout=timeout, follow_redirects=token is None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def read(self) -> Reading:
        """What it says now. Raises `CommandError` in one line if it says nothing, or something else."""
        try:
            return read(self._text())
        except NotOurs as error:
            raise CommandError(f"{self.shown} {error}") from error

    def _text(self) -> str:
        try:
            with self._client.stream("GET", self._address) as response:
                if response.status_code != httpx.codes.OK:
                    meaning = _MEANING.get(response.status_code, response.reason_phrase)
                    raise CommandError(f"{self.shown} answers {response.status_code}: {meaning}")
                body = bytearray()
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > _LARGEST:
                        raise CommandError(
                            f"{self.shown} sends more than {_LARGEST >> 20} MiB: that is no metrics page"
                        )
        except httpx.TimeoutException as error:
            raise CommandError(f"{self.shown} does not answer within {self._client.timeout.read:g} seconds") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise CommandError(f"{self.shown} cannot be read: {_reason(error)}") from error
        return body.decode("utf-8", "replace")


def _address(url: str) -> httpx.URL:
    text = url if "://" in url else f"http://{url}"
    try:
        address = httpx.URL(text)
        host = address.host  # decoded only now
    except (httpx.InvalidURL, UnicodeError) as error:
        raise CommandError(f"{url!r} is no URL ({error}); give one such as http://127.0.0.1:8000/metrics") from error
    if address.scheme not in ("http", "https") or not host:
        raise CommandError(f"{url!r} is no URL of a web page; give one such as http://127.0.0.1:8000/metrics")
    if address.port is not None and not 0 < address.port < 1 << 16:
        raise CommandError(f"{url!r} has the port {address.port}; allowed: 1 to 65535")
    return address.copy_with(path="/metrics") if address.path in ("", "/") else address


def _reason(error: BaseException) -> str:
    """What the system said at the bottom of it, such as `Connection refused`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):  # whose number is none of the system's
            return f"{getattr(cause, 'verify_message', '') or cause.reason or cause} (TLS)"
        if isinstance(cause, OSError) and cause.strerror:
            return os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).strip().partition("\n")[0] or type(error).__name__
