"""Attribution in pure Python: the number of allocated memory blocks before and after a request.

The naive difference is wrong by tens of objects, because a request's environ or scope, the server's memory of its last
request, and cyclic garbage outlive the call and die in somebody else's window. A window counts only when:

1. No other request overlapped it, or any of the 32 before it: where requests overlap now and then, a server's other
   threads read and parse requests that have not arrived here yet. With a threaded server, a level counts only if the
   next request comes over the same connection (other threads open and close the others, 92 blocks each under gunicorn),
   and not within half a millisecond: by then another thread was parsing it.
2. It runs from idle level to idle level. A level is `sys.getallocatedblocks()` with CPython's own stores settled
   (level.py), read where nothing of the request before is left: a sentinel, put last into the request's own environ or
   scope when the response ends, tells by its death that the server has let go of it.
   After an exception the environ lies in a reference cycle with the traceback and would die in the next collection
   only, too late. The next time, such an endpoint's garbage is collected when its response ends, while the server
   still has the environ, so that it dies in time. A window in which an earlier environ dies is not counted.
3. The request before it was of the same endpoint, so that what requests of a kind leave for their successor to clear
   (a connection's buffers, a cache of the last request) cancels out.
4. No full collection happened inside it: that frees the garbage of many requests at once.

Where the level is read depends on who holds the environ or scope:

- `Level.RELEASE` (WSGI servers): in the sentinel's death. gunicorn lets go of the environ before it reads the next
  request; of the request itself only its parsed headers are still there.
- `Level.ARRIVAL` (ASGI servers): when the next request arrives. uvicorn's connection object holds the last scope and
  its request-response cycle until it has built the ones of the next request, so at the sentinel's death the next
  request's scope is already there. On arrival the old scope is gone, and only the new one's headers differ.

  There, the task that served a request may outlive it by its callbacks, eight blocks, if the next request was there
  before they ran, as with a fast client after a streamed response. The level is not read then.

Either way one request's headers are alive when a level is read, and clients send more of them or fewer. A regression of
1,500 windows with 0 to 20 random headers gave 2.0 blocks a header (its name and its value; the tuple around them
comes from CPython's free list) with the same sign under gunicorn sync, gunicorn gthread and uvicorn with h11 and
httptools, so `_BLOCKS_PER_HEADER` times their number is taken off each level.

uvicorn also arms a keep-alive timer after each response and cancels it at the next request. asyncio leaves cancelled
timers in its heap until there are more than a hundred and then drops them all at once: one block a request, given back
by one request in a hundred. The timers in the loop's heap are therefore counted and taken off as well.

In Python 3.11 asyncio leaves each closed connection behind as a reference cycle of 13 to 15 blocks, which has grown old
by then and waits for a full collection. There, a window on an ASGI server counts only if the next request comes from
the same client address; where every request has a connection of its own, nothing is measured.

A level must not change by what this file itself holds: figures live in one array, not in objects of their own.

Levels cost a young collection each, so they are rationed: a token bucket holds the seconds that `budget` allows. They
are read in runs, request after request, from a full bucket to an empty one: the first level of a run collects what all
requests since the last run left, which costs ten times the next ones, and is not trusted as the start of a window,
because garbage that frees garbage goes in several steps.
"""

import asyncio
import enum
import itertools
import sys
import time
import weakref
from array import array
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Final

from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals, Ledger
from heap_middleware.endpoints.level import Settler, full_collections
from heap_middleware.endpoints.sites import Site

__all__ = ["Level", "Window", "WindowRecorder"]

_BLOCKS_PER_HEADER: Final = 2
_QUIET: Final = 32
_RUN: Final = 32
"""Requests in a row that `sampling=N` measures, before it leaves out N - 1 times as many."""
_AFTERMATH: Final = 2.3
"""What a level costs, over the time it takes to read: after a collection the application finds the processor's caches
emptied. benchmarks/request_cost.py: batches with levels took 2.3 times longer than reading the levels explained."""
_PARSING: Final = 0.0005
"""Seconds; gunicorn's threads take 0.1 to 0.2 ms from a readable socket to the application."""
_CONNECTIONS_LINGER: Final = sys.version_info < (3, 12)
_LOOK: Final = 8
"""Requests after which a recorder that rests looks again whether it may measure: a clock costs more than a counter."""
_BURST: Final = 0.05
"""Seconds of measuring that may be saved up: 1,000 levels of 50 µs, enough that a service which serves one request a
second measures every one, little enough that no client waits noticeably when a burst follows a quiet hour."""


class Level(enum.Enum):
    """Where the idle level is read; see the top of this file."""

    RELEASE = "release"
    ARRIVAL = "arrival"


class Window:
    """One request, from its arrival to the idle level after it. `started`: the idle level before it is known."""

    __slots__ = ("crowded", "endpoint", "port", "serial", "started", "task")

    serial: int
    crowded: bool
    started: bool
    endpoint: Endpoint | None
    port: str | None  # the client's, under a threaded WSGI server
    task: "weakref.ref[asyncio.Task[Any]] | None"  # ARRIVAL: the one that served it


class _Sentinel:
    """Lies in a request's environ or scope and reports when that dies."""

    __slots__ = ("headers", "released", "window")

    def __init__(self, window: Window, headers: int, released: Callable[[Window, int], None]) -> None:
        self.window = window
        self.headers = headers
        self.released = released

    def __del__(self) -> None:
        self.released(self.window, self.headers)


class WindowRecorder:
    """Counts every request and measures some. One recorder serves all threads of a process.

    `sampling` is "auto" (as many levels as `budget`, a share of one core, pays for) or N: one request in N, in runs.
    """

    name = "windows"
    follows = False

    def __init__(
        self,
        ledger: Ledger,
        *,
        sampling: int | str = "auto",
        budget: float = 0.01,
        clock: Callable[[], float] = time.perf_counter,
        allocated_blocks: Callable[[], int] = sys.getallocatedblocks,
        settle: Callable[[], object] | None = None,
        fault: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._every = sampling if isinstance(sampling, int) else 0
        self._budget = budget
        self._clock = clock
        self._allocated_blocks = allocated_blocks
        self._settle_stores = settle or Settler()
        self._fault = fault  # called while an exception of ours is handled that no caller would see
        self._key = f"heap_middleware.window.{id(self)}"
        self._serials = itertools.count(1)
        self._active: set[Window] = set()
        self._last_crowded = -_QUIET
        self._before = array("q", (0, 0))  # the idle level before the one window that has `started`, as _read gives it
        self._after = array("q", (0, 0))  # the idle level after `_last`
        self._known = False  # whether `_after` was read
        self._newest = 0  # the serial of the window that began last
        self._read_at = -1  # the serial of the window after which a level was read last
        self._running = True  # whether a run of levels is on
        self._last: Window | None = None  # the window that ended last, while its idle level may still be of use
        self._pending: Window | None = None  # ARRIVAL: the released window whose level the next arrival reads
        self._unreleased: set[Window] = set()  # windows whose sentinel still lives
        self._cyclic: set[Endpoint] = set()  # endpoints whose environ outlived its request, as garbage perhaps
        self._read_among_threads = False  # whether the last level waits for the next arrival to confirm it
        self._level_read = 0.0  # when that was
        self._port = ""  # and over which connection
        self._unconfirmed: tuple[Endpoint, int] | None = None  # the window that ended at it
        self._client: Any = None  # ARRIVAL: who sent the request that arrived last, as far as it was noted
        self._tokens = _BURST
        self._refilled = clock()
        self.spent = 0.0
        """Seconds that reading levels has cost."""

    def begin(self, held: MutableMapping[str, Any], level: Level) -> Window:
        """Take note that a request arrives, with its environ or scope."""
        # Set here, not in a constructor of its own: one call less on every request.
        window = Window()
        window.serial = self._newest = next(self._serials)
        window.crowded = window.started = False
        active = self._active
        active.add(window)
        if len(active) > 1:
            window.crowded = True
            self._last_crowded = max(self._last_crowded, window.serial)
        elif self._pending is not None and level is Level.ARRIVAL:
            try:
                self._read_on_arrival(held)
            except BaseException:
                active.discard(window)  # or it would overlap every later one
                raise
        if self._read_among_threads:
            self._confirm(held.get("REMOTE_PORT", ""))
        if self._known:
            window.started, self._known = True, False
            self._before, self._after = self._after, self._before
        return window

    def finish(
        self, window: Window, held: MutableMapping[str, Any], level: Level, method: str, route: str | None
    ) -> None:
        """Take note that the response has ended; the route template is known by now. Called once for each window."""
        self._active.discard(window)
        endpoint = window.endpoint = self._ledger.count(method, route)
        last, self._last = self._last, window
        if not self._running and not window.started and window.serial % _LOOK:
            return  # the recorder rests
        if window.started and (last is None or last.endpoint != endpoint):
            window.started = False
        if last in self._unreleased and last.endpoint is not None:
            self._cyclic.add(last.endpoint)
        self._running = self._affordable(window)
        if (window.started or self._running) and endpoint is not None and self._clean(window):
            if endpoint in self._cyclic and level is Level.RELEASE and sys.exception() is None:
                self._settle()  # never under an exception: what it holds would grow old and wait for a full collection
            self._unreleased.add(window)
            window.port = held.get("REMOTE_PORT", "") if held.get("wsgi.multithread") else None
            if level is Level.RELEASE:
                held[self._key] = _Sentinel(window, _environ_headers(held), self._released_idle)
            else:
                task = _current_task()
                window.task = None if task is None else weakref.ref(task)
                held[self._key] = _Sentinel(window, 0, self._released)

    def totals(self) -> dict[Endpoint, EndpointTotals]:
        """What is known of each endpoint."""
        return self._ledger.snapshot()

    def tracked(self) -> None:
        """There are no records."""

    def sites(self) -> dict[Endpoint, tuple[Site, ...]]:
        """There are no records."""
        return {}

    def numbered(self) -> dict[int, Endpoint]:
        """There are no records."""
        return {}

    @contextmanager
    def disturbing(self) -> Iterator[None]:
        """While this is entered, the heap changes for a reason that is no request, a scrape, say."""
        scrape = Window()
        scrape.serial, scrape.crowded = next(self._serials), True  # a serial drawn ends a run of levels
        self._forget()
        self._active.add(scrape)  # overlaps what comes meanwhile
        try:
            yield
        finally:
            self._active.discard(scrape)
            self._forget()

    def _forget(self) -> None:
        for window in tuple(self._active):
            window.crowded = True
        self._known = self._read_among_threads = False
        self._pending = self._last = self._unconfirmed = None

    def _clean(self, window: Window) -> bool:
        return not window.crowded and window.serial - self._last_crowded > _QUIET

    def _released_idle(self, window: Window, headers: int) -> None:
        """RELEASE: nothing of the request is left but its headers; this moment is the idle level."""
        self._unreleased.discard(window)
        try:
            if self._active or self._last is not window:
                self._late()
            else:  # still clean: who would have crowded it has ended since, and is `_last`
                self._read_level(window, _BLOCKS_PER_HEADER * headers)
        except Exception:  # in a finalizer, where nobody would catch it
            self._fault()

    def _released(self, window: Window, _: int) -> None:
        """ARRIVAL: the next request's scope is being built; it reads the level when it arrives."""
        self._unreleased.discard(window)
        if self._last is window:
            self._pending = window
        else:
            self._late()

    def _late(self) -> None:
        """An environ or scope dies after the next request began: what it held is given back in that one's window."""
        for window in tuple(self._active):
            window.started = False
        self._known = False

    def _read_on_arrival(self, held: MutableMapping[str, Any]) -> None:
        window, self._pending = self._pending, None
        client, self._client = self._client, held.get("client")
        if _CONNECTIONS_LINGER and window is not None and client != self._client:
            window.started = False
        if window is not None and self._last is window and self._clean(window):
            idle = window.task is None or window.task() in (None, _current_task())
            self._read_level(window, _BLOCKS_PER_HEADER * len(held.get("headers", ())) + _loop_timers(), idle=idle)

    def _settle(self) -> None:
        began = self._clock()
        self._settle_stores()
        cost = (self._clock() - began) * _AFTERMATH
        self._tokens -= cost
        self.spent += cost

    def _read_level(self, window: Window, transient: int, *, idle: bool = True) -> None:
        """Read the level after `window`, with `transient` blocks that belong to no route taken off.

        Without `idle` it is no level, but the run of levels goes on.
        """
        newest = self._newest
        self._settle()
        if self._newest != newest:
            return  # another thread's request began meanwhile
        after, before = self._after, self._before
        after[0] = self._allocated_blocks() - transient
        after[1] = full_collections()
        # Serials are also drawn by scrapes, so that a run does not go on across one.
        self._read_among_threads = window.port is not None
        self._known = idle and self._running and self._read_at == window.serial - 1
        self._read_at = window.serial
        if idle and window.started and window.endpoint is not None and after[1] == before[1]:
            if window.port is not None:
                self._unconfirmed = window.endpoint, after[0] - before[0]
            else:
                self._ledger.measure(window.endpoint, after[0] - before[0])
        if window.port is not None:
            self._level_read, self._port = self._clock(), window.port

    def _confirm(self, port: str) -> None:
        """A request arrives, the first since a level was read among other threads: was all quiet then?"""
        self._read_among_threads = False
        measured, self._unconfirmed = self._unconfirmed, None
        if port != self._port or self._clock() - self._level_read < _PARSING:
            self._known = False
        elif measured is not None:
            self._ledger.measure(*measured)

    def _affordable(self, window: Window) -> bool:
        """Whether the run of levels goes on, or a new one begins, after this window."""
        if self._every:
            return window.serial // _RUN % self._every == 0
        now = self._clock()
        self._tokens = min(_BURST, self._tokens + (now - self._refilled) * self._budget)
        self._refilled = now
        return self._tokens > (0.0 if self._running else _BURST / 2)


def _environ_headers(environ: MutableMapping[str, Any]) -> int:
    return sum(key.startswith("HTTP_") for key in environ)


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:  # no asyncio loop runs in this thread
        return None


def _loop_timers() -> int:
    """Timers in the heap of the running asyncio loop; 0 for loops that keep them elsewhere (uvloop, trio)."""
    try:
        # No public interface counts them. The attribute is that of asyncio's BaseEventLoop in 3.11 to 3.14.
        return len(getattr(asyncio.get_running_loop(), "_scheduled", ()))
    except RuntimeError:  # no asyncio loop runs in this thread
        return 0
