"""Requests that end in another order, thread or context than they began: nobody is charged for what comes after."""

import contextvars
import threading

import pytest

AFTER = 500


def elsewhere(work):
    """Do it in another thread, which has a context of its own."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def in_a_copy(work):
    """Do it in a copy of this context, as an event loop's callback would."""
    contextvars.copy_context().run(work)


@pytest.fixture
def charged(tracker):
    """`charged(work)`: how many objects more all routes together retain after it."""

    def total():
        return sum(row[0] - row[1] for row in tracker.snapshot())

    def ask(work):
        before = total()
        work()
        return total() - before

    return ask


@pytest.fixture
def outside(charged):
    """`outside()`: how many of 500 objects allocated here and now are charged to anybody."""
    kept = [None] * AFTER

    def allocate():
        for at in range(AFTER):
            kept[at] = bytes(100)

    def ask():
        kept[:] = [None] * AFTER
        return charged(allocate)

    return ask


HERE = "here"
ORDERS = [
    # Two requests begin, a and then b over it; who ends where, one after the other.
    [("b", HERE), ("a", HERE)],
    [("a", HERE), ("b", HERE)],
    [("a", elsewhere), ("b", HERE)],
]


def who_where(order):
    return ", ".join(f"{who} {getattr(where, '__name__', where)}" for who, where in order)


@pytest.mark.parametrize("order", ORDERS, ids=who_where)
def test_two_requests_in_one_thread(tracker, retained, outside, order):
    """In whatever order and wherever two ended, each is charged its own, and nobody what comes after them."""
    kept = [None] * 300
    numbers = {"a": 1, "b": 2}
    running = {}

    def keep(first, last):
        for at in range(first, last):
            kept[at] = bytes(100)

    running["a"] = tracker.begin()
    keep(0, 100)
    running["b"] = tracker.begin()
    keep(100, 200)
    for name, where in order:
        end = running.pop(name).end
        (where if callable(where) else lambda work: work())(lambda end=end, name=name: end(numbers[name]))
        if name == "b" and running:
            keep(200, 300)  # a goes on
    assert outside() <= 3
    a, b = retained(1)[0], retained(2)[0]
    assert 100 <= b <= 110
    assert 100 <= a <= 110 if order[0][0] == "a" else 200 <= a <= 210
    following = tracker.begin()
    following.finish(3)  # which says whose it is, not that it is over
    assert outside() >= AFTER
    assert following.leave()
    assert outside() <= 3


def test_what_a_request_started_goes_on_in_its_name(tracker, retained, charged):
    """Ended, a request is over where it began, but not for the tasks that it started."""
    kept = [None] * 400

    def keep(first, last):
        for at in range(first, last):
            kept[at] = bytes(100)

    request = tracker.begin()
    task = contextvars.copy_context()
    request.end(1)
    before = retained(1)[0]
    assert charged(lambda: keep(0, 100)) <= 3
    task.run(keep, 100, 200)
    assert 100 <= retained(1)[0] - before <= 105

    def nested():
        inner = tracker.begin()
        keep(200, 300)
        assert inner.leave()
        inner.finish(2)
        keep(300, 400)

    task.run(nested)
    assert 100 <= retained(2)[0] <= 105
    assert 200 <= retained(1)[0] - before <= 210


def test_requests_that_always_overlap(tracker):
    """A thread whose every request ends during the next one holds on to two of them, not to all."""
    before = tracker.statistics()["requests"]
    running = tracker.begin()
    for _ in range(200):
        following = tracker.begin()
        running.end(1)
        running = following
    tracker.snapshot()
    assert tracker.statistics()["requests"] - before <= 10
    assert running.leave()


class Parts:
    """A response body that keeps a block at each step and at its close."""

    def __init__(self, kept):
        self.places = iter(range(len(kept)))
        self.kept = kept

    def keep(self):
        self.kept[next(self.places)] = bytes(100)

    def __iter__(self):
        for _ in range(50):
            self.keep()
            yield b"part"

    def close(self):
        self.keep()


STEPS = [(HERE, elsewhere), (elsewhere, HERE), (elsewhere, elsewhere), (in_a_copy, elsewhere)]


@pytest.mark.parametrize("steps", STEPS)
def test_a_body_read_and_closed_elsewhere(tracker, retained, outside, steps):
    """Whatever thread reads and closes a response, it is its route's, and afterwards both threads are nobody's."""
    kept = [None] * 100
    request = tracker.begin()
    body = tracker.body(Parts(kept), request, lambda result: request.end(1))
    after = []

    def read():
        assert list(body) == [b"part"] * 50

    def close():
        body.close()
        after.append(outside())

    for where, work in zip(steps, (read, close), strict=True):
        (where if callable(where) else lambda work: work())(work)
    assert after == [pytest.approx(0, abs=3)]
    assert 51 <= retained(1)[0] <= 75
    assert outside() <= 3


def test_a_response_that_is_held(tracker, retained, outside):
    """While a response is held, what its holder does is not its route's."""
    kept = [None] * 100
    request = tracker.begin()
    body = tracker.body(Parts(kept), request, lambda result: request.end(1))
    assert outside() <= 3
    parts = iter(body)
    next(parts)
    assert outside() <= 3
    body.close()
    assert outside() <= 3
    assert 2 <= retained(1)[0] <= 20


def test_a_context_set_by_others(tracker, retained):
    """Whoever carries a context over by setting its variables, as asgiref does, carries the request over, too."""
    kept = [None] * 100
    request = tracker.begin()
    copy = contextvars.copy_context()
    request.leave()
    [variable] = [variable for variable in copy if variable.name == "heap_middleware.request"]
    bytes(100)  # looked up here: nobody's
    variable.set(copy[variable])
    for at in range(100):
        kept[at] = bytes(100)
    variable.set(None)
    kept.append([])
    request.finish(1)
    assert 100 <= retained(1)[0] <= 105


def test_a_body_that_is_never_closed(tracker, retained, outside):
    """A response that another thread drops ends as it goes."""
    kept = [None] * 100
    request = tracker.begin()
    bodies = [tracker.body(Parts(kept), request, lambda result, end=request.end: end(1))]
    del request
    elsewhere(lambda: (list(bodies[0]), bodies.clear()))
    assert outside() <= 3
    assert 50 <= retained(1)[0] <= 75
