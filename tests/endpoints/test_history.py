"""What each endpoint retained over time."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heap_middleware.endpoints.chronicle import Chronicle
from heap_middleware.endpoints.history import History, HistoryView, Series, joined
from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals

A, B = Endpoint("GET", "/a"), Endpoint("GET", "/b")


def row(requests, objects, size=None):
    return EndpointTotals(requests, requests, retained_objects=objects, retained_bytes=size)


def test_points_are_kept_as_they_were():
    """Times, requests, objects and bytes of each endpoint; one that comes later has its points from then on."""
    history = History(100)
    history.note(1.0, {A: row(1, 10, 100)})
    history.note(2.0, {A: row(2, 20, 200), B: row(1, 5)})
    view = history.view()
    assert view.times == [1.0, 2.0]
    assert [list(column) for column in view.series[A].columns()] == [[1, 2], [10, 20], [100, 200]]
    assert [list(column) for column in view.series[B].columns()] == [[1], [5], [0]]


def test_what_is_gone_and_had_nothing_is_forgotten():
    """A type of which nothing is left goes on with zeros, as long as one of its points says more."""
    history = History(4)
    history.note(1.0, {A: row(1, 0), B: row(2, 5)})
    history.note(2.0, {})
    assert history.series().keys() == {B}
    assert list(history.series()[B].objects) == [5, 0]


@given(st.integers(4, 40), st.integers(0, 200))
def test_it_is_bounded_and_reaches_back_to_the_start(most, points):
    """However long it goes on: at most so many points, the first and the last among them, the recent past fine."""
    history = History(most)
    for at in range(points):
        history.note(float(at), {A: row(at, at)} if at >= 10 else {})
    times = list(history.times)
    assert len(times) == min(points, most)
    assert times == sorted(times)
    if points:
        assert (times[0], times[-1]) == (0.0, points - 1)
    if points > most >= 8:
        assert times[-1] - times[-2] <= times[1] - times[0] or points < 2 * most
    if points > 10:
        series = history.series()[A]
        assert list(series.objects) == [time for time in times if time >= 10][-len(series.objects) :]


def test_the_lowest_values_outlive_their_points():
    """Between two points that are kept, how low it was is remembered: that is what tells garbage from a leak."""
    history = History(16)
    for at in range(400):
        history.note(float(at), {A: row(at, 0 if at % 50 == 0 else 1000)})
    series = history.series()[A]
    assert len(series.lowest) == len(series.objects) == 16
    assert sum(low == 0 for low in series.lowest) >= 4
    assert all(low <= value for low, value in zip(series.lowest, series.objects, strict=True))


def test_a_clock_that_is_set_back_does_no_harm():
    """Times never go back; the point is there."""
    history = History(100)
    history.note(10.0, {A: row(1, 1)})
    history.note(5.0, {A: row(2, 2)})
    assert list(history.times) == [10.0, 10.0]
    assert list(history.series()[A].requests) == [1, 2]


def test_requests_that_were_read_late_do_no_harm():
    """A count of requests that is read while another thread counts may be one behind: it never goes back."""
    history = History(10)
    for now, requests in enumerate((5, 7, 6, 8)):
        history.note(float(now), {A: row(requests, 1)})
    assert list(history.series()[A].requests) == [5, 7, 7, 8]


def test_what_is_gone_has_nothing_and_is_forgotten():
    """A type that is retained no more falls to zero, and leaves once all its points are zero."""
    history = History(4)
    history.note(1.0, {"a": row(0, 5), "b": row(0, 1)})
    history.note(2.0, {"b": row(0, 1)})
    assert list(history.series()["a"].objects) == [5, 0]
    for at in range(3, 30):
        history.note(float(at), {"b": row(0, 1)})
    assert list(history.view().series["b"].objects) == [1] * 4


def test_a_thinned_view_ends_where_the_history_does():
    """A view of few points has the last one, of the endpoints asked for."""
    history = History(100)
    for at in range(50):
        history.note(float(at), {A: row(at, at), B: row(at, at)})
    view = history.view([A, Endpoint("GET", "/unknown")], 10)
    assert set(view.series) == {A}
    assert len(view.times) <= 10
    assert view.times[-1] == 49.0
    assert list(view.series[A].objects) == view.times


def test_histories_of_workers_are_summed():
    """Each worker counts from when it began; the grid spans them all."""
    first = HistoryView([0.0, 10.0], {A: Series(*(array("d", values) for values in ([1, 2], [10, 20], [0, 0])))})
    second = HistoryView([5.0, 10.0], {A: Series(*(array("d", values) for values in ([1, 1], [5, 5], [0, 0])))})
    total = joined([first, second], 3)
    assert total.times == [0.0, 5.0, 10.0]
    assert list(total.series[A].objects) == [10, 15, 25]
    assert joined([], 3) == HistoryView([], {})
    assert joined([HistoryView([1.0], {})], 3).times == [1.0]


class TestChronicle:
    """The history of this process."""

    @pytest.fixture
    def clock(self):
        return [100.0]

    @pytest.fixture
    def chronicle(self, clock):
        served = iter(range(10, 10_000, 10))
        totals = lambda: {A: row(count := next(served), 2 * count, 100 * count)}  # noqa: E731
        return Chronicle(totals, lambda: 1.0, points=50, least=0.01, clock=lambda: clock[0])

    def test_points_that_come_too_soon_are_left_out(self, chronicle, clock):
        """A scrape storm is one point."""
        for _ in range(5):
            chronicle.note()
        clock[0] += 1
        chronicle.note()
        assert chronicle.view().times == [100.0, 101.0]

    @pytest.mark.parametrize("stale", [0, 1, 30])
    def test_scrapes_at_once_do_not_spoil_the_verdict(self, clock, stale):
        """A scrape that is overtaken while it reads the totals adds nothing: requests never go back, and all answer."""
        served, overtaking = [0], []

        def totals():
            found = {A: row(served[0], 2 * served[0])}
            if clock[0] % 3 == 0 and not overtaking:
                overtaking.append(1)
                served[0] += stale
                clock[0] += 1
                chronicle.note()
                overtaking.clear()
            return found

        chronicle = Chronicle(totals, lambda: 1.0, points=200, least=0.01, clock=lambda: clock[0])
        for _ in range(120):
            clock[0] += 1
            served[0] += 10
            chronicle.note()
            chronicle.evidence()
        requests = list(chronicle.view().series[A].requests)
        assert requests == sorted(requests)
        assert chronicle.evidence()[A].slope == pytest.approx(2, rel=0.1)

    def test_a_leak_is_found(self, chronicle, clock):
        """What leaks is in the evidence, judged once for each point."""
        for _ in range(80):
            clock[0] += 1
            chronicle.note()
        evidence = chronicle.evidence()
        assert evidence.keys() == {A}
        assert evidence[A].slope == pytest.approx(2, rel=0.1)
        assert chronicle.evidence() is evidence

    @pytest.mark.parametrize(("each", "leaks"), [(2.0, True), (0.1, False)])
    def test_without_records_measured_requests_are_judged(self, clock, each, leaks):
        """Not what is made of them for the rest; and from a fourth of an object on, below which they may be wrong."""
        served = iter(range(1000, 1_000_000, 1000))

        def totals():
            requests = next(served)
            measured = requests // 40
            return {A: EndpointTotals(requests, measured, each * measured, 0.0, 50.0 * requests)}

        chronicle = Chronicle(totals, None, points=200, least=0.01, clock=lambda: clock[0])
        for _ in range(79):
            clock[0] += 1
            chronicle.note()
        assert chronicle.evidence() == {}  # of fewer than 2,000 measured requests too little is known
        for _ in range(40):
            clock[0] += 1
            chronicle.note()
        evidence = chronicle.evidence()
        assert (A in evidence) == leaks
        if leaks:
            assert evidence[A].slope == pytest.approx(each, rel=0.01)
        assert chronicle.view().series[A].objects[-1] == 50.0 * chronicle.view().series[A].requests[-1]

    def test_losses_of_measured_requests_are_expected_among_the_others(self, clock):
        """A list that is cleared now and then loses all in one request, which may be none of the measured."""
        measured = iter(range(30, 1_000_000, 30))
        rows = lambda: {A: EndpointTotals(count := next(measured), count, 2.0 * count, 0, 0, scatter=2000.0)}  # noqa: E731
        chronicle = Chronicle(rows, None, points=200, least=0.01, clock=lambda: clock[0])
        for _ in range(120):
            clock[0] += 1
            chronicle.note()
        assert chronicle.evidence() == {}

    def test_types_have_a_history_of_their_own(self, chronicle, clock):
        """Points of types come with each census."""
        chronicle.note_types({A: {"m.T": 3.0}})
        clock[0] += 5
        chronicle.note_types({A: {"m.T": 6.0}})
        view = chronicle.types()
        assert view.times == [100.0, 105.0]
        assert list(view.series["GET", "/a", "m.T"].objects) == [3, 6]
