"""What each endpoint, or each type of one, retained over time: a bounded series of points, from the first to now.

The rules of this file:
- All endpoints share one axis of times. An endpoint that comes later has its points from then on.
- Bounded: when there are as many points as may be, the one goes that is missed least, by its distance to its neighbours
  over its age. So the recent past is fine, the distant one coarse, and the start is never forgotten.
- No clock: times come as arguments, in seconds since the epoch. Points come in their order; one that does not (a clock
  was set back) is put at the time of the one before it.
- Not for several threads at once: whoever notes holds a lock of its own.

500 endpoints of 300 points take 4.8 MB.
"""

from array import array
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

__all__ = ["History", "HistoryView", "Series", "joined"]


Key = TypeVar("Key", bound=Hashable)


class Amounts(Protocol):
    """What a point says; `EndpointTotals` does."""

    @property
    def requests(self) -> int: ...

    @property
    def retained_objects(self) -> float: ...

    @property
    def retained_bytes(self) -> float | None: ...


@dataclass(slots=True)
class Series:
    """The points of one endpoint, the last of them at the last time of its history."""

    requests: "array[float]" = field(default_factory=lambda: array("d"))
    objects: "array[float]" = field(default_factory=lambda: array("d"))
    bytes: "array[float]" = field(default_factory=lambda: array("d"))
    """Retained bytes; 0 where the backend knows none."""
    lowest: "array[float]" = field(default_factory=lambda: array("d"))
    """The lowest number of objects since the point before, those included that are no longer kept; not in a copy."""

    def columns(self) -> "Iterator[array[float]]":
        """Requests, objects and bytes."""
        yield self.requests
        yield self.objects
        yield self.bytes


@dataclass(frozen=True, slots=True)
class HistoryView(Generic[Key]):
    """A copy of a history, of one process or summed over several."""

    times: list[float]
    """Seconds since the epoch."""
    series: Mapping[Key, Series]
    """As long as `times`, or shorter: then the endpoint came later, and the last points belong together."""


class History(Generic[Key]):
    """At most `most` points of all endpoints."""

    def __init__(self, most: int) -> None:
        self._most = max(4, most)
        self.times = array("d")
        self.intervals = array("d")
        """The sampling interval at each point: a record weighs that many objects."""
        self._series: dict[Key, Series] = {}

    def note(self, now: float, totals: Mapping[Key, Amounts], interval: float = 1.0) -> None:
        """Add a point; what is missing has nothing any more."""
        if len(self.times) >= self._most:
            self._drop()
        self.times.append(max(now, self.times[-1]) if self.times else now)
        self.intervals.append(interval)
        for gone in self._series.keys() - totals.keys():
            self._append_nothing(gone)
        for endpoint, row in totals.items():
            series = self._series.get(endpoint)
            if series is None:
                series = self._series[endpoint] = Series()
            # A counter only grows: a verdict divides by how far it has come from one point to another.
            requests = max(row.requests, series.requests[-1]) if series.requests else row.requests
            values = (requests, row.retained_objects, row.retained_bytes or 0.0)
            for column, value in zip(series.columns(), values, strict=True):
                column.append(value)
            series.lowest.append(row.retained_objects)

    def _append_nothing(self, gone: Key) -> None:
        series = self._series[gone]
        series.requests.append(series.requests[-1])
        series.objects.append(0.0)
        series.bytes.append(0.0)
        series.lowest.append(0.0)
        if not any(series.objects):
            del self._series[gone]

    def series(self) -> Mapping[Key, Series]:
        """The points of each endpoint; not a copy."""
        return self._series

    def view(self, keys: Iterable[Key] | None = None, most: int | None = None) -> HistoryView[Key]:
        """A copy, of some keys and thinned evenly to `most` points if so asked."""
        chosen = self._series if keys is None else [one for one in keys if one in self._series]
        length = len(self.times)
        step = 1 if most is None else max(1, -(-length // most))
        kept = range((length - 1) % step, length, step)  # the last one among them
        found = {}
        for endpoint in chosen:
            series = self._series[endpoint]
            missing = length - len(series.requests)
            columns = (
                array("d", (column[at - missing] for at in kept if at >= missing)) for column in series.columns()
            )
            found[endpoint] = Series(*columns)
        return HistoryView([self.times[at] for at in kept], found)

    def _drop(self) -> None:
        times, now = self.times, self.times[-1]
        at = min(range(1, len(times) - 1), key=lambda i: (times[i + 1] - times[i - 1]) / (now - times[i] + 1.0))
        length = len(times)
        del times[at], self.intervals[at]
        for series in self._series.values():
            place = at - (length - len(series.requests))
            if place >= 0:
                series.lowest[place + 1] = min(series.lowest[place], series.lowest[place + 1])
                for column in series.columns():
                    del column[place]
                del series.lowest[place]


def joined(views: Sequence[HistoryView[Key]], most: int) -> HistoryView[Key]:
    """The sum of several processes' histories, on a grid of its own; before it began, a process has nothing."""
    times = sorted({time for view in views for time in view.times})
    if not times:
        return HistoryView([], {})
    first, last = times[0], times[-1]
    steps = min(most, len(times)) - 1
    grid = [first + (last - first) * step / steps for step in range(steps + 1)] if steps > 0 else [last]
    found: dict[Key, Series] = {}
    for view in views:
        for endpoint, series in view.series.items():
            sums = found.setdefault(endpoint, Series(*(array("d", bytes(8 * len(grid))) for _ in range(3))))
            own = view.times[len(view.times) - len(series.requests) :]
            for total, column in zip(sums.columns(), series.columns(), strict=True):
                _add_steps(total, grid, own, column)
    return HistoryView(grid, found)


def _add_steps(total: "array[float]", grid: list[float], times: list[float], values: "array[float]") -> None:
    at = -1
    for place, time in enumerate(grid):
        while at + 1 < len(times) and times[at + 1] <= time + 1e-6:
            at += 1
        if at >= 0:
            total[place] += values[at]
