"""One census for everybody who asks at the same time.

A scrape storm must not become a census storm: whoever asks while a census runs waits for that one, and whoever asks
soon after it gets it again.
"""

import threading
import time
from collections.abc import Callable

from heap_middleware.heap.census import Census

__all__ = ["SharedCensus"]


class _Flight:
    """A census that is being taken, and what came of it."""

    def __init__(self) -> None:
        self.owner = threading.get_ident()
        self.done = threading.Event()
        self.census: Census | None = None


class SharedCensus:
    """Takes a census at most every `min_interval` seconds, one at a time."""

    def __init__(
        self, take: Callable[[], Census], min_interval: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._take = take
        self._min_interval = min_interval
        self._clock = clock
        # Re-entrant, and held around attribute access only: a signal handler may scrape in the middle of it.
        self._lock = threading.RLock()
        self._flight: _Flight | None = None
        self._last: Census | None = None
        self._taken = 0.0
        self.seconds = 0.0
        """Seconds spent in censuses so far."""

    def get(self) -> Census:
        """The census of now, or of `min_interval` seconds ago at most. What `take` raises is raised."""
        mine = _Flight()
        try:
            with self._lock:
                if self._last is not None and self._clock() - self._taken < self._min_interval:
                    return self._last
                flight = self._flight = self._flight or mine
            if flight is mine:
                return self._fly(mine)
        finally:  # wherever it ended: a signal handler may raise at any line
            self._land(mine)
        if flight.owner == threading.get_ident():
            # A finalizer that the census itself set off is asking; to wait for that census would be to wait forever.
            return self._last if self._last is not None else self._take()
        flight.done.wait()
        return flight.census if flight.census is not None else self.get()

    def last(self) -> tuple[Census, float] | None:
        """The last census, however old, and when it was taken, by the clock; None if there has been none."""
        with self._lock:
            return None if self._last is None else (self._last, self._taken)

    def _fly(self, flight: _Flight) -> Census:
        census = self._take()
        with self._lock:
            flight.census = self._last = census
            self._taken = self._clock()
            self.seconds += census.duration
        return census

    def _land(self, flight: _Flight) -> None:
        with self._lock:
            if self._flight is flight:
                self._flight = None
        flight.done.set()
