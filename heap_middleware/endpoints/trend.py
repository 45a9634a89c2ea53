"""A robust line through what is left of a series when it is lowest: the slope of Theil and Sen, with its bounds.

What waits for a collection of garbage is no growth, so a range of points is cut into parts of equal numbers of
requests, and of each part the lowest value counts.

Sources: Theil 1950; Sen, Estimates of the Regression Coefficient Based on Kendall's Tau, JASA 63 (1968).
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

__all__ = ["PARTS", "Parts", "Slope", "Z", "cut", "median_slope", "slope_of"]

PARTS: Final = 12
"""Of a range: 66 pairs, of which the lower bound at 99 % is the 14th; fewer parts give no bound, more are noisier."""
Z: Final = 2.576
"""Standard errors to the bounds at 99 %."""


class Parts(NamedTuple):
    """The lowest value of each part, and the number of requests at which it was."""

    requests: list[float]
    lowest: list[float]

    @property
    def growth(self) -> float:
        """From the first part to the last."""
        return self.lowest[-1] - self.lowest[0]

    @property
    def covered(self) -> float:
        """Requests from the first part's lowest value to the last part's."""
        return self.requests[-1] - self.requests[0]


class Slope(NamedTuple):
    """Of a line: the median of the slopes of all pairs, and its bounds at 99 %."""

    slope: float
    lower: float
    upper: float


def cut(requests: Sequence[float], values: Sequence[float], start: int, end: int, width: float) -> Parts:
    """Cut the points from `start` to before `end` into parts of `width` requests, those without a point left out."""
    at_requests: list[float] = []
    lowest: list[float] = []
    first = requests[start]
    last_part = max(1, round((requests[end - 1] - first) / width)) - 1
    at = start
    while at < end:
        part = min(int((requests[at] - first) / width), last_part)
        until = end if part == last_part else bisect_left(requests, first + (part + 1) * width, at + 1, end)
        low = min(range(at, until), key=values.__getitem__)
        at_requests.append(requests[low])
        lowest.append(values[low])
        at = until
    return Parts(at_requests, lowest)


def slope_of(parts: Parts) -> Slope:
    """The slope of the lowest values over requests, with its bounds by Kendall's S."""
    slopes = sorted(_slopes(*parts))
    bound = _bound(len(parts.lowest), len(slopes))
    return Slope(_median(slopes), slopes[bound], slopes[-1 - bound])


def median_slope(requests: Sequence[float], values: Sequence[float]) -> float:
    """The same without bounds."""
    return _median(sorted(_slopes(requests, values)))


def _slopes(requests: Sequence[float], values: Sequence[float]) -> Iterable[float]:
    for i, (x, y) in enumerate(zip(requests, values, strict=True)):
        for j in range(i + 1, len(values)):
            if requests[j] > x:
                yield (values[j] - y) / (requests[j] - x)


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _bound(count: int, pairs: int) -> int:
    """How many of the ordered slopes lie outside of the interval on either side, by the variance of Kendall's S."""
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return max(0, int((pairs - Z * deviation) / 2) - 1)
