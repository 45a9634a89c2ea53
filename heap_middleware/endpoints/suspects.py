"""The routes that are said to leak, by what all processes of a service found out about them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from heap_middleware.endpoints.ledger import Endpoint
from heap_middleware.endpoints.trend import Z
from heap_middleware.endpoints.verdict import LEAST_MEASURED, LEAST_REQUESTS, Evidence

__all__ = ["Suspect", "combined", "verdicts"]

CONFIDENCE: Final = 0.99


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
        bounds = f"{_digits(self.lower)} to {_digits(self.upper)} at {self.confidence:.0%}"
        words = f"{' '.join(self.endpoint)} leaks {_digits(self.objects_per_request)} objects a request ({bounds}"
        words += f", {self.requests:,} requests)"
        if self.bytes_per_day is not None:
            words += f", {_amount(self.bytes_per_day)} a day at the present rate"
        if self.types:
            words += ", mostly " + ", ".join(name for name, _ in self.types[:3])
        return words


def _amount(size: float) -> str:
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, int(math.log(size, 1024))) if size >= 1 else 0
    return f"{_digits(size / 1024**power)} {units[power]}"


def _digits(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def verdicts(
    evidences: Mapping[Endpoint, Sequence[Evidence]],
    silent: Mapping[Endpoint, Iterable[float]] = MappingProxyType({}),
    *,
    knows_bytes: bool,
) -> list[Suspect]:
    """The routes that leak, those that lose most objects or bytes first.

    `evidences` is what the processes say that find a leak, `silent` how many requests each other process has judged.
    """
    found = (
        combined(endpoint, said, silent.get(endpoint, ()), knows_bytes=knows_bytes)
        for endpoint, said in evidences.items()
    )
    return sorted(
        (suspect for suspect in found if suspect is not None),
        key=lambda suspect: (-(suspect.bytes_per_day or 0), -suspect.objects_per_request),
    )


def combined(
    endpoint: Endpoint, leaking: Sequence[Evidence], silent: Iterable[float], *, knows_bytes: bool
) -> Suspect | None:
    """The verdict over processes; None if the route is not said to leak.

    It leaks if those say so that served at least half of the requests, however long a stretch each of them looks at;
    one too young to judge has no say. The slope is the mean of theirs.
    """
    least = LEAST_REQUESTS if knows_bytes else LEAST_MEASURED  # who knows bytes follows every request
    against = sum(served for served in silent if served >= least)
    agreed = sum(evidence.served for evidence in leaking)
    if not agreed or agreed < against:
        return None
    shares = [(evidence, evidence.served / agreed) for evidence in leaking]
    slope = sum(evidence.slope * share for evidence, share in shares)
    error = math.sqrt(sum((evidence.error * share) ** 2 for evidence, share in shares))
    size = sum(evidence.bytes * share for evidence, share in shares)
    return Suspect(
        endpoint=endpoint,
        objects_per_request=slope,
        lower=slope - Z * error,
        upper=slope + Z * error,
        confidence=CONFIDENCE,
        bytes_per_request=size if knows_bytes else None,
        bytes_per_day=size * sum(evidence.rate for evidence in leaking) * 86400 if knows_bytes else None,
        requests=round(sum(evidence.requests for evidence in leaking)),
        since=min(evidence.since for evidence in leaking),
    )
