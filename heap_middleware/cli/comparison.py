"""Two readings of one service, compared: what each route left alive in between, which types grew."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from heap_middleware.cli.reading import Reading, Route, Worker

__all__ = ["SORTS", "Comparison", "RouteRow", "TypeRow", "compare", "restarted"]


@dataclass(frozen=True, slots=True)
class RouteRow:
    """One route: totals as they are now, rates since the earlier reading."""

    method: str
    route: str
    leak_objects_per_request: float | None
    """By the service's own verdict; None for a route that is not judged to leak."""
    objects_per_request: float | None
    """That a measured request left alive since the earlier reading; if there was none, since the service started."""
    retained_objects: float
    retained_bytes: float | None
    retained_grown: float
    """Retained objects, beyond those of the earlier reading."""
    requests: float
    requests_per_second: float | None
    """None without an earlier reading."""
    types: dict[str, float]
    """Retained objects by type, most first."""


@dataclass(frozen=True, slots=True)
class TypeRow:
    """One type: what there is now, and how much more than at the earlier reading."""

    module: str
    objects: float
    bytes: float
    objects_grown: float
    bytes_grown: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is shown."""

    seconds: float
    """Between the two readings; 0 where there is one."""
    routes: list[RouteRow]
    types: list[TypeRow]
    """Those that grew most first."""
    workers: dict[str, Worker]
    overhead: dict[str, float]
    """Seconds since the service started, by part."""
    overhead_share: dict[str, float]
    """Of one core, since the earlier reading, by part; empty without one."""
    faults: float
    info: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Plain values; `format` changes when the meaning of a name does."""
        return {"format": 1, **asdict(self)}


def _by_leak(row: RouteRow) -> tuple[float, ...]:
    # Without a verdict it is the growth that counts: a mean would put a route on top that was asked once and imported.
    return row.leak_objects_per_request or 0.0, row.retained_grown, row.requests


SORTS: Final[dict[str, Callable[[RouteRow], Any]]] = {
    "leak": _by_leak,
    "retained": lambda row: row.retained_objects,
    "bytes": lambda row: row.retained_bytes or 0.0,
    "requests": lambda row: row.requests,
}
"""What routes can be sorted by, most first."""


def restarted(first: Reading, now: Reading) -> bool:
    """Whether the service has started anew since the first reading: a counter went down."""
    return any(
        endpoint not in now.routes or now.routes[endpoint].requests < route.requests
        for endpoint, route in first.routes.items()
    )


def compare(first: Reading, now: Reading, seconds: float, sort: str = "leak") -> Comparison:
    """What `now` says beside `first`, the same reading if there is no earlier one, `seconds` before it."""
    routes = [
        _route_row(endpoint, first.routes.get(endpoint), route, seconds) for endpoint, route in now.routes.items()
    ]
    routes.sort(key=SORTS[sort], reverse=True)
    spent = {part: max(0.0, amount - first.overhead.get(part, 0.0)) for part, amount in now.overhead.items()}
    return Comparison(
        seconds=seconds,
        routes=routes,
        types=_type_rows(first, now),
        workers=now.workers,
        overhead=now.overhead,
        overhead_share={part: amount / seconds for part, amount in spent.items()} if seconds > 0 else {},
        faults=now.faults,
        info=now.info,
    )


def _route_row(endpoint: tuple[str, str], before: Route | None, now: Route, seconds: float) -> RouteRow:
    if before is None:  # its first request came since
        before = Route()
    measured, kept = now.measured - before.measured, (now.gained - now.lost) - (before.gained - before.lost)
    if measured <= 0:
        measured, kept = now.measured, now.gained - now.lost
    method, route = endpoint
    return RouteRow(
        method=method,
        route=route,
        leak_objects_per_request=now.leak,
        objects_per_request=kept / measured if measured > 0 else None,
        retained_objects=now.retained_objects,
        retained_bytes=now.retained_bytes,
        retained_grown=now.retained_objects - (before.retained_objects if seconds > 0 else 0.0),
        requests=now.requests,
        requests_per_second=(now.requests - before.requests) / seconds if seconds > 0 else None,
        types=dict(sorted(now.types.items(), key=lambda row: -row[1])),
    )


def _type_rows(first: Reading, now: Reading) -> list[TypeRow]:
    rows = []
    for module, count in now.types.items():
        before = first.types.get(module)
        objects, size = (0.0, 0.0) if before is None else (before.objects, before.bytes)
        rows.append(TypeRow(module, count.objects, count.bytes, count.objects - objects, count.bytes - size))
    rows.sort(key=lambda row: (-row.objects_grown, -row.bytes))
    return rows
