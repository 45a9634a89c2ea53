"""Attribution in pure Python: the number of allocated memory blocks before and after a request.

The naive difference is wrong by tens of objects, because a request's environ or scope, the server's memory of its last
request, and cyclic garbage outlive the call and die in somebody else's window. A window counts only when:

1. No other request overlapped it.
2. It runs from idle level to idle level. A level is `sys.getallocatedblocks()` after a young collection, read where
   nothing of the request before is left: a sentinel, put last into the request's own environ or scope when the
   response ends, tells by its death that the server has let go of it.
3. The request before it was of the same endpoint, so that what requests of a kind leave for their successor to clear
   (a connection's buffers, a cache of the last request) cancels out.
4. No full collection happened inside it: that frees the garbage of many requests at once.

Where the level is read depends on who holds the environ or scope:

- `Level.RELEASE` (WSGI servers): in the sentinel's death. gunicorn lets go of the environ before it reads the next
  request, so nothing of any request is alive at that moment.
- `Level.ARRIVAL` (ASGI servers): when the next request arrives. uvicorn's connection object holds the last scope and
  its request-response cycle until it has built the ones of the next request, so at the sentinel's death the next
  request's scope is already there, with as many blocks as its client sent headers. On arrival the old scope is gone,
  and the blocks that the new one holds are counted and taken off.

Levels cost a young collection each, so they are rationed: a token bucket holds the seconds that `budget` allows.
"""

import enum
import gc
import itertools
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from heap_middleware.endpoints.ledger import Endpoint, Ledger

__all__ = ["Level", "Window", "WindowRecorder", "held_blocks"]

_SENTINEL_KEY: Final = "heap_middleware.window"
_BURST: Final = 0.05
"""Seconds of measuring that may be saved up: 1,000 levels of 50 µs, enough that a service which serves one request a
second measures every one, little enough that no client waits noticeably when a burst follows a quiet hour."""


class Level(enum.Enum):
    """Where the idle level is read; see the top of this file."""

    RELEASE = "release"
    ARRIVAL = "arrival"


class Window:
    """One request, from its arrival to the idle level after it."""

    __slots__ = ("crowded", "endpoint", "serial", "start")

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.crowded = False
        self.start: _Reading | None = None
        self.endpoint: Endpoint | None = None


class _Reading:
    """An idle level: blocks, and how many full collections had run."""

    __slots__ = ("blocks", "collections")

    def __init__(self, blocks: int, collections: int) -> None:
        self.blocks = blocks
        self.collections = collections


class _Sentinel:
    """Lies in a request's environ or scope and reports when that dies."""

    __slots__ = ("released", "window")

    def __init__(self, window: Window, released: Callable[[Window], None]) -> None:
        self.window = window
        self.released = released

    def __del__(self) -> None:
        self.released(self.window)


class WindowRecorder:
    """Counts every request and measures some. One recorder serves all threads of a process.

    `sampling` is "auto" (as many levels as `budget`, a share of one core, pays for) or N: one request in N.
    """

    name = "windows"

    def __init__(
        self,
        ledger: Ledger,
        *,
        sampling: int | str = "auto",
        budget: float = 0.01,
        clock: Callable[[], float] = time.perf_counter,
        allocated_blocks: Callable[[], int] = sys.getallocatedblocks,
        collect: Callable[[int], int] = gc.collect,
    ) -> None:
        self._ledger = ledger
        self._every = sampling if isinstance(sampling, int) else 0
        self._budget = budget
        self._clock = clock
        self._allocated_blocks = allocated_blocks
        self._collect = collect
        self._serials = itertools.count(1)
        self._active: set[Window] = set()
        self._last_crowded = 0
        self._last: Window | None = None  # the window that ended last, while its idle level may still be of use
        self._pending: Window | None = None  # ARRIVAL: the released window whose level the next arrival reads
        self._level: _Reading | None = None  # the idle level after `_last`, if it was read
        self._tokens = _BURST
        self._refilled = clock()
        self.spent = 0.0
        """Seconds this recorder has spent reading levels."""

    def begin(self, held: MutableMapping[str, Any], level: Level) -> Window:
        """A request arrives with its environ or scope."""
        window = Window(next(self._serials))
        active = self._active
        active.add(window)
        if len(active) > 1:
            window.crowded = True
            self._last_crowded = max(self._last_crowded, window.serial)
        elif level is Level.ARRIVAL and self._pending is not None:
            self._read_on_arrival(held)
        window.start, self._level = self._level, None
        return window

    def finish(
        self, window: Window, held: MutableMapping[str, Any], level: Level, method: str, route: str | None
    ) -> None:
        """The response has ended; the route template is known by now. Called once for each window."""
        endpoint = window.endpoint = self._ledger.endpoint(method, route)
        if endpoint is not None:
            self._ledger.count(endpoint)
        last, self._last = self._last, window
        if window.start is not None and (last is None or last.endpoint != endpoint):
            window.start = None
        if self._clean(window) and endpoint is not None and (window.start is not None or self._affordable(window)):
            release = self._released_idle if level is Level.RELEASE else self._released
            held[_SENTINEL_KEY] = _Sentinel(window, release)
        self._active.discard(window)

    def disturb(self) -> None:
        """The heap is about to change, or has changed, for a reason that is no request: a scrape, say."""
        self._last_crowded = next(self._serials)
        self._level = self._pending = self._last = None

    def _clean(self, window: Window) -> bool:
        return not window.crowded and self._last_crowded < window.serial

    def _released_idle(self, window: Window) -> None:
        """RELEASE: nothing of the request is left; this moment is the idle level."""
        if not self._active and self._last is window and self._clean(window):
            self._settle(window, self._read(0))

    def _released(self, window: Window) -> None:
        """ARRIVAL: the next request's scope is being built; it reads the level when it arrives."""
        if self._last is window:
            self._pending = window

    def _read_on_arrival(self, held: MutableMapping[str, Any]) -> None:
        window, self._pending = self._pending, None
        if window is not None and self._last is window and self._clean(window):
            self._settle(window, self._read(held_blocks(held)))

    def _settle(self, window: Window, reading: _Reading) -> None:
        start, self._level = window.start, reading
        if start is not None and window.endpoint is not None and start.collections == reading.collections:
            self._ledger.measure(window.endpoint, reading.blocks - start.blocks)

    def _read(self, held: int) -> _Reading:
        began = self._clock()
        self._collect(1)
        reading = _Reading(self._allocated_blocks() - held, gc.get_stats()[2]["collections"])
        cost = self._clock() - began
        self._tokens -= cost
        self.spent += cost
        return reading

    def _affordable(self, window: Window) -> bool:
        """Whether a new chain of levels may be started after this window."""
        if self._every:
            return window.serial % self._every == 0
        now = self._clock()
        self._tokens = min(_BURST, self._tokens + (now - self._refilled) * self._budget)
        self._refilled = now
        return self._tokens > 0


def held_blocks(root: object) -> int:
    """Memory blocks that a request's scope keeps alive, itself included.

    Follows only containers of the exact built-in types that servers build scopes from. What every request of a server
    shares (an address, a version) is counted each time and so cancels out between two levels; what may be shared by
    some and not by others must not be counted, and is not: strings of one character, which CPython keeps once.
    """
    seen = {id(root)}
    order: list[Any] = [root]
    for item in order:
        if type(item) not in _CONTAINERS:
            continue
        for referent in gc.get_referents(item):
            if id(referent) not in seen and _counts(referent):
                seen.add(id(referent))
                order.append(referent)
    return sum(_BLOCKS[type(item)] for item in order)


def _counts(item: Any) -> bool:
    cls = type(item)
    return cls in _BLOCKS and (cls not in _STRINGS or len(item) > 1)


_BLOCKS: Final[dict[type, int]] = {dict: 2, list: 2, tuple: 1, str: 1, bytes: 1}
_CONTAINERS: Final = frozenset({dict, list, tuple})
_STRINGS: Final = frozenset({str, bytes})
