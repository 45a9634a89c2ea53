from dataclasses import replace

import prometheus_client
from prometheus_client import CollectorRegistry

from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.exposition import families
from heap_middleware.exposition.collector import HeapCollector
from heap_middleware.exposition.families import OwnFigures
from heap_middleware.heap.census import Census, TypeRow


class Source:
    taken = 0

    def census(self):
        self.taken += 1
        return Census((TypeRow("m.A", 2, 64),), 2, 64, "tracked", 4, 0, 0.5, 0.25)

    def totals(self):
        return {}

    def retained_types(self, census):
        return {}

    def verdicts(self):
        return []

    def own_figures(self):
        return OwnFigures("1", "none", "tracked", {"census": 0.5}, {"scrape": 1})


class FullSource(Source):
    def totals(self):
        return {Endpoint("GET", "/"): EndpointTotals(1, 1, 2, 1, 1, 64, 9, 640)}

    def retained_types(self, census):
        return {Endpoint("GET", "/"): (TypeRow("m.A", 1, 64),)}

    def verdicts(self):
        return []

    def own_figures(self):
        return replace(super().own_figures(), tracker=(5, 16))


def test_registering_takes_no_census():
    """Registering the collector costs nothing; a collection takes one census."""
    source, registry = Source(), CollectorRegistry(auto_describe=True)
    registry.register(HeapCollector(source))
    assert source.taken == 0
    assert prometheus_client.generate_latest(registry)
    assert source.taken == 1


def test_what_is_described_is_collected():
    """Every family that is announced is collected, under the same name and type."""
    described = [(family.name, family.type) for family in HeapCollector(Source()).describe()]
    assert [(family.name, family.type) for family in HeapCollector(FullSource()).collect()] == described
    assert {(family.name, family.type) for family in HeapCollector(Source()).collect()} < set(described)


def test_types_of_a_route_arrive():
    """What a route retains is shown by type."""
    registry = CollectorRegistry()
    registry.register(HeapCollector(FullSource()))
    labels = {"method": "GET", "route": "/", "module": "m.A"}
    assert registry.get_sample_value("heap_endpoint_retained_objects_by_type", labels) == 1


def test_the_figures_arrive():
    """The totals are those of the census."""
    registry = CollectorRegistry()
    registry.register(HeapCollector(Source()))
    assert registry.get_sample_value("heap_size_bytes_total") == 64
    assert registry.get_sample_value("object_count", {"module": "m.A"}) == 2
    assert registry.get_sample_value("heap_middleware_faults_total", {"part": "scrape"}) == 1


def test_a_checkout_that_was_never_installed(monkeypatch):
    """Its version is not known, and that is all."""

    def fail(name):
        raise families.PackageNotFoundError(name)

    monkeypatch.setattr(families, "version", fail)
    assert families.package_version.__wrapped__() == "unknown"


def test_what_a_worker_of_another_version_counts_is_left_out():
    """A figure that this version has no family for is not shown; the others are."""
    shown = families.own_counters({("heap_middleware_of_tomorrow", ""): 5, ("heap_worker_files_rejected", ""): 2})
    assert [family.name for family in shown] == ["heap_worker_files_rejected"]
