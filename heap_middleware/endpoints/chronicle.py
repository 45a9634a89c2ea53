"""The history of all endpoints of this process, and what it says about each of them.

Points are noted by whoever asks, a scrape or the process's one thread; those that come too soon after another are left
out. The lock is held around arithmetic only: whatever can run the application's code comes before it.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Final

from heap_middleware.endpoints.history import History, HistoryView
from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.endpoints.verdict import Evidence, judge

__all__ = ["Chronicle", "TypeKey"]

TypeKey = tuple[str, str, str]
"""Method, route and `module.Type`."""
_TYPE_POINTS: Final = 60
_SOON: Final = 0.5
"""Seconds within which a second point would tell nothing new."""

_WINDOW_ERROR: Final = 0.25
"""Objects by which the mean of measured requests may be wrong: windows.py says why."""


def _of_measured(row: EndpointTotals) -> EndpointTotals:
    return EndpointTotals(requests=row.measured, retained_objects=row.gained - row.lost)


class Chronicle:
    """Safe to use from several threads."""

    def __init__(
        self,
        totals: Callable[[], Mapping[Endpoint, EndpointTotals]],
        interval: Callable[[], float] | None,
        *,
        points: int,
        least: float,
        clock: Callable[[], float],
    ) -> None:
        """`interval` is one allocation in how many is recorded, None where no allocation is, but requests are measured.

        `least` is the slope from which a growth is a leak.
        """
        self._totals = totals
        self._interval = interval
        self._least = least if interval is not None else max(least, _WINDOW_ERROR)
        self._clock = clock
        self._lock = threading.RLock()
        self._history: History[Endpoint] = History(points)
        self._types: History[TypeKey] = History(min(points, _TYPE_POINTS))
        self._measured: History[Endpoint] | None = History(points) if interval is None else None
        """Of measured requests only, where these are what is judged."""
        self._scatter: dict[Endpoint, float] = {}
        self._judged: dict[Endpoint, Evidence] | None = None
        self._noted = 0

    def note(self) -> None:
        """Add a point, if the last one was not just now."""
        now = self._clock()
        times = self._history.times
        if times and 0 <= now - times[-1] < _SOON:
            return
        noted = self._noted
        totals, interval = self._totals(), 1.0 if self._interval is None else self._interval()
        with self._lock:
            if self._noted != noted:  # by another scrape, since these totals were read: they are older than its point
                return
            self._noted += 1
            self._history.note(now, totals, interval)
            if self._measured is not None:
                self._measured.note(now, {endpoint: _of_measured(row) for endpoint, row in totals.items()})
                self._scatter = {endpoint: row.scatter for endpoint, row in totals.items()}
            self._judged = None

    def note_types(self, types: Mapping[Endpoint, Mapping[str, float]]) -> None:
        """Add a point of what each of some endpoints retains of each type: a census was taken."""
        rows = {
            (endpoint.method, endpoint.route, module): EndpointTotals(retained_objects=objects)
            for endpoint, by_type in types.items()
            for module, objects in by_type.items()
        }
        with self._lock:
            self._types.note(self._clock(), rows)

    def types(self) -> HistoryView[TypeKey]:
        """A copy of the types' history."""
        with self._lock:
            return self._types.view()

    def evidence(self) -> dict[Endpoint, Evidence]:
        """That endpoints leak, of those that do."""
        with self._lock:
            if self._judged is None:
                self._judged = self._judge()
            return self._judged

    def view(self, endpoints: list[Endpoint] | None = None, most: int | None = None) -> HistoryView[Endpoint]:
        """A copy of the history, of some endpoints and thinned if so asked."""
        with self._lock:
            return self._history.view(endpoints, most)

    def _judge(self) -> dict[Endpoint, Evidence]:
        history = self._history if self._measured is None else self._measured
        now = self._clock()
        found = {}
        for endpoint, series in history.series().items():
            scatter = None if self._measured is None else self._scatter.get(endpoint, 0.0)
            evidence = judge(history.times, history.intervals, series, self._least, now=now, scatter=scatter)
            if evidence is not None:
                found[endpoint] = evidence
        return found
