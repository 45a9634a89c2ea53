"""A request for one of our own pages, and the answer, as values: both adapters translate to and from them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from heap_middleware.exposition.access import Caller

__all__ = ["PageRequest", "PageResponse", "plain"]


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What a page needs to know of a request. Headers are as the client sent them, decoded as Latin-1."""

    method: str
    path: str
    query: str = ""
    accept: str = ""
    accept_encoding: str = ""
    mount: str = ""
    """What comes before `path` in the URL."""
    caller: Caller = field(default_factory=Caller)


@dataclass(frozen=True, slots=True)
class PageResponse:
    """What is sent back; for HEAD the adapter sends the headers of the body, without the body.

    A body that is an iterator is sent part by part, and closed when the client leaves.
    """

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | Iterator[bytes] = b""


def plain(status: int, text: str, headers: Iterable[tuple[str, str]] = ()) -> PageResponse:
    """A line of text."""
    return PageResponse(status, [("Content-Type", "text/plain; charset=utf-8"), *headers], text.encode())
