"""The metric families: their names, and how figures of the census, the endpoints and our own become samples."""

import platform
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.endpoints.suspects import Suspect
from heap_middleware.heap.census import Census, TypeRow

__all__ = [
    "BY_TYPE",
    "OwnFigures",
    "age_metric",
    "census_metrics",
    "described",
    "endpoint_metrics",
    "info_metrics",
    "leak_metric",
    "own_counters",
    "package_version",
    "type_metrics",
]

_ENDPOINT: Final = ("method", "route")
BY_TYPE: Final = "heap_endpoint_retained_objects_by_type"


@dataclass(frozen=True, slots=True)
class OwnFigures:
    """The middleware about itself: seconds and faults by part, and what runs."""

    version: str
    backend: str
    census: str
    """Its kind."""
    overhead: Mapping[str, float]
    faults: Mapping[str, int]
    tracker: tuple[int, int] | None = None
    """Live records, and one allocation in how many is recorded; None where requests are not followed."""
    rejected: int | None = None
    """Files of other workers that could not be used; None without other workers."""

    def counted(self) -> dict[tuple[str, str], float]:
        """What only grows, by metric family and part."""
        return {
            **{("heap_middleware_overhead_seconds", part): seconds for part, seconds in self.overhead.items()},
            **{("heap_middleware_faults", part): count for part, count in self.faults.items()},
            **({} if self.rejected is None else {("heap_worker_files_rejected", ""): self.rejected}),
        }


@cache  # reading a package's metadata makes hundreds of objects
def package_version() -> str:
    """The version that is installed."""
    try:
        return version("heap_middleware")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"


def described(*, workers: bool = False) -> list[Metric]:
    """All families, without samples; with those that there are only where `workers` answer for each other."""
    return [
        *_census_families(),
        *(kind(name, documentation, labels=_ENDPOINT) for _, kind, name, documentation in _OF_ENDPOINTS),
        _type_family(),
        _leak_family(),
        _info_family(),
        *_tracker_families(),
        *_own_families(),
        *(_worker_families() if workers else []),
    ]


def _census_families() -> list[GaugeMetricFamily]:
    return [
        # The first three are the article's: they break today's naming rules, and the queries written against them
        # must go on working.
        GaugeMetricFamily("heap_size_bytes_total", "Bytes of all counted objects."),
        GaugeMetricFamily("heap_size_bytes", "Bytes by type, the instances' sizes.", labels=["module"]),
        GaugeMetricFamily("object_count", "Objects by type.", labels=["module"]),
        GaugeMetricFamily("heap_census_duration_seconds", "Time the last census took."),
        GaugeMetricFamily("heap_census_pause_seconds", "Time the application stood still for the last census."),
        GaugeMetricFamily("heap_census_objects", "Objects that the last census walked."),
    ]


def census_metrics(census: Census) -> Sequence[Metric]:
    """What is on the heap."""
    total, size, count, duration, pause, walked = families = _census_families()
    total.add_metric([], census.bytes)
    for row in census.rows:
        size.add_metric([row.module], row.bytes)
        # Shares of objects add up to whole ones only over many; a fraction of an object would puzzle a reader.
        count.add_metric([row.module], round(row.objects))
    duration.add_metric([], census.duration)
    pause.add_metric([], census.pause)
    walked.add_metric([], census.walked)
    return families


_OF_ENDPOINTS: Final = (
    ("requests", CounterMetricFamily, "heap_endpoint_requests", "Requests served."),
    (
        "measured",
        CounterMetricFamily,
        "heap_endpoint_measured_requests",
        "Requests whose change of the heap could be measured.",
    ),
    (
        "gained",
        CounterMetricFamily,
        "heap_endpoint_objects_gained",
        "Memory blocks that measured requests left alive, summed.",
    ),
    (
        "lost",
        CounterMetricFamily,
        "heap_endpoint_objects_lost",
        "Memory blocks that measured requests gave back, summed.",
    ),
    (
        "retained_objects",
        GaugeMetricFamily,
        "heap_endpoint_retained_objects",
        "Memory blocks attributed to the route and alive.",
    ),
    ("retained_bytes", GaugeMetricFamily, "heap_endpoint_retained_bytes", "Bytes attributed to the route and alive."),
    (
        "allocated_objects",
        CounterMetricFamily,
        "heap_endpoint_allocated_objects",
        "Memory blocks allocated while serving the route.",
    ),
    (
        "allocated_bytes",
        CounterMetricFamily,
        "heap_endpoint_allocated_bytes",
        "Bytes allocated while serving the route.",
    ),
)
"""A field of `EndpointTotals`, and the family that shows it."""


_BYTEWISE: Final = ("retained_bytes", "allocated_objects", "allocated_bytes")
"""What not every backend knows; where none does, the page does not mention it."""


def endpoint_metrics(
    endpoints: Mapping[Endpoint, EndpointTotals], kinds: Container[type] = (CounterMetricFamily, GaugeMetricFamily)
) -> Sequence[Metric]:
    """What is known of each endpoint, as families of these kinds."""
    rows = [(list(endpoint), totals) for endpoint, totals in sorted(endpoints.items())]
    families: list[Metric] = []
    for field, kind, name, documentation in _OF_ENDPOINTS:
        if kind in kinds:
            family = kind(name, documentation, labels=_ENDPOINT)
            for labels, totals in rows:
                if (value := getattr(totals, field)) is not None:
                    family.add_metric(labels, value)
            if family.samples or field not in _BYTEWISE:
                families.append(family)
    return families


def _type_family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        BY_TYPE,
        "Memory blocks attributed to the route and alive, by type.",
        labels=[*_ENDPOINT, "module"],
    )


def _leak_family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "heap_endpoint_leak_objects_per_request",
        "Objects a request leaves alive, of routes judged to leak; of all workers together.",
        labels=_ENDPOINT,
    )


def leak_metric(suspects: Iterable[Suspect]) -> Metric:
    """The slope of each route that is said to leak."""
    family = _leak_family()
    for suspect in sorted(suspects, key=lambda suspect: suspect.endpoint):
        family.add_metric(list(suspect.endpoint), suspect.objects_per_request)
    return family


def type_metrics(types: Mapping[Endpoint, Sequence[TypeRow]]) -> Sequence[Metric]:
    """What each endpoint's requests left alive, by type."""
    family = _type_family()
    for endpoint, rows in sorted(types.items()):
        for row in rows:
            family.add_metric([*endpoint, row.module], row.objects)
    return [family] if types else []


def _own_families() -> list[Metric]:
    return [
        CounterMetricFamily("heap_middleware_overhead_seconds", "Own time of the middleware.", labels=["part"]),
        CounterMetricFamily("heap_middleware_faults", "Faults of the middleware itself, see its log.", labels=["part"]),
    ]


def own_counters(counted: Mapping[tuple[str, str], float]) -> list[Metric]:
    """Own time and faults, as `OwnFigures.counted` gives them, and files of workers where there are any."""
    families = {family.name: family for family in [*_own_families(), _rejected_family()]}
    for (name, part), amount in counted.items():
        if name in families:
            families[name].add_metric([part] if part else [], amount)  # type: ignore[attr-defined]
    return [family for family in families.values() if family.samples]


def _info_family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "heap_middleware_info", "What runs; always 1.", labels=["version", "backend", "census", "python"]
    )


def info_metrics(own: OwnFigures) -> list[Metric]:
    """What runs, and the state of the tracker."""
    info = _info_family()
    info.add_metric([own.version, own.backend, own.census, platform.python_version()], 1)
    if own.tracker is None:
        return [info]
    tracked = _tracker_families()
    for family, value in zip(tracked, own.tracker, strict=True):
        family.add_metric([], value)
    return [info, *tracked]


def _tracker_families() -> list[GaugeMetricFamily]:
    return [
        GaugeMetricFamily("heap_tracker_records", "Live records of the tracker."),
        GaugeMetricFamily("heap_tracker_sampling_interval", "One allocation in so many is recorded."),
    ]


def _worker_families() -> list[Metric]:
    return [_rejected_family(), _age_family()]


def _rejected_family() -> CounterMetricFamily:
    help_text = "Files of workers, or their directory, that could not be used: each fault once, see the log."
    return CounterMetricFamily("heap_worker_files_rejected", help_text)


def _age_family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "heap_worker_snapshot_age_seconds", "How old what is shown of a worker is.", labels=["pid"]
    )


def age_metric(ages: Iterable[tuple[int, float]]) -> Metric:
    """How old what each worker said is, by process id."""
    family = _age_family()
    for pid, seconds in ages:
        family.add_metric([str(pid)], seconds)
    return family
