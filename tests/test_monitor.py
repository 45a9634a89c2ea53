import gc
import io
import os
import traceback
import warnings
import weakref

import pytest
from prometheus_client import CollectorRegistry

from heap_middleware import HeapMonitor, HeapSettings
from heap_middleware.endpoints.windows import Level
from heap_middleware.exposition.requests import PageRequest


def test_equal_settings_share_one_monitor():
    """Middleware with equal settings shares one monitor, middleware with others does not."""
    one = HeapMonitor.shared(HeapSettings(top_types=41))
    assert HeapMonitor.shared(HeapSettings(top_types=41)) is one
    assert HeapMonitor.shared(HeapSettings(top_types=42)) is not one
    assert HeapMonitor(HeapSettings(top_types=41)) is not one


def test_a_shared_monitor_dies_with_its_last_user():
    """A monitor that nobody uses any longer is gone."""
    one = weakref.ref(HeapMonitor.shared(HeapSettings(top_types=43)))
    gc.collect()
    assert one() is None


def test_without_attribution_nothing_is_said_of_routes():
    """What is known of routes is empty, and no error."""
    monitor = HeapMonitor(HeapSettings())
    assert monitor.endpoints() == monitor.retained_by_type() == {}
    assert monitor.verdicts() == monitor.suspects() == []
    for history in (monitor.history(), monitor.types_history()):
        assert (history.times, history.series) == ([], {})


def test_garbage_can_be_left_out_of_the_census():
    """With `gc_collect` a census counts no garbage: it is collected first."""

    class Ring:
        pass

    ring = Ring()
    ring.itself, gone = ring, weakref.ref(ring)
    del ring
    HeapMonitor(HeapSettings(gc_collect=True)).census()
    assert gone() is None


@pytest.mark.parametrize("method", ["GET", "POST", ""])
@pytest.mark.parametrize("text", ["", "\0\ud800", "a" * 100_000, "name[]=" * 5000, "q=;q=,*/*;version=x;=", "%ff&=&"])
def test_hostile_scrapes_are_answered(method, text):
    """Whatever a client sends to the metrics path, it gets an answer that is no server error."""
    monitor = HeapMonitor(HeapSettings())
    page = monitor.respond(PageRequest(method, "/metrics", text, text, text))
    assert page.status in (200, 400, 405)


def test_respond_never_raises(monkeypatch):
    """A failing census is a 503 to the scraper, and counted."""
    monitor = HeapMonitor(HeapSettings())

    def fail():
        raise RuntimeError("ours")

    monkeypatch.setattr(monitor._census, "get", fail)
    assert monitor.respond(PageRequest("GET", "/metrics")).status == 503
    assert monitor.own_figures().faults == {
        "request": 0,
        "scrape": 1,
        "registry": 0,
        "workers": 0,
        "history": 0,
        "report": 0,
    }


def test_switched_off_wins():
    """With `enabled=False` nothing is asked of the backend, whichever is set."""
    assert HeapMonitor(HeapSettings(enabled=False, attribution="native")).recorder is None


def test_my_registry_is_shown_too():
    """With registry= the page shows my metrics beside ours."""
    registry = CollectorRegistry()
    monitor = HeapMonitor(HeapSettings(registry=registry))
    assert b"object_count{" in monitor.respond(PageRequest("GET", "/metrics")).body


def serve(monitor):
    held = {}
    window = monitor.recorder.begin(held, Level.RELEASE)
    monitor.recorder.finish(window, held, Level.RELEASE, "GET", "/x")


def requests(monitor):
    return [(*endpoint, totals.requests) for endpoint, totals in monitor.endpoints().items()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_starts_from_zero():
    """A forked worker counts its own requests only, and can serve and be scraped."""
    monitor = HeapMonitor(HeapSettings(attribution=True))
    monitor.census()
    for _ in range(3):
        serve(monitor)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest's own threads, if any
        child = os.fork()
    if child == 0:  # pragma: no cover - measured in the parent
        try:
            before = requests(monitor)
            serve(monitor)
            page = monitor.respond(PageRequest("GET", "/metrics"))
            shown = b'requests_total{method="GET",route="/x"} 1' in page.body
            answer = repr((before, requests(monitor), page.status, shown))
        except BaseException:
            out = io.StringIO()
            traceback.print_exc(file=out)
            answer = out.getvalue()
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert answer == repr(([], [("GET", "/x", 1)], 200, True))
    assert requests(monitor) == [("GET", "/x", 3)]
