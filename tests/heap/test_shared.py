import threading

import pytest

from heap_middleware.heap.census import Census
from heap_middleware.heap.shared import SharedCensus


def census(n=0):
    return Census((), n, 0, "tracked", n, 0, 0.5, 0.0)


def test_eight_threads_share_one_census():
    """Simultaneous scrapes take one census."""
    entered, release, takes, got = threading.Event(), threading.Event(), [], []

    def take():
        takes.append(1)
        entered.set()
        release.wait(10)
        return census()

    shared = SharedCensus(take, 60.0)
    threads = [threading.Thread(target=lambda: got.append(shared.get())) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert entered.wait(10)
    release.set()
    for thread in threads:
        thread.join(10)
    assert len(takes) == 1
    assert len(got) == 8
    assert len(set(map(id, got))) == 1


def test_the_interval_is_kept():
    """A scrape within the interval gets the last census, one after it a new one."""
    now = [0.0]
    numbers = iter(range(9))
    shared = SharedCensus(lambda: census(next(numbers)), 5.0, lambda: now[0])
    seen = []
    for moment in (0.0, 4.9, 5.0, 5.1):
        now[0] = moment
        seen.append(shared.get().walked)
    assert seen == [0, 0, 1, 1]
    assert shared.seconds == 1.0


@pytest.mark.parametrize("warm", [False, True])
def test_a_finalizer_may_scrape_inside_the_census(warm):
    """A finalizer that scrapes while the census runs does not deadlock."""
    depth, nested = [], []

    def take():
        depth.append(1)
        if len(depth) == 1 + warm:
            nested.append(shared.get())
        return census(len(depth))

    shared = SharedCensus(take, 0.0)
    results = [shared.get() for _ in range(1 + warm)]
    assert len(nested) == 1
    assert len(results) == 1 + warm


def test_a_failing_census_wakes_the_waiters():
    """When a census fails its caller sees the error and the others take their own."""
    entered, release, calls, got, errors = threading.Event(), threading.Event(), [], [], []

    def take():
        calls.append(1)
        if len(calls) == 1:
            entered.set()
            release.wait(10)
            raise OSError("no")
        return census()

    shared = SharedCensus(take, 60.0)

    def scrape():
        try:
            got.append(shared.get())
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=scrape) for _ in range(4)]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    release.set()
    for thread in threads:
        thread.join(10)
    assert (len(errors), len(got), len(calls)) == (1, 3, 2)
    assert shared.get() is got[0]
