"""Whether a route leaks: simulated leaks and clean routes of many shapes."""

import importlib.util
import random
import sys
from array import array
from pathlib import Path

import pytest

from heap_middleware.endpoints.history import History, Series
from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.endpoints.suspects import Suspect, combined, verdicts
from heap_middleware.endpoints.trend import median_slope
from heap_middleware.endpoints.verdict import Evidence, judge

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "verdict.py"
ROUTE, OTHER = Endpoint("GET", "/a"), Endpoint("GET", "/b")


def simulation():
    spec = importlib.util.spec_from_file_location("verdict_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SIMULATION = simulation()


def named(shape):
    return shape.name


@pytest.mark.once
@pytest.mark.parametrize("shape", SIMULATION.LEAKS, ids=named)
@pytest.mark.parametrize("concurrency", [1, 32])
def test_every_leak_is_named(shape, concurrency):
    """Whatever leaks is named, and from some time on without a lapse."""
    outcome = SIMULATION.run(shape, 0, 1, concurrency)
    # Garbage between two collections may hide it for a while.
    assert outcome.for_good < 0.9 * outcome.requests


@pytest.mark.once
@pytest.mark.parametrize("shape", SIMULATION.CLEAN, ids=named)
@pytest.mark.parametrize("way", [(1, 1), (16, 32), (0, 1)], ids=str)
def test_no_clean_route_is_named(shape, way):
    """Caches, sessions, garbage, pools, imports and bursts are no leaks, once the route is warm."""
    outcome = SIMULATION.run(shape, 0, *way)
    assert [at for at in outcome.named if at > SIMULATION.WARM_UP * outcome.requests] == []


@pytest.mark.once
@pytest.mark.parametrize("hours", SIMULATION.HOURS)
def test_a_process_of_any_age_sees_a_leak_begin_and_end(hours):
    """An hour or four days after it started: named in less than two hours, with the time it began, and withdrawn."""
    found = SIMULATION.aged(hours, 0, 1)
    assert found.named < 2 * 2400  # requests, 2,400 an hour
    assert len(found.off) == 4
    assert max(found.off) < 0.2
    assert found.withdrawn < 1000


def test_there_are_as_many_shapes_as_promised():
    """At least 30 leaks and 40 clean routes, all different."""
    assert len({shape.name for shape in SIMULATION.LEAKS}) >= 30
    assert len({shape.name for shape in SIMULATION.CLEAN}) >= 40


def grown(slope, points=100, requests=10, until=None, bytes_each=100.0):
    """A history of a route that leaks, up to a number of requests."""
    history = History(300)
    rng = random.Random(1)
    for at in range(1, points + 1):
        served = at * requests
        kept = slope * min(served, until or served) + rng.randint(0, 3)
        row = EndpointTotals(served, served, kept, 0, kept, kept * bytes_each)
        history.note(1e9 + at, {ROUTE: row})
    return history


def evidence_of(history):
    return judge(history.times, history.intervals, history.series()[ROUTE], 0.01, now=history.times[-1])


def test_a_verdict_says_how_much_how_sure_and_since_when():
    """Slope, bounds, requests, bytes a day and the beginning are those of the traffic."""
    (suspect,) = verdicts({ROUTE: [evidence_of(grown(2.0))]}, knows_bytes=True)
    assert suspect.endpoint == ROUTE
    assert suspect.objects_per_request == pytest.approx(2.0, rel=0.02)
    assert suspect.lower <= 2.0 <= suspect.upper
    assert suspect.confidence == 0.99
    assert suspect.bytes_per_request == pytest.approx(200, rel=0.05)
    assert suspect.bytes_per_day == pytest.approx(200 * 10 * 86400, rel=0.1)
    assert 600 < suspect.requests <= 1000
    assert 1e9 <= suspect.since < 1e9 + 30


def test_bytes_are_those_of_the_leak():
    """A batch of large buffers that is filled and cleared beside it does not drown the leak's own bytes."""
    history = History(300)
    for at in range(1, 1001):
        served = at * 10
        kept, batch = served * 2.0, served % 400
        row = EndpointTotals(served, served, kept, 0, kept + batch, kept * 37.0 + batch * 20_000.0)
        history.note(1e9 + at, {ROUTE: row})
        if at >= 600 and at % 50 == 7:  # parts of its requests are longer than it takes to fill the batch
            found = evidence_of(history)
            assert found is not None
            assert found.bytes == pytest.approx(74, rel=0.5), at


def test_a_verdict_is_withdrawn_when_growth_stops():
    """A leak that was mended is no longer named, though what it left is still there."""
    assert evidence_of(grown(2.0, points=100)) is not None
    assert evidence_of(grown(2.0, points=200, until=1000)) is None


def test_a_verdict_is_withdrawn_soon():
    """The growth of weeks does not hide for weeks that it has ended."""
    assert evidence_of(grown(2.0, points=560)) is not None
    assert evidence_of(grown(2.0, points=560, until=5000)) is None


def test_few_points_of_many_requests_are_enough():
    """A busy route is asked for a hundred times between two points."""
    assert evidence_of(grown(2.0, requests=100)).slope == pytest.approx(2.0, rel=0.02)


def course(kept, points=100, requests=20):
    """A history by what was kept at each point."""
    history = History(points)
    for at in range(points):
        history.note(1e9 + 15 * at, {ROUTE: EndpointTotals(at * requests, at * requests, 0, 0, kept(at))})
    return history


def test_a_few_steps_are_no_leak():
    """Two or three modules that were imported while the route was asked for."""
    assert evidence_of(course(lambda at: 300 * (at // 30))) is None


def test_what_comes_up_from_a_dip_is_no_leak():
    """A cache that was emptied fills up again to where it was."""
    assert evidence_of(course(lambda at: 1000 if at < 60 else 25 * (at - 60))) is None
    assert evidence_of(course(lambda at: 0 if at < 60 else 25 * (at - 60))) is not None


@pytest.mark.parametrize(("seconds", "named"), [(15, True), (1, False)])
def test_a_burst_is_no_leak(seconds, named):
    """What a route retains of two minutes' rush is given back, or not: that is seen later. Slow growth is a leak."""
    history, now = History(400), 1e9
    for at in range(400):
        leaking = max(0, at - 300)
        served = 33 * min(at, 300) + 20 * leaking
        history.note(now, {ROUTE: EndpointTotals(served, served, 0, 0, 40.0 * leaking)})
        now += seconds if leaking else 15
    assert (evidence_of(history) is not None) is named


def test_since_is_after_the_jump_that_came_first():
    """What was imported just before the leak began is no part of it."""
    history = course(lambda at: 0 if at < 30 else 900 + 20 * (at - 30))
    assert evidence_of(history).since == pytest.approx(1e9 + 15 * 30, abs=15 * 8)


def test_less_than_the_least_is_no_leak():
    """`leak_min_objects` is the slope from which it is one."""
    history = grown(0.5)
    series = history.series()[ROUTE]
    assert judge(history.times, history.intervals, series, 0.4, now=0) is not None
    assert judge(history.times, history.intervals, series, 0.6, now=0) is None


def test_too_little_says_nothing():
    """A few requests are no evidence, of anything."""
    assert evidence_of(grown(2.0, points=5)) is None
    assert evidence_of(grown(2.0, points=100, requests=1)) is None


def test_heavy_records_need_more_growth():
    """What a few records of a coarse sampling show may be chance."""
    history = grown(2.0)
    series = history.series()[ROUTE]
    coarse = array("d", [10_000.0] * len(history.times))
    assert judge(history.times, history.intervals, series, 0.01, now=0) is not None
    assert judge(history.times, coarse, series, 0.01, now=0) is None


def test_what_was_seen_to_go_may_go_unseen():
    """Where only some requests are measured, large losses among them are expected among the others."""
    history = grown(2.0, points=250)
    series = history.series()[ROUTE]
    assert judge(history.times, history.intervals, series, 0.01, now=0, scatter=10.0) is not None
    assert judge(history.times, history.intervals, series, 0.01, now=0, scatter=3000.0) is None


def test_few_measured_requests_say_nothing():
    """What is lost in one request of many may be in none of them."""
    history = grown(2.0, points=199)
    series = history.series()[ROUTE]
    assert judge(history.times, history.intervals, series, 0.01, now=0, scatter=0.0) is None
    assert judge(history.times, history.intervals, series, 0.01, now=0) is not None


def test_an_idle_route_is_named_no_longer():
    """Nobody asks for it any more: after an hour, or as long as its evidence took, there is nothing to tell."""
    history = grown(2.0)
    series, last = history.series()[ROUTE], history.times[-1]

    def idle(seconds):
        return judge(history.times, history.intervals, series, 0.01, now=last + seconds)

    assert idle(3000) is not None
    assert idle(4000) is None


def test_since_is_when_the_leak_began():
    """Not when the process started, and it does not move while the leak goes on."""
    for readings in (400, 700, 1500):
        history = History(300)
        for at in range(300 + readings):
            kept = 500.0 + 2 * 10 * max(0, at - 300)
            history.note(1e9 + 15 * at, {ROUTE: EndpointTotals(10 * at, 10 * at, kept, 0, kept)})
        assert evidence_of(history).since == pytest.approx(1e9 + 15 * 300, abs=15 * readings * 0.05)


def evidence(slope=1.0, error=0.01, requests=1000.0, size=50.0, rate=2.0, since=5.0, served=1000.0):
    return Evidence(slope, error, requests, size, rate, since, served)


def test_workers_are_judged_together():
    """The service's slope is that of all its workers, by their requests; its bytes a day are their sum."""
    said = [evidence(1.0, requests=1000), evidence(2.0, requests=3000, since=3, served=3000)]
    suspect = combined(ROUTE, said, [], knows_bytes=True)
    assert suspect.objects_per_request == pytest.approx(1.75)
    assert suspect.requests == 4000
    assert suspect.since == 3
    assert suspect.bytes_per_day == pytest.approx(50 * 4 * 86400)


def test_one_worker_of_many_does_not_decide():
    """A route is named when those who served most of its requests say so, whatever stretch each looked at."""
    assert combined(ROUTE, [evidence(served=1000)], [3000], knows_bytes=False) is None
    assert combined(ROUTE, [evidence(served=5000)], [3000], knows_bytes=False) is not None
    assert combined(ROUTE, [evidence(requests=300)] * 7, [1000], knows_bytes=False) is not None
    assert combined(ROUTE, [], [], knows_bytes=False) is None


def test_a_worker_that_is_too_young_has_no_say():
    """Workers that were just recycled do not hide what the others know."""
    assert combined(ROUTE, [evidence(served=1000)], [200.0] * 30, knows_bytes=True) is not None
    # Where only some requests are measured, it takes longer to know something.
    assert combined(ROUTE, [evidence(served=2500)], [1500.0] * 2, knows_bytes=False) is not None
    assert combined(ROUTE, [evidence(served=2500)], [1500.0] * 2, knows_bytes=True) is None


def test_what_costs_most_comes_first():
    """By bytes a day, then by objects a request."""
    found = verdicts({ROUTE: [evidence(5.0, size=1)], OTHER: [evidence(1.0, size=100)]}, knows_bytes=True)
    assert [suspect.endpoint for suspect in found] == [OTHER, ROUTE]
    found = verdicts({ROUTE: [evidence(5.0)], OTHER: [evidence(1.0)]}, knows_bytes=False)
    assert [suspect.endpoint for suspect in found] == [ROUTE, OTHER]
    assert found[0].bytes_per_day is None


def test_a_verdict_reads_as_a_sentence():
    """What a person at night needs, in one line."""
    types = (("app.LeakObj", 100.0), ("builtins.list", 3.0))
    suspect = Suspect(ROUTE, 2.0, 1.9, 2.1, 0.99, 96.0, 5e9, 12_345, 0.0, types)
    assert str(suspect) == (
        "GET /a leaks 2 objects a request (1.9 to 2.1 at 99%, 12,345 requests), "
        "4.66 GiB a day at the present rate, mostly app.LeakObj, builtins.list"
    )
    assert str(Suspect(ROUTE, 0.02, 0.01, 0.03, 0.99, None, None, 9, 0.0)).endswith("9 requests)")
    assert "0 bytes a day" in str(Suspect(ROUTE, 1, 1, 1, 0.99, 0, 0.0, 9, 0.0))
    close = str(Suspect(ROUTE, 2.0, 1.994, 2.006, 0.99, 96.0, 1020 * 1024, 8_478, 0.0))
    assert "leaks 2 objects a request (1.99 to 2.01 at 99%, 8,478 requests), 1,020 KiB a day" in close
    large = str(Suspect(ROUTE, 1500, 1498, 1502, 0.99, 1, 1, 9, 0.0))
    assert "leaks 1,500 objects a request (1,498 to 1,502 at" in large


def rough_history(seed):
    """Points of a route with bursts, dips and collections, and the interval of sampling changing."""
    rng = random.Random(seed)
    history = History(rng.choice([14, 20, 30, 60, 300]))
    rate, rough = rng.choice([5, 20, 100, 2000]), rng.choice([0, 5, 50, 500])
    slope, burst = rng.choice([0.2, 1, 5, 20]), rng.choice([0, 0.2, 0.6])
    requests, objects, now = 0, 0.0, 1e9
    for _ in range(rng.choice([20, 60, 200])):
        rushing = rng.random() <= burst
        quiet = 0 if rushing and rng.random() < 0.8 else rate * rng.choice([5, 30])
        served = quiet if rushing else int(rng.expovariate(1 / rate))
        requests += served
        objects += slope * served * rng.random() * 2
        if rng.random() < 0.02:
            objects *= rng.random()
        now += rng.choice([1, 15, 15, 300])
        seen = max(0.0, objects + rng.gauss(0, rough) - (rng.random() < 0.1) * rough * 10)
        history.note(now, {ROUTE: EndpointTotals(requests, requests, 0, 0, seen)}, rng.choice([1, 1, 1, 16]))
        yield history


@pytest.mark.once
@pytest.mark.parametrize("hundred", range(10))
def test_any_history_is_judged(hundred):
    """Whatever the points: nothing is raised, and what is said can be so."""
    named = 0
    for seed in range(hundred * 100, hundred * 100 + 100):
        for history in rough_history(seed):
            found = evidence_of(history)
            if found is not None:
                named += 1
                assert history.times[0] <= found.since <= history.times[-1]
                assert 0 < found.error < found.slope
                assert 0 < found.requests <= found.served
    assert named > 0


def test_a_series_of_one_point_is_judged():
    """Nothing breaks on what has just begun."""
    assert judge([1.0], [1.0], Series(*(array("d", [1]) for _ in range(4))), 0.01, now=1.0) is None


def test_points_at_the_same_number_of_requests_say_nothing_of_a_slope():
    """Nothing was asked between them: what changed then was nobody's doing."""
    assert median_slope([1, 1, 2, 3], [0, 0, 2, 4]) == 2
