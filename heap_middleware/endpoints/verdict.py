"""Whether a route leaks: whether what it retains goes on growing with its requests.

A leak sets new records for ever; a cache stops when it is full, sessions come and go, garbage waits for its collection.
So a route is named if, over some stretch that reaches up to now,
- the *lowest* values of twelve equal parts of its requests rise: what waits for a collection of garbage is no growth;
- their slope, by Theil and Sen, is above 0 with its lower bound at 99 % (Sen 1968, by Kendall's S), which one outlier
  or one step cannot do, and itself above `least`;
- it goes on in the recent half of the stretch, and not at a small fraction of the pace, neither of the whole nor of the
  first half: a cache that fills slows down;
- it did so before its last part, too, and in more than two or three steps: a burst is no leak, nor is an import;
- it is a record: most of the growth is above all that was before the stretch; what fluctuates comes up from a dip;
- there is enough of it: requests, growth, and growth beyond chance. A population of n objects that come and go
  fluctuates by the root of n, and one of which each record stands for N objects by that of N * n.
It is no longer named when one of these ceases to hold.

Each process judges its own requests; the evidence of several is added up, weighted by requests (`combined`).

Sources: Theil 1950; Sen, Estimates of the Regression Coefficient Based on Kendall's Tau, JASA 63 (1968).
"""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from heap_middleware.endpoints.history import Series
from heap_middleware.endpoints.ledger import Endpoint

__all__ = ["Evidence", "Suspect", "combined", "judge", "verdicts"]

CONFIDENCE: Final = 0.99
_Z: Final = 2.576
_PARTS: Final = 12
"""Of a stretch: 66 pairs, of which the lower bound at 99 % is the 14th; fewer parts give no bound, more are noisier."""
_STRETCHES: Final = (0.9, 0.5, 0.25, 0.125)
"""Shares of all requests that are looked at: a leak that began late is seen in a short one, and the first requests of a
service, which import modules, in none."""
_LEAST_REQUESTS: Final = 240
"""20 a part."""
_LEAST_GROWTH: Final = 24.0
_DEVIATIONS: Final = 5.0
_DEVIATIONS_BEFORE: Final = 4.0
"""Standard errors of chance that a growth must exceed, and must have exceeded before the last part of its stretch."""
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


class Evidence(NamedTuple):
    """What one process found out about a route. Numbers only, for other processes to read."""

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
    leaks: float
    """1 if this process alone would name the route, else 0."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A route that is said to leak, and how sure that is."""

    endpoint: Endpoint
    objects_per_request: float
    """The slope: retained objects over requests. Objects are memory blocks of CPython."""
    lower: float
    upper: float
    """Bounds of the slope, at `confidence`."""
    confidence: float
    bytes_per_request: float | None
    """None where the backend knows no bytes."""
    bytes_per_day: float | None
    """At the present rate of requests."""
    requests: int
    """That the verdict rests on."""
    since: float
    """When the growth began, in seconds since the epoch."""
    types: tuple[tuple[str, float], ...] = ()
    """The main types of what the route retains, with objects, most first; empty where the backend knows none."""

    def __str__(self) -> str:
        """The verdict in words."""
        bounds = f"{self.lower:.2g} to {self.upper:.2g} at {self.confidence:.0%}"
        words = f"{' '.join(self.endpoint)} leaks {self.objects_per_request:.3g} objects a request ({bounds}"
        words += f", {self.requests:,} requests)"
        if self.bytes_per_day is not None:
            words += f", {_amount(self.bytes_per_day)} a day at the present rate"
        if self.types:
            words += ", mostly " + ", ".join(name for name, _ in self.types[:3])
        return words


def _amount(size: float) -> str:
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, int(math.log(size, 1024))) if size >= 1 else 0
    return f"{size / 1024**power:.3g} {units[power]}"


class _Stretch(NamedTuple):
    """The parts of a stretch: requests and the lowest value of each."""

    requests: list[float]
    lowest: list[float]


def judge(
    times: Sequence[float], intervals: Sequence[float], series: Series, least: float, *, now: float
) -> Evidence | None:
    """The evidence of a history's last points; None if there is too little to say anything.

    `intervals` are those of sampling at each time, `least` is the slope from which a growth is a leak.
    """
    requests, objects = series.requests, series.lowest
    if len(requests) < _PARTS or requests[-1] - requests[0] < _LEAST_REQUESTS:
        return None
    times, intervals = times[-len(requests) :], intervals[-len(requests) :]
    first: Evidence | None = None
    for share in _STRETCHES:
        start = _start_of(requests, share)
        now_found = _weigh(requests, objects, start, len(requests), least, intervals)
        if now_found is None:
            break
        evidence, leaks = now_found
        if leaks:  # already then, or it may be one burst
            before = _weigh(requests, objects, start, _end_before(requests, start), least, intervals)
            leaks = before is not None and before[1]
        evidence = evidence._replace(
            leaks=float(leaks),
            since=times[start],
            bytes=_per_request(series.bytes, requests, start),
            rate=_rate(times, requests, now),
        )
        if leaks:
            return evidence
        first = first or evidence
    return first


def _start_of(requests: "array[float]", share: float) -> int:
    from_request = requests[-1] - share * (requests[-1] - requests[0])
    return next(at for at, count in enumerate(requests) if count >= from_request)


def _end_before(requests: "array[float]", start: int) -> int:
    until = requests[-1] - _LATEST * (requests[-1] - requests[start])
    return next(at for at in range(len(requests) - 1, -1, -1) if requests[at] <= until) + 1


def _stretch(requests: "array[float]", objects: "array[float]", start: int, end: int) -> _Stretch | None:
    """Cut the points of a range into parts of equal numbers of requests; None if there are too few."""
    first, last = requests[start], requests[end - 1]
    least = _LEAST_REQUESTS if end == len(requests) else _LEAST_REQUESTS * (1 - _LATEST) - 1
    if last - first < least or end - start < _PARTS * 2 // 3:
        return None
    width = (last - first) / _PARTS
    at_requests: list[float] = []
    lowest: list[float] = []
    part = -1
    for at in range(start, end):
        number = min(int((requests[at] - first) / width), _PARTS - 1)
        if number != part:
            part = number
            at_requests.append(requests[at])
            lowest.append(objects[at])
        elif objects[at] < lowest[-1]:
            at_requests[-1], lowest[-1] = requests[at], objects[at]
    return _Stretch(at_requests, lowest) if len(lowest) >= _PARTS * 2 // 3 else None


def _weigh(
    requests: "array[float]", objects: "array[float]", start: int, end: int, least: float, intervals: Sequence[float]
) -> tuple[Evidence, bool] | None:
    """What a range of points says by itself, and whether that is a leak."""
    found = _stretch(requests, objects, start, end)
    if found is None:
        return None
    weight = _weight(requests, intervals, start, end)
    slopes = sorted(_slopes(*found))
    bound = _bound(len(found.lowest), len(slopes))
    lower, upper = slopes[bound], slopes[-1 - bound]
    growth = found.lowest[-1] - found.lowest[0]
    covered = found.requests[-1] - found.requests[0]
    sampling = math.sqrt(max(growth, 0.0) * weight) / covered
    error = math.hypot((upper - lower) / 2 / _Z, sampling)
    evidence = Evidence(_median(slopes), error, covered, 0.0, 0.0, 0.0, 0.0)
    deviations = _DEVIATIONS if end == len(requests) else _DEVIATIONS_BEFORE
    chance = deviations * math.sqrt(max(max(found.lowest), 0.0) * weight)
    leaks = (
        lower > 0
        and evidence.slope - _Z * error > 0
        and evidence.slope >= least
        and max(after - value for value, after in pairwise(found.lowest)) <= _STEP * growth
        and growth >= max(_LEAST_GROWTH, deviations**2 * weight, chance)
        and found.lowest[-1] - _highest_before(requests, objects, start, covered / _PARTS) >= _RECORD * growth
        and _goes_on(found, evidence.slope, least)
    )
    return evidence, leaks


def _weight(requests: "array[float]", intervals: Sequence[float], start: int, end: int) -> float:
    """How many objects a record of the range stands for, on the mean of its requests.

    Not the most that it ever was: the interval of a service that starts swings widely before it settles.
    """
    steps = range(start + 1, end)
    total = sum((requests[at] - requests[at - 1]) * intervals[at] for at in steps)
    return total / (requests[end - 1] - requests[start])


def _highest_before(requests: "array[float]", objects: "array[float]", start: int, width: float) -> float:
    """The highest of the lowest values of parts of this width that end where the stretch starts."""
    lowest: list[float] = []
    until = requests[start]
    for at in range(start - 1, -1, -1):
        if not lowest or requests[at] < until - width:
            until = requests[at] if lowest else until
            lowest.append(objects[at])
        lowest[-1] = min(lowest[-1], objects[at])
    # The first part may be cut short, and its lowest value be none.
    return max(lowest[:-1] or lowest, default=-math.inf)


def _goes_on(stretch: _Stretch, slope: float, least: float) -> bool:
    """Whether the recent half grows as well, and not much slower than the whole."""
    half = len(stretch.lowest) // 2
    requests, lowest = stretch.requests[half:], stretch.lowest[half:]
    rising = sum((after > value) - (after < value) for at, value in enumerate(lowest) for after in lowest[at + 1 :])
    pairs = len(lowest) * (len(lowest) - 1) // 2
    first = _median(sorted(_slopes(stretch.requests[:half], stretch.lowest[:half])))
    pace = max(_PACE * slope, _PACE_OF_FIRST * first, least)
    return _median(sorted(_slopes(requests, lowest))) >= pace and rising >= _RISING * pairs / 15


def _slopes(requests: Sequence[float], values: Sequence[float]) -> Iterable[float]:
    for i, (x, y) in enumerate(zip(requests, values, strict=True)):
        for j in range(i + 1, len(values)):
            yield (values[j] - y) / (requests[j] - x)


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _bound(count: int, pairs: int) -> int:
    """How many of the ordered slopes lie outside of the interval on either side, by the variance of Kendall's S."""
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return max(0, int((pairs - _Z * deviation) / 2) - 1)


def _per_request(values: "array[float]", requests: "array[float]", start: int) -> float:
    return max(0.0, (values[-1] - values[start]) / (requests[-1] - requests[start]))


def _rate(times: Sequence[float], requests: "array[float]", now: float) -> float:
    """Requests a second over the last tenth of the points."""
    at = max(0, len(requests) - 1 - max(1, len(requests) // 10))
    seconds = max(now, times[-1]) - times[at]
    return (requests[-1] - requests[at]) / seconds if seconds > 0 else 0.0


def verdicts(evidences: Iterable[Mapping[Endpoint, Evidence]], *, knows_bytes: bool) -> list[Suspect]:
    """The routes that leak, by what each process says, those that lose most objects or bytes first."""
    by_endpoint: dict[Endpoint, list[Evidence]] = {}
    for of_process in evidences:
        for endpoint, evidence in of_process.items():
            by_endpoint.setdefault(endpoint, []).append(evidence)
    found = (combined(endpoint, several, knows_bytes=knows_bytes) for endpoint, several in by_endpoint.items())
    return sorted(
        (suspect for suspect in found if suspect is not None),
        key=lambda suspect: (-(suspect.bytes_per_day or 0), -suspect.objects_per_request),
    )


def combined(endpoint: Endpoint, evidences: Sequence[Evidence], *, knows_bytes: bool) -> Suspect | None:
    """The verdict over processes; None if the route is not said to leak.

    It leaks if the processes that served most of the requests say so, and the slope over all is above its error.
    """
    requests = sum(evidence.requests for evidence in evidences)
    leaking = [evidence for evidence in evidences if evidence.leaks]
    if not requests or sum(evidence.requests for evidence in leaking) * 2 < requests:
        return None
    shares = [(evidence, evidence.requests / requests) for evidence in evidences]
    slope = sum(evidence.slope * share for evidence, share in shares)
    error = math.sqrt(sum((evidence.error * share) ** 2 for evidence, share in shares))
    if slope - _Z * error <= 0:
        return None
    size = sum(evidence.bytes * share for evidence, share in shares)
    return Suspect(
        endpoint=endpoint,
        objects_per_request=slope,
        lower=slope - _Z * error,
        upper=slope + _Z * error,
        confidence=CONFIDENCE,
        bytes_per_request=size if knows_bytes else None,
        bytes_per_day=size * sum(evidence.rate for evidence in evidences) * 86400 if knows_bytes else None,
        requests=round(requests),
        since=min(evidence.since for evidence in leaking),
    )
