"""What `top` says of two readings."""

import pytest

from heap_middleware.cli.comparison import compare, restarted
from heap_middleware.cli.reading import Reading, Route, TypeCount

pytestmark = pytest.mark.one_python


def reading(routes=None, types=None, **overhead):
    return Reading(routes or {}, types or {}, {}, overhead, 0.0, {})


def route(requests, kept, measured=None, leak=None):
    return Route(requests, requests if measured is None else measured, kept + 10.0, 10.0, kept, leak=leak)


A, B = ("GET", "/a"), ("GET", "/b")


def test_what_was_kept_is_counted_since_the_earlier_reading():
    """What a service's start left behind is not in the figure of the requests since."""
    found = compare(reading({A: route(10, 500)}), reading({A: route(110, 700)}), 20.0)
    assert found.routes[0].objects_per_request == 2.0
    assert found.routes[0].requests_per_second == 5.0
    assert found.routes[0].retained_grown == 200.0


def test_without_requests_since_it_is_that_of_all():
    """A route that nobody asked for since the earlier reading shows its mean so far, one never measured none."""
    same = reading({A: route(10, 500), B: route(3, 0, measured=0)})
    rows = {row.route: row for row in compare(same, same, 5.0).routes}
    assert rows["/a"].objects_per_request == 50.0
    assert rows["/a"].requests_per_second == 0.0
    assert rows["/b"].objects_per_request is None


def test_a_verdict_comes_before_growth():
    """The route judged to leak is first, however much another has grown; then those that grew."""
    now = reading({A: route(100, 1000), B: route(100, 100, leak=1.0), ("GET", "/c"): route(100, 500)})
    assert [row.route for row in compare(reading(), now, 5.0).routes] == ["/b", "/a", "/c"]


@pytest.mark.parametrize(("sort", "first"), [("retained", "/a"), ("requests", "/b")])
def test_sorting(sort, first):
    """Routes are sorted by what was asked for, most first."""
    now = reading({A: route(1, 1000), B: route(100, 100, leak=1.0)})
    assert compare(now, now, 5.0, sort).routes[0].route == first


def test_types_by_growth():
    """Types that grew most come first; a new one has grown by all it has."""
    first = reading(types={"a.A": TypeCount(100, 1), "b.B": TypeCount(10, 1)})
    now = reading(types={"a.A": TypeCount(101, 2), "b.B": TypeCount(5, 1), "c.C": TypeCount(7, 9)})
    assert [(row.module, row.objects_grown) for row in compare(first, now, 5.0).types] == [
        ("c.C", 7),
        ("a.A", 1),
        ("b.B", -5),
    ]


def test_own_time_is_a_share_since_the_earlier_reading():
    """The middleware's own time is told by part, as a share of a core."""
    assert compare(reading(census=1.0), reading(census=2.0, render=0.5), 10.0).overhead_share == {
        "census": 0.1,
        "render": 0.05,
    }


def test_a_restart_is_noticed():
    """A counter that went down, or a route that is gone, means another service: comparing would tell nonsense."""
    before = reading({A: route(100, 1)})
    assert restarted(before, reading({A: route(99, 1)}))
    assert restarted(before, reading())
    assert not restarted(before, reading({A: route(100, 1), B: route(1, 1)}))
