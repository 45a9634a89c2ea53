import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heap_middleware.endpoints.ledger import OTHER_ROUTE, UNMATCHED, Endpoint, EndpointTotals, Ledger


@given(st.lists(st.integers(-1000, 1000)), st.integers(0, 20))
def test_the_sums_add_up(changes, unmeasured):
    """Gained minus lost is the sum of the changes, and counters only grow."""
    ledger = Ledger()
    endpoint = Endpoint("GET", "/")
    before = (0.0, 0.0)
    for change in changes:
        assert ledger.count("GET", "/") == endpoint
        ledger.measure(endpoint, change)
        totals = ledger.snapshot()[endpoint]
        assert totals.gained >= before[0]
        assert totals.lost >= before[1]
        before = totals.gained, totals.lost
    for _ in range(unmeasured):
        ledger.count("GET", "/")
    totals = ledger.snapshot().get(endpoint, EndpointTotals())
    assert totals.gained - totals.lost == sum(changes)
    assert totals.requests == len(changes) + unmeasured


@given(st.integers(-50, 50), st.lists(st.booleans(), min_size=1, max_size=200))
def test_retained_is_what_every_request_left(change, which):
    """If every request leaves as much as the measured ones, retained is that times all requests."""
    ledger = Ledger()
    for measured in [True, *which]:
        endpoint = ledger.count("GET", "/")
        if measured:
            ledger.measure(endpoint, change)
    totals = ledger.snapshot()[endpoint]
    assert totals.retained_objects == pytest.approx(change * totals.requests)


def test_a_start_is_not_carried_on():
    """What the first requests of a clean route left does not make it seem to grow later."""
    ledger = Ledger()
    levels = []
    for number in range(5_000):
        endpoint = ledger.count("GET", "/")
        if number % 10 == 0:
            ledger.measure(endpoint, 100 if number < 30 else 0)
        if number >= 3_000:
            levels.append(ledger.snapshot()[endpoint].retained_objects)
    assert max(levels) - min(levels) < 10


def test_lone_surrogates_can_be_shown():
    """A route that is no proper text is shown escaped."""
    ledger = Ledger()
    assert ledger.count("GET", "/r\ud800") == ledger.count("GET", "/r\ud800") == Endpoint("GET", "/r\\ud800")


def test_routes_beyond_the_limit_are_summed():
    """After max_routes, new routes are counted as __other__; known ones keep their own."""
    ledger = Ledger(max_routes=2)
    assert [ledger.count("GET", r).route for r in ("/a", "/b", "/c", "/a")] == ["/a", "/b", OTHER_ROUTE, "/a"]
    assert ledger.count("POST", "/a") == Endpoint("POST", "/a")


def test_labels_are_bounded():
    """Excluded routes are not recorded, odd methods are OTHER, what matched nothing is __unmatched__."""
    ledger = Ledger(exclude_routes=["^/health"])
    assert ledger.count("GET", "/healthz") is None
    assert ledger.count("GET", "/healthz") is None
    assert ledger.count("BREW", None) == Endpoint("OTHER", UNMATCHED)
    assert set(ledger.snapshot()) == {Endpoint("OTHER", UNMATCHED)}


def test_random_methods_and_routes_stay_bounded():
    """An attacker's methods and routes cannot grow the number of series."""
    ledger, rng = Ledger(max_routes=5), random.Random(1)
    for _ in range(10_000):
        ledger.count(rng.choice(["GET", rng.randbytes(4).hex()]), rng.randbytes(8).hex())
    snapshot = ledger.snapshot()
    assert len(snapshot) <= 12
    assert sum(t.requests for t in snapshot.values()) == 10_000
    assert len(ledger._memo) <= 4096


def test_a_snapshot_is_a_copy():
    """What I do with a snapshot does not change the totals."""
    ledger = Ledger()
    endpoint = ledger.count("GET", "/")
    ledger.snapshot()[endpoint].requests = 99
    assert ledger.snapshot()[endpoint].requests == 1


def test_threads_lose_nothing():
    """Requests of eight threads are all counted."""
    ledger = Ledger()

    def work():
        for _ in range(2000):
            endpoint = ledger.count("GET", "/")
            ledger.measure(endpoint, 1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    totals = ledger.snapshot()[Endpoint("GET", "/")]
    assert (totals.requests, totals.measured, totals.gained) == (16_000, 16_000, 16_000)
