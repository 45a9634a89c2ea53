"""The metrics: what the census, the ledger and the middleware itself know, as families of `prometheus_client`."""

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.heap.census import Census, TypeRow

__all__ = ["HeapCollector", "OwnFigures", "Source"]

_ENDPOINT = ("method", "route")


@dataclass(frozen=True, slots=True)
class OwnFigures:
    """The middleware about itself: seconds and faults by part, and what runs."""

    version: str
    backend: str
    overhead: Mapping[str, float]
    faults: Mapping[str, int]
    tracker: tuple[int, int] | None = None
    """Live records, and one allocation in how many is recorded; None where requests are not followed."""


class Source(Protocol):
    """Where the figures come from; `HeapMonitor` is one."""

    def census(self) -> Census: ...

    def endpoints(self) -> Mapping[Endpoint, EndpointTotals]: ...

    def retained_types(self, census: Census) -> Mapping[Endpoint, Sequence[TypeRow]]: ...

    def own_figures(self) -> OwnFigures: ...


class HeapCollector(Collector):
    """A `prometheus_client` collector of all heap metrics, for people who serve a registry of their own.

    `REGISTRY.register(HeapCollector(monitor))`; each collection takes a census, or shares a recent one.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """The families without samples, so that registering does not take a census."""
        return [
            *_census_families(),
            *_endpoint_families(),
            *_byte_families(),
            _type_family(),
            *_own_families(),
            *_tracker_families(),
        ]

    def collect(self) -> Iterator[Metric]:
        """The families with their samples."""
        census = self._source.census()
        yield from _census_metrics(census)
        yield from _endpoint_metrics(self._source.endpoints())
        yield from _type_metrics(self._source.retained_types(census))
        yield from _own_metrics(self._source.own_figures(), census)


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


def _census_metrics(census: Census) -> Iterable[Metric]:
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


def _endpoint_families() -> list[Metric]:
    return [
        CounterMetricFamily("heap_endpoint_requests", "Requests served.", labels=_ENDPOINT),
        CounterMetricFamily(
            "heap_endpoint_measured_requests", "Requests whose change of the heap could be measured.", labels=_ENDPOINT
        ),
        CounterMetricFamily(
            "heap_endpoint_objects_gained", "Memory blocks that measured requests left alive, summed.", labels=_ENDPOINT
        ),
        CounterMetricFamily(
            "heap_endpoint_objects_lost", "Memory blocks that measured requests gave back, summed.", labels=_ENDPOINT
        ),
        GaugeMetricFamily(
            "heap_endpoint_retained_objects", "Memory blocks attributed to the route and alive.", labels=_ENDPOINT
        ),
    ]


def _byte_families() -> list[Metric]:
    return [
        GaugeMetricFamily("heap_endpoint_retained_bytes", "Bytes attributed to the route and alive.", labels=_ENDPOINT),
        CounterMetricFamily(
            "heap_endpoint_allocated_objects", "Memory blocks allocated while serving the route.", labels=_ENDPOINT
        ),
        CounterMetricFamily(
            "heap_endpoint_allocated_bytes", "Bytes allocated while serving the route.", labels=_ENDPOINT
        ),
    ]


def _endpoint_metrics(endpoints: Mapping[Endpoint, EndpointTotals]) -> Iterable[Metric]:
    families = _endpoint_families()
    for endpoint, totals in sorted(endpoints.items()):
        values = (totals.requests, totals.measured, totals.gained, totals.lost, totals.retained_objects)
        for family, value in zip(families, values, strict=True):
            family.add_metric(list(endpoint), value)  # type: ignore[attr-defined]
    if all(totals.retained_bytes is None for totals in endpoints.values()):
        return families
    bytewise = _byte_families()
    for endpoint, totals in sorted(endpoints.items()):
        known = (totals.retained_bytes, totals.allocated_objects, totals.allocated_bytes)
        for family, amount in zip(bytewise, known, strict=True):
            if amount is not None:
                family.add_metric(list(endpoint), amount)  # type: ignore[attr-defined]
    return [*families, *bytewise]


def _type_family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "heap_endpoint_retained_objects_by_type",
        "Memory blocks attributed to the route and alive, by type.",
        labels=[*_ENDPOINT, "module"],
    )


def _type_metrics(types: Mapping[Endpoint, Sequence[TypeRow]]) -> Iterable[Metric]:
    family = _type_family()
    for endpoint, rows in sorted(types.items()):
        for row in rows:
            family.add_metric([*endpoint, row.module], row.objects)
    return [family] if types else []


def _own_families() -> list[Metric]:
    return [
        CounterMetricFamily("heap_middleware_overhead_seconds", "Own time of the middleware.", labels=["part"]),
        CounterMetricFamily("heap_middleware_faults", "Faults of the middleware itself, see its log.", labels=["part"]),
        GaugeMetricFamily(
            "heap_middleware_info", "What runs; always 1.", labels=["version", "backend", "census", "python"]
        ),
    ]


def _own_metrics(own: OwnFigures, census: Census) -> Iterable[Metric]:
    overhead, faults, info = families = _own_families()
    for part, seconds in own.overhead.items():
        overhead.add_metric([part], seconds)  # type: ignore[attr-defined]
    for part, count in own.faults.items():
        faults.add_metric([part], count)  # type: ignore[attr-defined]
    labels = [own.version, own.backend, census.kind, platform.python_version()]
    info.add_metric(labels, 1)  # type: ignore[attr-defined]
    if own.tracker is None:
        return families
    tracked = _tracker_families()
    for family, value in zip(tracked, own.tracker, strict=True):
        family.add_metric([], value)
    return [*families, *tracked]


def _tracker_families() -> list[GaugeMetricFamily]:
    return [
        GaugeMetricFamily("heap_tracker_records", "Live records of the tracker."),
        GaugeMetricFamily("heap_tracker_sampling_interval", "One allocation in so many is recorded."),
    ]
