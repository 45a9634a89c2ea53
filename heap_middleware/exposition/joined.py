"""One page for many workers: their counters added up, and the gauges that each rendered for itself.

Both text formats of Prometheus write a gauge's samples alike, so lines that were rendered once serve in either.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.endpoints.suspects import Suspect, verdicts
from heap_middleware.endpoints.verdict import Evidence
from heap_middleware.exposition.details import Details, decode_details
from heap_middleware.exposition.families import (
    BY_TYPE,
    OwnFigures,
    age_metric,
    census_metrics,
    described,
    endpoint_metrics,
    info_metrics,
    leak_metric,
    own_counters,
    type_metrics,
)
from heap_middleware.heap.census import Census, TypeRow
from heap_middleware.workers.counters import Counters
from heap_middleware.workers.directory import Gathered

__all__ = ["JoinedMetrics", "own_part"]

_END: Final = b"# EOF\n"


def own_part(
    own: OwnFigures,
    census: Census | None,
    endpoints: Mapping[Endpoint, EndpointTotals],
    types: Mapping[Endpoint, Sequence[TypeRow]],
) -> tuple[Counters, dict[str, bytes]]:
    """What this process contributes: what it counted, and the lines of its gauges by family, with the label `pid`."""
    of_endpoints = endpoint_metrics(endpoints, [GaugeMetricFamily])
    metrics: list[Metric] = [*info_metrics(own), *of_endpoints, *type_metrics(types)]
    if census is not None:
        metrics += census_metrics(census)
    gauges = {metric.name: _lines(metric) for metric in metrics if metric.type == "gauge" and metric.samples}
    return Counters.of(endpoints, own.counted()), gauges


def _lines(gauge: Metric) -> bytes:
    labelled = Metric(gauge.name, gauge.documentation, gauge.type)
    pid = str(os.getpid())
    labelled.samples = [sample._replace(labels={**sample.labels, "pid": pid}) for sample in gauge.samples]
    _help, _type, lines = generate_latest(_Some([labelled])).split(b"\n", 2)
    return lines


class JoinedMetrics(Collector):
    """The metrics of all workers."""

    def __init__(self, gathered: Gathered) -> None:
        self._gathered = gathered

    def describe(self) -> Iterable[Metric]:
        """What `collect` yields, without samples."""
        return described(workers=True)

    def collect(self) -> Iterator[Metric]:
        """The families with their samples."""
        yield from text_string_to_metric_families(self.render_gauges(generate_latest).decode())
        yield from self.counters.collect()

    def render_gauges(self, encoder: Callable[[Collector], bytes], names: Collection[str] | None = None) -> bytes:
        """The page's part that is the workers' own, in the format of the encoder; the gauges of these names only."""
        parts = []
        for family in described():
            blocks = [
                block for snapshot in self._gathered.workers if (block := snapshot.gauges.get(family.name)) is not None
            ]
            if family.type == "gauge" and blocks and (names is None or family.name in names):
                parts.append(encoder(_Some([family])).removesuffix(_END))
                parts += blocks
        return b"".join(parts)

    def retained_by_type(self) -> dict[Endpoint, dict[str, float]]:
        """Objects that each endpoint's requests left alive in all workers, by type."""
        found: dict[Endpoint, dict[str, float]] = {}
        text = self.render_gauges(generate_latest, {BY_TYPE})
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                labels = sample.labels
                objects = found.setdefault(Endpoint(labels["method"], labels["route"]), {})
                objects[labels["module"]] = objects.get(labels["module"], 0.0) + sample.value
        return found

    def endpoints(self) -> dict[Endpoint, EndpointTotals]:
        """The sums over all workers."""
        return self._gathered.counters.endpoints()

    def verdicts(self) -> list[Suspect]:
        """The routes that leak, by what all workers say together."""
        knows_bytes = any(row.retained_bytes is not None for row in self._gathered.counters.endpoints().values())
        workers = self._gathered.workers
        leaking: dict[Endpoint, list[Evidence]] = {}
        for said in workers:
            for endpoint, evidence in said.evidence.items():
                leaking.setdefault(endpoint, []).append(evidence)
        silent = {one: [said.counters.measured(one) for said in workers if one not in said.evidence] for one in leaking}
        return verdicts(leaking, silent, knows_bytes=knows_bytes)

    def ages(self) -> list[tuple[int, float]]:
        """How old what each worker said is, in seconds, by process id."""
        now = time.monotonic()
        return [(said.process.pid, max(0.0, now - said.taken)) for said in self._gathered.workers]

    def types(self) -> dict[str, tuple[float, float]]:
        """Objects and bytes by type, in all workers."""
        found: dict[str, tuple[float, float]] = {}
        text = self.render_gauges(generate_latest, {"object_count", "heap_size_bytes"})
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                objects, size = found.get(sample.labels["module"], (0.0, 0.0))
                more = (sample.value, 0.0) if family.name == "object_count" else (0.0, sample.value)
                found[sample.labels["module"]] = objects + more[0], size + more[1]
        return found

    def details(self) -> list[Details]:
        """What each worker has to say to the report."""
        return [decode_details(said.details) for said in self._gathered.workers]

    @property
    def counters(self) -> Collector:
        """The sums over all workers, and how old what each said is."""
        counters = self._gathered.counters
        summed = endpoint_metrics(counters.endpoints(), [CounterMetricFamily])
        return _Some([*summed, leak_metric(self.verdicts()), *own_counters(counters.own), age_metric(self.ages())])


class _Some(Collector):
    """A few metrics as a registry."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return self._metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics
