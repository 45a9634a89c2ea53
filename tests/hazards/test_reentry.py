"""Code of the application that runs in the middle of ours, and calls us again: finalizers, callbacks, signals."""

import gc
import os
import signal
import threading

import pytest

from heap_middleware.exposition.requests import PageRequest

RACE_SECONDS = float(os.environ.get("HEAP_MIDDLEWARE_RACE_SECONDS", "4"))
"""600 in the soak."""


@pytest.fixture
def again(serve):
    """`service, nested = again()`: `nested()` serves a request and scrapes, unless it is under way in this thread."""

    def make(work=None, **settings):
        service = serve(work, **settings) if work is not None else serve(**settings)
        running = threading.local()
        done = []

        def nested():
            if getattr(running, "on", False):
                return
            running.on = True
            try:
                assert service.ask("/nested") == (200, b"hello" if work is None else work("/nested"))
                # As the adapters do; not through the ASGI one, whose scrape is another thread's.
                assert service.monitor.respond(PageRequest("GET", "/metrics")).status == 200
                service.monitor.endpoints()
                done.append(1)
            finally:
                running.on = False

        return service, nested, done

    return make


def test_finalizers(again):
    """Objects whose finalizer serves a request and scrapes may die in any request and in any scrape."""

    class Last:
        def __del__(self):
            nested()

    def work(path):
        if path == "/drops":
            cycle = [Last()]
            cycle.append(cycle)
            Last()
        return b"hello"

    service, nested, done = again(work, census="tracked")
    gc.set_threshold(50, 2, 2)
    try:
        for _ in range(15):
            service.ask("/drops")
            cycle = [Last()]
            cycle.append(cycle)
            del cycle
            assert service.ask("/metrics")[0] == 200
    finally:
        gc.set_threshold(700, 10, 10)
    gc.collect()
    assert len(done) >= 15  # inside another's, a finalizer does nothing
    assert service.requests()["/nested"] == len(done)
    assert service.requests()["/drops"] == 15
    assert service.monitor.own_figures().faults == dict.fromkeys(service.monitor.own_figures().faults, 0)


def test_objects_whose_last_reference_is_ours(serve):
    """An application that drops an object while a census lists it: its finalizer may scrape, and the census ends."""
    service, done = serve(), []

    class Last:
        def __del__(self):
            assert service.monitor.respond(PageRequest("GET", "/metrics")).status == 200
            done.append(1)

    kept = [Last() for _ in range(3)]
    for _ in range(3):
        thread = threading.Thread(target=kept.pop)
        thread.start()
        assert service.ask("/metrics")[0] == 200
        thread.join()
    assert done == [1] * 3


def test_gc_callbacks(again):
    """A callback of the collector that serves and scrapes may be called in any of ours, at every collection."""

    def work(path):
        gc.collect(0)
        return b"hello"

    service, nested, done = again(work, census="tracked")

    def callback(phase, info):
        nested()

    gc.callbacks.append(callback)
    try:
        for _ in range(5):
            assert service.ask("/") == (200, b"hello")
            assert service.ask("/metrics")[0] == 200
    finally:
        gc.callbacks.remove(callback)
    assert len(done) >= 5
    assert service.requests()["/"] == 5
    assert 0 <= service.requests()["/nested"] - len(done) <= 1  # the publisher's thread may be in the middle of one


@pytest.mark.once
def test_at_every_line_of_ours(run):
    """Wherever we are interrupted, under whichever lock: a signal handler there may serve a request and scrape."""
    run(
        """
        import gc
        from lines import Nested, at_lines_of_ours, once_a_line
        gc.freeze()  # as `small_heap` does
        service = serve(top_types=5, census="tracked")
        nested = Nested(service)
        service.ask("/")
        service.ask("/metrics")

        def both():
            assert service.ask("/outer") == (200, b"hello")
            return service.ask("/metrics")[0]

        assert at_lines_of_ours(once_a_line(nested), both) == 200
        assert nested.done > 150
        assert service.requests()["/nested"] == nested.done
        assert service.requests()["/outer"] == 1
        """
    )


def test_signals_at_random_moments(again):
    """A signal handler that serves and scrapes may strike at any moment of a request or scrape."""
    service, nested, done = again(census="tracked")
    before = signal.signal(signal.SIGALRM, lambda *_: nested())
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.0137)
    asked = 0
    try:
        while len(done) < 40:
            assert service.ask("/outer") == (200, b"hello")
            assert service.monitor.respond(PageRequest("GET", "/metrics")).status == 200
            asked += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert service.requests()["/outer"] == asked
    assert service.requests()["/nested"] == len(done)


@pytest.mark.once
@pytest.mark.parametrize("adapter", ["wsgi"], indirect=True)  # what is asked is the monitor
def test_an_exception_at_every_line_of_a_scrape(run):
    """A signal handler that raises at any line of a scrape ends that scrape alone: the next ones are answered."""
    run(
        """
        import gc
        from heap_middleware.endpoints import chronicle
        from lines import SCRAPE, places_of, survives
        gc.freeze()  # as `small_heap` does
        chronicle._SOON = 0.0  # each scrape takes the same way
        for process in ("inline", "fork"):
            monitor = serve(top_types=5, census="tracked", census_process=process).monitor
            monitor.respond(SCRAPE)
            places = places_of(lambda: monitor.respond(SCRAPE))
            for place in places:
                assert survives(monitor, place), place
            assert len(places) > 100
        """
    )


@pytest.mark.once
def test_a_collection_at_every_allocation(run):
    """With a collection at every allocation, under the debugging allocator, requests and scrapes are right."""
    run(
        """
        import gc
        kept = []
        service = serve(lambda path: kept.append({"a": [path]}) or b"hello", top_types=20)
        gc.freeze()
        gc.set_threshold(1, 1, 1)
        for turn in range(20):
            assert service.ask("/kept") == (200, b"hello")
        gc.set_threshold(1, 5, 100)
        assert service.ask("/metrics")[0] == 200
        gc.set_threshold(700)
        assert service.requests() == {"/kept": 20}
        if service.monitor.settings.attribution == "native":
            # A dict, its keys, a list and its items: 4 blocks a request.
            retained = service.monitor.totals()["GET", "/kept"].retained_objects
            assert 80 <= retained <= 100, retained
        """,
        PYTHONMALLOC="debug",
    )


@pytest.mark.once
def test_race(run):
    """Eight threads serve and scrape, collections come thick, and finalizers hand over to others: counts hold."""
    run(
        """
        import gc, os, threading, time
        from heap_middleware.exposition.requests import PageRequest

        class Yields:
            def __del__(self):
                time.sleep(0)  # another thread runs, amid whatever was interrupted

        def work(path):
            for _ in range(20):
                cycle = [Yields()]
                cycle.append(cycle)
            return b"hello"

        service = serve(work, census_min_interval=0.05, top_types=20)
        sys.setswitchinterval(1e-4)
        gc.freeze()
        gc.set_threshold(100, 5, 5)
        deadline, asked, scraped = time.monotonic() + float(sys.argv[1] if len(sys.argv) > 1 else 15), [0] * 8, [0] * 8

        def one(n):
            while time.monotonic() < deadline:
                for _ in range(20):
                    if time.monotonic() < deadline:
                        assert service.ask(f"/{n}") == (200, b"hello")
                        asked[n] += 1
                assert service.monitor.respond(PageRequest("GET", "/metrics")).status == 200
                scraped[n] += 1

        raised = in_threads(8, one)
        gc.set_threshold(700)
        assert not raised, raised
        assert service.requests() == {f"/{n}": count for n, count in enumerate(asked)}
        assert min(scraped) > 0
        assert not any(service.monitor.own_figures().faults.values())
        print(sum(asked), sum(scraped))
        """.replace("15)", f"{RACE_SECONDS})"),
    )
