"""What several workers say together about what leaks."""

import json
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from heap_middleware.endpoints.history import HistoryView, Series
from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.endpoints.sites import OTHER_SITE, Site
from heap_middleware.endpoints.verdict import Evidence
from heap_middleware.exposition.details import Details, decode_details, encode_details, largest, merged_sites
from heap_middleware.exposition.joined import JoinedMetrics
from heap_middleware.workers.counters import Counters
from heap_middleware.workers.directory import Gathered
from heap_middleware.workers.processes import Process
from heap_middleware.workers.snapshot import Snapshot, decode, encode

MASTER = Process(1, "noon", "here")
ROUTE, OTHER = Endpoint("GET", "/leak"), Endpoint("GET", "/b")
LEAKS = Evidence(3.0, 0.01, 900.0, 96.0, 2.0, 1e9, served=1000.0)


def worker(pid, requests, evidence=None, details=b""):
    totals = {ROUTE: EndpointTotals(requests, requests, 10, 0, 10, 320.0, 20, 640.0)}
    counters = Counters.of(totals, {})
    found = {} if evidence is None else {ROUTE: evidence}
    snapshot = Snapshot(MASTER, Process(pid, "x", "here"), 1.0, counters, evidence=found, details=details)
    return decode(encode(snapshot))


def joined(*workers):
    counters = Counters()
    for said in workers:
        counters.add(said.counters)
    return JoinedMetrics(Gathered(counters, list(workers)))


def test_the_verdict_is_that_of_the_service():
    """One series for all workers, without a pid: the slope of those that find the leak, by their requests."""
    page = joined(worker(2, 1000, LEAKS), worker(3, 3000, LEAKS._replace(slope=2.0, served=3000.0)), worker(4, 450))
    (suspect,) = page.verdicts()
    assert suspect.objects_per_request == pytest.approx(2.25)
    assert suspect.requests == 1800
    text = generate_latest(page).decode()
    assert f'heap_endpoint_leak_objects_per_request{{method="GET",route="/leak"}} {suspect.objects_per_request}' in text


def test_one_worker_among_many_that_saw_no_growth_does_not_decide():
    """Workers that served more of the route and saw it stay flat outweigh one that did not."""
    page = joined(worker(2, 1000, LEAKS), worker(3, 5000), worker(4, 5000))
    assert page.verdicts() == []
    assert "heap_endpoint_leak_objects_per_request{" not in generate_latest(page).decode()


def test_details_arrive_as_they_were():
    """History, types and lines of a worker, through its file."""
    series = Series(*(array("d", values) for values in ([1, 2], [10, 20], [0, 5])))
    types = Series(*(array("d", values) for values in ([0], [7], [70])))
    details = Details(
        HistoryView([1.0, 2.5], {ROUTE: series}),
        HistoryView([2.0], {("GET", "/leak", "m.T"): types}),
        {ROUTE: (Site("app.py:1 f", "json.py:2 g", 5.0, 50.0),)},
    )
    (read,) = joined(worker(2, 5, details=encode_details(details))).details()
    assert read.history.times == [1.0, 2.5]
    assert [list(column) for column in read.history.series[ROUTE].columns()] == [[1, 2], [10, 20], [0, 5]]
    assert list(read.types.series["GET", "/leak", "m.T"].objects) == [7]
    assert read.sites[ROUTE] == [Site("app.py:1 f", "json.py:2 g", 5.0, 50.0)]
    assert joined(worker(2, 5)).details() == [Details()]


@settings(max_examples=50)
@given(
    st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_details_that_are_none_are_empty(found):
    """Whatever another version wrote there: the report shows less, and does not fail."""
    assert decode_details(json.dumps(found).encode()) == Details()
    assert decode_details(b"{") == Details()
    whole = json.loads(encode_details(Details()))
    for part in whole:
        assert decode_details(json.dumps({**whole, part: [["x"]]}).encode()) == Details()
    longer = {**whole, "history": {"times": [], "series": [[["GET", "/"], [1], [1], [1]]]}}
    assert decode_details(json.dumps(longer).encode()) == Details()


def test_lines_of_workers_are_summed():
    """The same line in two workers is one, the rest comes last."""
    one = {ROUTE: (Site("a", "b", 5, 50), Site(OTHER_SITE, OTHER_SITE, 90, 900))}
    two = {ROUTE: (Site("c", "c", 7, 70), Site("a", "b", 4, 40)), OTHER: ()}
    assert merged_sites([one, two]) == {
        ROUTE: (Site("a", "b", 9, 90), Site("c", "c", 7, 70), Site(OTHER_SITE, OTHER_SITE, 90, 900)),
        OTHER: (),
    }


def test_the_largest_routes_are_those_that_retain_most():
    """Only so many have details."""
    totals = {Endpoint("GET", f"/{n}"): EndpointTotals(retained_objects=float(n)) for n in range(50)}
    assert largest(totals, 2) == [Endpoint("GET", "/49"), Endpoint("GET", "/48")]
