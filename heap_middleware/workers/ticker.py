"""A regular look at what this process knows, by the one thread that it has for such things."""

import time
from collections.abc import Callable
from typing import Final

from heap_middleware.workers.bell import Bell

__all__ = ["Ticker"]

_FIRST: Final = 1.0
_LAST: Final = 15.0
"""Seconds between two looks: a leak is to be seen soon after a start; later, as often as Prometheus scrapes."""
_SLOWER: Final = 0.01
"""Share of its age by which the interval grows: a hundred looks at each scale of time."""


class Ticker:
    """Calls `tick` now and then, from the process's first request on; what that raises goes to `fault`."""

    def __init__(self, tick: Callable[[], None], fault: Callable[[], None]) -> None:
        self._tick = tick
        self._fault = fault
        self._began = time.monotonic()
        self.interval = _FIRST
        """Seconds to the next look."""

    def publish(self, *, fresh: bool) -> None:  # noqa: ARG002 - nobody asks for fresh ones
        """Look. Raises nothing."""
        self.interval = min(_LAST, max(_FIRST, (time.monotonic() - self._began) * _SLOWER))
        try:
            self._tick()
        except Exception:
            self._fault()

    def bell(self) -> Bell | None:
        """Nobody rings."""
        return None

    def leave(self) -> None:
        """There is nothing to say at the end."""

    def forget(self) -> None:
        """There is nothing to close."""
