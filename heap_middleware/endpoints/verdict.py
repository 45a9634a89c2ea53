"""Whether a route leaks: whether what it retains goes on growing with its requests.

A leak sets new records for ever; a cache stops when it is full, sessions come and go, garbage waits for its collection.
So a route is named if, over some stretch that reaches up to now,
- the *lowest* values of twelve equal parts of its requests rise: what waits for a collection of garbage is no growth;
- their slope, by Theil and Sen (trend.py), is above 0 with its lower bound at 99 %, which one outlier or one step
  cannot do, and itself above `least`;
- it goes on in the recent half of the stretch, and not at a small fraction of the pace, neither of the whole nor of the
  first half: a cache that fills slows down;
- it did so before its last part, too, and in more than two or three steps: a burst is no leak, nor is an import;
- it is a record: most of the growth is above all that was before the stretch; what fluctuates comes up from a dip;
- there is enough of it: requests, growth, and growth beyond chance. A population of n objects that come and go
  fluctuates by the root of n, and one of which each record stands for N objects by that of N * n.
It is named no longer when one of these ceases to hold; when the latest requests that would have shown such a growth
show none; or when it was not asked for as long as the stretch had lasted.

Stretches are nearly all requests, and the last 500, 1,000, 2,000 and so on, as long as they took an eighth of the
process's age or an hour: one that has served for weeks sees a new leak within an hour or two.

Pure Python knows only what measured requests changed. There, the history that is judged is that of measured requests:
nothing is extrapolated, and what they were seen to give back says how much may have been given back unseen.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from heap_middleware.endpoints.history import Series
from heap_middleware.endpoints.trend import PARTS, Parts, Z, cut, median_slope, slope_of

__all__ = ["LEAST_MEASURED", "LEAST_REQUESTS", "Evidence", "judge"]

LEAST_REQUESTS: Final = 240
"""20 a part; a process that has served fewer says nothing."""
LEAST_MEASURED: Final = 2000
"""The same where only some requests are measured. A list that is cleared at every 400th loses all in one request, which
among fewer may be none of the measured."""
_SHORTEST: Final = 500
"""Requests of the shortest stretch of a process that has served more."""
_WHOLE: Final = 0.9
"""Share of all requests in the longest: the first ones of a service import modules."""
_LASTING: Final = 3600.0
_LASTING_SHARE: Final = 0.125
"""Seconds, and of a younger process the share of its age, that a shorter one must have lasted: a burst does not."""
_LEAST_PARTS: Final = PARTS * 2 // 3
"""With a point in them."""
_LEAST_GROWTH: Final = 24.0
_DEVIATIONS: Final = 5.0
_DEVIATIONS_BEFORE: Final = 4.0
"""Standard errors of chance that a growth must exceed, and must have exceeded before the last part of its stretch."""
_DEVIATIONS_STOPPED: Final = 8.0
"""That a growth must be due in the latest requests for its absence to be no chance: this is asked each time anew."""
_PACE: Final = 0.4
"""Of the whole stretch's slope that the recent half must have. A cache that has filled by half has a lower one."""
_PACE_OF_FIRST: Final = 0.5
"""Of the first half's. What lives for some thousand requests takes several such times to fill up, ever slower."""
_RECORD: Final = 0.6
"""Share of a stretch's growth that must be above whatever was before."""
_LATEST: Final = 0.4
"""Share of a stretch without which it must have been a leak already."""
_STEP: Final = 0.3
"""Share of a growth that may come from one part to the next: two or three modules that were loaded are no leak."""
_RISING: Final = 11
"""Of the 15 pairs of the last six parts, those that must rise, less those that fall: by chance 1 in 36."""
_TELLING: Final = 3.0
"""Times what values strayed from their line: so much must be due in the latest requests, to be missed there."""
_STOPPED: Final = 0.3
"""Share of the growth that was due in the latest requests, below which it has ended."""
_NEAR: Final = 0.1
"""Share of a stretch's growth by which a value may lie off the line that is drawn back to where it began."""

_IDLE: Final = 3600.0
"""Seconds without a request after which a verdict may be withdrawn."""


class Evidence(NamedTuple):
    """That a route leaks, by what one process saw. Numbers only, for other processes to read."""

    slope: float
    """Objects a request left alive."""
    error: float
    """Its standard error, so that 2.576 of them are the bound at 99 %."""
    requests: float
    """That it rests on."""
    bytes: float
    """Bytes a request left alive."""
    rate: float
    """Requests a second, lately."""
    since: float
    """When the growth began, in seconds since the epoch."""
    served: float
    """All requests of the route that this process has judged."""


class _Points(NamedTuple):
    """What is judged: columns of equal length."""

    times: Sequence[float]
    intervals: Sequence[float]
    requests: Sequence[float]
    lowest: Sequence[float]
    objects: Sequence[float]
    scatter: float

    def weight(self, start: int, end: int) -> float:
        """How many objects a record of the range stands for, on the mean of its requests.

        Not the most that it ever was: the interval of a service that starts swings widely before it settles.
        """
        requests, intervals = self.requests, self.intervals
        total = sum((requests[at] - requests[at - 1]) * intervals[at] for at in range(start + 1, end))
        return total / (requests[end - 1] - requests[start])


def judge(
    times: Sequence[float],
    intervals: Sequence[float],
    series: Series,
    least: float,
    *,
    now: float,
    scatter: float | None = None,
) -> Evidence | None:
    """The evidence that a route leaks, by the points of its history; None if there is none.

    `intervals` are those of sampling at each time, `least` is the slope from which a growth is a leak. `scatter` is for
    a backend that measures some requests only, whose points these are: the variance that each of the others may add.
    """
    requests = series.requests
    if len(requests) < PARTS or requests[-1] - requests[0] < LEAST_REQUESTS:
        return None
    if scatter is not None and requests[-1] < LEAST_MEASURED:
        return None
    times, intervals = times[-len(requests) :], intervals[-len(requests) :]
    points = _Points(times, intervals, requests, series.lowest, series.objects, scatter or 0.0)
    for start in _starts(times, requests):
        found = _weigh(points, start, len(requests), least)
        # Already without its last part, or it may be one burst.
        if found is None or _weigh(points, start, _end_before(requests, start), least) is None:
            continue
        if _has_stopped(points, start, found.slope) or _is_idle(points, start, now):
            continue
        since = _since(points, start, found.parts)
        return Evidence(
            found.slope,
            found.error,
            requests=requests[-1] - requests[start],
            bytes=_bytes(requests, series.bytes, min(start, bisect_left(times, since))),
            rate=_rate(times, requests, now),
            since=since,
            served=requests[-1],
        )
    return None


def _starts(times: Sequence[float], requests: Sequence[float]) -> Iterator[int]:
    """Where the stretches start, that of the longest first."""
    yield _start_of(requests, _WHOLE * (requests[-1] - requests[0]))
    lasting = min(_LASTING, _LASTING_SHARE * (times[-1] - times[0]))
    for length in reversed(list(_lengths(requests, 0, 2.0))):
        start = _start_of(requests, length)
        if times[-1] - times[start] < lasting:
            return
        yield start


def _lengths(requests: Sequence[float], start: int, factor: float) -> Iterator[float]:
    """500 requests, and each time so many times more, as far as they reach back."""
    length = float(_SHORTEST)
    while length < _WHOLE * (requests[-1] - requests[start]):
        yield length
        length *= factor


def _start_of(requests: Sequence[float], length: float) -> int:
    return bisect_left(requests, requests[-1] - length)


def _end_before(requests: Sequence[float], start: int) -> int:
    until = requests[-1] - _LATEST * (requests[-1] - requests[start])
    return max(start + 1, bisect_left(requests, until))


class _Growth(NamedTuple):
    """Of a range that shows a leak: slope, its standard error, and the parts it was drawn through."""

    slope: float
    error: float
    parts: Parts


def _weigh(points: _Points, start: int, end: int, least: float) -> _Growth | None:
    """What a range of points shows by itself; None if that is no leak.

    What costs least comes first.
    """
    requests, whole = points.requests, end == len(points.requests)
    length = requests[end - 1] - requests[start]
    if length < (LEAST_REQUESTS if whole else LEAST_REQUESTS * (1 - _LATEST) - 1) or end - start < _LEAST_PARTS:
        return None
    parts = cut(requests, points.lowest, start, end, length / PARTS)
    growth, covered = parts.growth, parts.covered
    if len(parts.lowest) < _LEAST_PARTS or growth < max(_LEAST_GROWTH, least * covered * _PACE):
        return None
    weight = points.weight(start, end)
    deviations = _DEVIATIONS if whole else _DEVIATIONS_BEFORE
    variance = max(max(parts.lowest), 0.0) * weight + points.scatter * covered
    if growth < max(deviations**2 * weight, deviations * math.sqrt(variance)):
        return None
    if max(after - value for value, after in pairwise(parts.lowest)) > _STEP * growth:
        return None
    if parts.lowest[-1] - _highest_before(points, start, covered / PARTS) < _RECORD * growth:
        return None
    slope, lower, upper = slope_of(parts)
    sampling = math.sqrt(growth * weight + points.scatter * covered) / covered
    error = math.hypot((upper - lower) / 2 / Z, sampling)
    if lower <= 0 or slope < least or slope - Z * error <= 0 or not _goes_on(parts, slope, least):
        return None
    return _Growth(slope, error, parts)


def _highest_before(points: _Points, start: int, width: float) -> float:
    """The highest of the lowest values of parts of this width before the stretch starts: a point or more."""
    return max(cut(points.requests, points.lowest, 0, start, width).lowest)


def _goes_on(parts: Parts, slope: float, least: float) -> bool:
    """Whether the recent half grows as well, and not much slower than the whole."""
    half = len(parts.lowest) // 2
    requests, lowest = parts.requests[half:], parts.lowest[half:]
    rising = sum((after > value) - (after < value) for at, value in enumerate(lowest) for after in lowest[at + 1 :])
    pairs = len(lowest) * (len(lowest) - 1) // 2
    first = median_slope(parts.requests[:half], parts.lowest[:half])
    pace = max(_PACE * slope, _PACE_OF_FIRST * first, least)
    return median_slope(requests, lowest) >= pace and rising >= _RISING * pairs / 15


def _has_stopped(points: _Points, start: int, slope: float) -> bool:
    """Whether the latest requests did not add what as many before them had added, beyond doubt."""
    requests, lowest = points.requests, points.lowest
    end = len(requests)
    for length in _lengths(requests, start, 1.2):
        latest, before = _start_of(requests, length), _start_of(requests, 2 * length)
        if before < start:
            return False
        if min(latest - before, end - latest) < _LEAST_PARTS or requests[latest - 1] <= requests[before]:
            continue
        was = cut(requests, lowest, before, latest, length / 3)
        pace = was.growth / was.covered if was.covered else 0.0
        strayed = [points.objects[at] - pace * requests[at] for at in range(before, latest)]
        chance = _DEVIATIONS_STOPPED * math.sqrt(points.scatter * length)
        least = max(chance, _LEAST_GROWTH, _TELLING * (max(strayed) - min(strayed)))
        if not _PACE * slope < pace < slope / _PACE or pace * length < least:
            continue
        now = cut(requests, lowest, latest, end, length / 3)
        weight = points.weight(before, latest)
        if pace * length >= _DEVIATIONS_STOPPED**2 * weight and now.growth < _STOPPED * pace * now.covered:
            return True
    return False


def _is_idle(points: _Points, start: int, now: float) -> bool:
    """Whether the route was not asked for as long as the stretch had lasted."""
    times = points.times
    asked = times[bisect_left(points.requests, points.requests[-1])]
    return now - asked > max(_IDLE, asked - times[start])


def _since(points: _Points, start: int, parts: Parts) -> float:
    """When the growth began: where its line, drawn back, leaves the values or meets the level that was before.

    The line is that of the latter half of the stretch's parts, of which all belongs to the growth: it rises, or the
    route would not be named.
    """
    half = len(parts.lowest) // 2
    latter = Parts(parts.requests[half:], parts.lowest[half:])
    slope = median_slope(*latter)
    offset = sorted(low - slope * at for at, low in zip(*latter, strict=True))[len(latter.lowest) // 2]
    length = points.requests[-1] - points.requests[start]
    near = max(_NEAR * slope * length, math.sqrt(slope * length * points.weight(start, len(points.requests))) * 3)
    before = cut(points.requests, points.lowest, 0, start, length / PARTS)
    requests = before.requests + parts.requests[: half + 1]
    lowest = before.lowest + parts.lowest[:half]
    for at in range(len(lowest) - 1, -1, -1):
        strayed = lowest[at] - offset - slope * requests[at]
        if strayed < -near:  # a jump came first
            return _time_of(points, requests[at + 1])
        if strayed > near:  # the level before
            return _time_of(points, min(requests[at] + strayed / slope, points.requests[-1]))
    return points.times[0]


def _bytes(requests: Sequence[float], size: Sequence[float], start: int) -> float:
    """Bytes that a request left alive since the growth began: of lowest values, too, for a batch that is filled and
    cleared beside a leak of small objects weighs more than these.
    """
    length = requests[-1] - requests[start]
    return max(0.0, median_slope(*cut(requests, size, start, len(requests), length / PARTS)))


def _time_of(points: _Points, request: float) -> float:
    """When a request was served that came after the first point."""
    after = bisect_left(points.requests, request)
    before = points.requests[after - 1]
    share = (request - before) / (points.requests[after] - before)
    return points.times[after - 1] + share * (points.times[after] - points.times[after - 1])


def _rate(times: Sequence[float], requests: Sequence[float], now: float) -> float:
    """Requests a second over the last tenth of the points."""
    at = max(0, len(requests) - 1 - max(1, len(requests) // 10))
    seconds = max(now, times[-1]) - times[at]
    return (requests[-1] - requests[at]) / seconds if seconds > 0 else 0.0
