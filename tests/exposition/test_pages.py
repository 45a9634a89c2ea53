import gzip

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.exposition.collector import HeapCollector
from heap_middleware.exposition.families import OwnFigures
from heap_middleware.exposition.pages import MetricsPage
from heap_middleware.exposition.requests import PageRequest
from heap_middleware.heap.census import Census, TypeRow

HOSTILE = 'm.a"b\\c\nd'


class Source:
    taken = 0

    def census(self):
        self.taken += 1
        return Census((TypeRow(HOSTILE, 2.6, 64), TypeRow("é.X", 1, 8)), 3.6, 72, "tracked", 4, 0, 0.5, 0.25)

    def totals(self):
        return {Endpoint("GET", '/"x"\n'): EndpointTotals(4, 2, 6.0, 2.0, 8.0)}

    def retained_types(self, census):
        return {}

    def verdicts(self):
        return []

    def own_figures(self):
        return OwnFigures("1", "windows", "tracked", {"request": 0.5}, {"scrape": 1})


@pytest.fixture
def page():
    return MetricsPage("/metrics", HeapCollector(Source()))


def samples(families):
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def get(page, **fields):
    return page.respond(PageRequest("GET", "/metrics", **fields))


@pytest.mark.parametrize(
    ("accept", "parse", "begins"),
    [
        ("", parse_text, "text/plain; version=0.0.4"),
        (
            "application/openmetrics-text; version=1.0.0",
            parse_openmetrics,
            "application/openmetrics-text; version=1.0.0",
        ),
    ],
)
def test_both_formats_parse_back(page, accept, parse, begins):
    """Text and OpenMetrics are chosen by Accept, and hostile labels come back exactly."""
    answer = get(page, accept=accept)
    assert answer.status == 200
    assert dict(answer.headers)["Content-Type"].startswith(begins)
    text = answer.body.decode()
    if parse is parse_openmetrics:  # the article's gauge name ends in _total, which that strict parser refuses
        text = "\n".join(line for line in text.split("\n") if "heap_size_bytes_total" not in line)
    found = samples(parse(text))
    assert found["object_count", HOSTILE] == 3
    assert found["heap_endpoint_requests_total", '/"x"\n', "GET"] == 4
    assert found["heap_endpoint_retained_objects", '/"x"\n', "GET"] == 8


def test_gzip(page):
    """A scraper that takes gzip gets gzip of the same text."""
    answer = get(page, accept_encoding="gzip")
    assert dict(answer.headers)["Content-Encoding"] == "gzip"
    assert gzip.decompress(answer.body) == get(page).body


@pytest.mark.parametrize("registry", [None, prometheus_client.CollectorRegistry()])
def test_a_name_filter(registry):
    """name[] gives me only the metrics I name."""
    page = MetricsPage("/metrics", HeapCollector(Source()), registry)
    families = parse_text(get(page, query="name[]=object_count").body.decode())
    assert [family.name for family in families] == ["object_count"]


def test_methods(page):
    """HEAD is answered, anything else is 405 and says what is allowed."""
    assert page.respond(PageRequest("HEAD", "/metrics")).status == 200
    answer = page.respond(PageRequest("POST", "/metrics"))
    assert (answer.status, dict(answer.headers)["Allow"]) == (405, "GET, HEAD")


def test_paths(page):
    """/metrics and /metrics/ are ours, nothing else; without a path nothing is."""
    assert page.paths == {"/metrics", "/metrics/"}
    assert MetricsPage(None, HeapCollector(Source())).paths == set()


def test_the_default_registry_comes_along_without_duplicates():
    """With registry=REGISTRY I get process and gc metrics, and a HeapCollector registered there shows once."""
    collector = HeapCollector(Source())
    prometheus_client.REGISTRY.register(collector)
    try:
        text = get(MetricsPage("/metrics", collector, prometheus_client.REGISTRY)).body.decode()
    finally:
        prometheus_client.REGISTRY.unregister(collector)
    assert "python_gc_objects_collected_total" in text
    assert "process_resident_memory_bytes" in text
    assert text.count("# TYPE object_count ") == 1


HEADER = st.one_of(
    st.text(),
    st.text().map("application/openmetrics-text; version={}".format),
    st.text().map("text/plain; version=1.0.0; escaping={}".format),
    st.just("a," * 5000),
)


@given(HEADER, HEADER, st.one_of(st.text(), st.just("a=1&" * 5000), st.just("name[]=x&" * 1001)))
def test_hostile_scrapes(accept, encoding, query):
    """No header and no query string makes a scrape fail with an exception or a 5xx."""
    answer = get(MetricsPage("/m", HeapCollector(Source())), accept=accept, accept_encoding=encoding, query=query)
    assert answer.status == 200 or 400 <= answer.status < 500
    assert all(value.isascii() and value.isprintable() for _, value in answer.headers)


@pytest.mark.parametrize("version", ["x", "1.0.0é", "1.²", "\u0661.0.0"])
def test_a_version_that_is_none(page, version):
    """An Accept with a broken version gets an answer."""
    assert get(page, accept=f"application/openmetrics-text; version={version}").status == 200


@pytest.mark.parametrize("query", ["name[]=x&" * 1001, "&".join(f"name[]=x{n}" for n in range(1001))])
def test_too_many_names(page, query):
    """A filter of more than a thousand names is refused with 400."""
    assert get(page, query=query).status == 400


def test_a_failing_collector_of_mine_costs_its_own_metrics_only():
    """If a collector in my registry raises, the heap metrics are served, and the fault is reported."""

    class Broken(Collector):
        def describe(self):
            return []

        def collect(self):
            raise RuntimeError("mine")

    registry, faults = prometheus_client.CollectorRegistry(), []
    registry.register(Broken())
    page = MetricsPage("/metrics", HeapCollector(Source()), registry, fault=lambda: faults.append(1))
    answer = page.respond(PageRequest("GET", "/metrics"))
    assert answer.status == 200
    assert b"object_count" in answer.body
    assert faults == [1]
