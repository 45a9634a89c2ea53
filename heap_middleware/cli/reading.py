"""What a metrics page says, as figures: routes, types, workers, and the middleware's own cost."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

__all__ = ["NotOurs", "Reading", "Route", "TypeCount", "Worker", "read"]

_OURS: Final = ("heap_", "object_count")
_INFO: Final = "heap_middleware_info"
_OF_ROUTES: Final = {
    "requests_total": "requests",
    "measured_requests_total": "measured",
    "objects_gained_total": "gained",
    "objects_lost_total": "lost",
    "retained_objects": "retained_objects",
    "retained_bytes": "retained_bytes",
    "leak_objects_per_request": "leak",
}
"""Metrics of a route, behind `heap_endpoint_`, and the field of `Route` that their samples add up to."""
_OF_WORKERS: Final = {
    "heap_size_bytes_total": "bytes",
    "heap_census_objects": "objects",
    "heap_census_pause_seconds": "pause",
    "heap_worker_snapshot_age_seconds": "age",
    "heap_tracker_records": "records",
    "heap_tracker_sampling_interval": "interval",
}
"""Metrics of a process, and the field of `Worker` that is theirs."""


class NotOurs(ValueError):
    """The text is not a metrics page of the middleware; the message says what it is, as the end of a sentence."""


@dataclass(slots=True)
class Route:
    """What is known of one route, over all workers. Counters count since the service started."""

    requests: float = 0.0
    measured: float = 0.0
    gained: float = 0.0
    lost: float = 0.0
    retained_objects: float = 0.0
    retained_bytes: float | None = None
    """None where the backend does not know."""
    leak: float | None = None
    """Objects a request leaves behind; None for a route that is not judged to leak."""
    types: dict[str, float] = field(default_factory=dict)
    """Retained objects by type; empty where the backend does not know."""


@dataclass(slots=True)
class TypeCount:
    """Objects and bytes of one type, over all workers."""

    objects: float = 0.0
    bytes: float = 0.0


@dataclass(slots=True)
class Worker:
    """One process."""

    bytes: float = 0.0
    objects: float = 0.0
    """That its last census walked."""
    pause: float = 0.0
    """Seconds for which it stood still for that."""
    age: float | None = None
    """Seconds since it last said something; None if it was the one that answered, without others."""
    records: float | None = None
    interval: float | None = None
    """One allocation in so many is recorded; None where allocations are not."""


@dataclass(slots=True)
class Reading:
    """One page."""

    routes: dict[tuple[str, str], Route]
    types: dict[str, TypeCount]
    workers: dict[str, Worker]
    """By process id; one with an empty id where the service has one process, or answers for one."""
    overhead: dict[str, float]
    """Seconds that the middleware has taken, by part."""
    faults: float
    info: dict[str, str]
    """Version, backend and census."""


def read(text: str) -> Reading:
    """The figures of a page in the text format. Raises `NotOurs` if it is none, or none of this package."""
    samples = _samples(text)
    if not samples[_INFO]:
        looks_like_metrics = "# TYPE" in text
        raise NotOurs(
            "has metrics, and none of heap_middleware among them"
            if looks_like_metrics
            else "is not a metrics page: give the URL of the middleware's /metrics"
        )
    info = dict(samples[_INFO][0].labels)
    info.pop("pid", None)
    return Reading(
        routes=_routes(samples),
        types=_types(samples),
        workers=_workers(samples),
        overhead=_by_part(samples["heap_middleware_overhead_seconds_total"]),
        faults=sum(sample.value for sample in samples["heap_middleware_faults_total"]),
        info=info,
    )


def _samples(text: str) -> "defaultdict[str, list[Sample]]":
    found: defaultdict[str, list[Sample]] = defaultdict(list)
    lines = "\n".join(line for line in text.split("\n") if line.startswith(_OURS))
    try:
        for family in text_string_to_metric_families(lines + "\n"):
            for sample in family.samples:
                if not math.isfinite(sample.value):
                    raise NotOurs(f"is not a metrics page as it should be: {sample.name} is {sample.value}")
                found[sample.name].append(sample)
    except NotOurs:
        raise
    except (ValueError, KeyError, IndexError) as error:
        raise NotOurs(f"is not a metrics page as it should be: {error}") from error
    return found


def _routes(samples: "defaultdict[str, list[Sample]]") -> dict[tuple[str, str], Route]:
    routes: defaultdict[tuple[str, str], Route] = defaultdict(Route)

    def each(name: str) -> Iterator[tuple[Route, Sample]]:
        for sample in samples[f"heap_endpoint_{name}"]:
            yield routes[sample.labels.get("method", ""), sample.labels.get("route", "")], sample

    for name, figure in _OF_ROUTES.items():
        for route, sample in each(name):
            setattr(route, figure, (getattr(route, figure) or 0.0) + sample.value)
    for route, sample in each("retained_objects_by_type"):
        module = sample.labels.get("module", "")
        route.types[module] = route.types.get(module, 0.0) + sample.value
    return dict(routes)


def _types(samples: "defaultdict[str, list[Sample]]") -> dict[str, TypeCount]:
    types: defaultdict[str, TypeCount] = defaultdict(TypeCount)
    for sample in samples["object_count"]:
        types[sample.labels.get("module", "")].objects += sample.value
    for sample in samples["heap_size_bytes"]:
        types[sample.labels.get("module", "")].bytes += sample.value
    return dict(types)


def _workers(samples: "defaultdict[str, list[Sample]]") -> dict[str, Worker]:
    workers: defaultdict[str, Worker] = defaultdict(Worker)
    for name, figure in _OF_WORKERS.items():
        for sample in samples[name]:
            setattr(workers[sample.labels.get("pid", "")], figure, sample.value)
    return dict(workers)


def _by_part(samples: Iterable[Sample]) -> dict[str, float]:
    parts: defaultdict[str, float] = defaultdict(float)
    for sample in samples:
        parts[sample.labels.get("part", "")] += sample.value
    return dict(parts)
