"""All heap metrics, of this process or of all workers of its service, for a `prometheus_client` registry."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.endpoints.suspects import Suspect
from heap_middleware.exposition.families import (
    OwnFigures,
    census_metrics,
    described,
    endpoint_metrics,
    info_metrics,
    leak_metric,
    own_counters,
    type_metrics,
)
from heap_middleware.exposition.joined import JoinedMetrics
from heap_middleware.heap.census import Census, TypeRow
from heap_middleware.workers.directory import Gathered

__all__ = ["HeapCollector", "Source"]


class Source(Protocol):
    """Where the figures of this process come from; `HeapMonitor` is one."""

    def census(self) -> Census: ...

    def totals(self) -> Mapping[Endpoint, EndpointTotals]: ...

    def retained_types(self, census: Census) -> Mapping[Endpoint, Sequence[TypeRow]]: ...

    def verdicts(self) -> Sequence[Suspect]: ...

    def own_figures(self) -> OwnFigures: ...


class HeapCollector(Collector):
    """A `prometheus_client` collector of all heap metrics, for people who serve a registry of their own.

    `REGISTRY.register(monitor.collector())`; each collection takes a census, or shares a recent one.
    """

    def __init__(self, source: Source, gather: Callable[[], Gathered] | None = None) -> None:
        self._source = source
        self._gather = gather

    def describe(self) -> Iterable[Metric]:
        """The families without samples, so that registering does not take a census."""
        return described(workers=self._gather is not None)

    def joined(self) -> JoinedMetrics | None:
        """What all workers know; None where this process answers for itself."""
        return None if self._gather is None else JoinedMetrics(self._gather())

    def collect(self) -> Iterator[Metric]:
        """The families with their samples."""
        joined = self.joined()
        if joined is not None:
            yield from joined.collect()
            return
        source = self._source
        census = source.census()
        yield from census_metrics(census)
        yield from endpoint_metrics(source.totals())
        yield from type_metrics(source.retained_types(census))
        yield leak_metric(source.verdicts())
        own = source.own_figures()
        yield from info_metrics(own)
        yield from own_counters(own.counted())
