"""attribution="native" behind both adapters: exact per route, at any concurrency, for all that a request starts."""

import gc
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask, Response
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import Client, EnvironBuilder

from heap_middleware import BackendUnavailable, HeapMonitor, HeapSettings, accelerator
from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.endpoints.tracker import reset_in_child
from heap_middleware.wsgi import HeapMetricsMiddleware as WsgiMiddleware

KEPT = 200_000
kept: list[Any] = [None] * KEPT  # a list that never grows: what is kept is one block each
places = iter(range(KEPT))


def keep() -> None:
    kept[next(places)] = bytes(100)


@pytest.fixture
def monitor() -> Iterator[HeapMonitor]:
    """A monitor whose tracker records every allocation; it stops with the test."""
    from heap_middleware import _native

    _native.stop()
    yield HeapMonitor(HeapSettings(attribution="native", sampling=1))
    _native.stop()


def per_request(monitor: HeapMonitor, before: dict[Endpoint, Any], route: str) -> float:
    totals, earlier = monitor.endpoints()[Endpoint("GET", route)], before[Endpoint("GET", route)]
    return (totals.retained_objects - earlier.retained_objects) / (totals.requests - earlier.requests)


def retained_by_route(url: str) -> dict[str, tuple[float, float]]:
    """Requests and retained objects of each route, from /metrics."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text):
        for sample in family.samples:
            if "route" in sample.labels:
                found.setdefault(sample.labels["route"], {})[sample.name.removeprefix("heap_endpoint_")] = sample.value
    return {route: (figures["requests_total"], figures["retained_objects"]) for route, figures in found.items()}


@pytest.mark.once
def test_fastapi_at_concurrency_32(serve: Callable[..., Any], connect: Callable[..., Any]) -> None:
    """Leaks in coroutines, threads, child tasks and background tasks come out within 5 %, a clean route at zero."""
    quiet = {"COVERAGE_PROCESS_CONFIG": None}
    url = serve(
        "uvicorn", app="leaking:app", cwd=Path(__file__).parent, args=["--log-level", "critical"], env=quiet
    ).url
    leaks = {"/async": 1, "/thread": 1, "/child": 2, "/later": 1, "/clean/{name}": 0}

    def drive(rounds: int) -> None:
        todo = list(leaks) * rounds
        random.shuffle(todo)

        def work(_: int) -> None:
            with connect(url) as connection:
                while todo:
                    try:
                        connection.text(todo.pop().format(name="x"))
                    except IndexError:
                        return

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(work, range(32)))

    rounds = 2_000
    drive(500)  # caches, the pool's threads, connections
    before = retained_by_route(url)
    drive(rounds)
    after = retained_by_route(url)
    for route, leak in leaks.items():
        (requests, objects), (earlier, already) = after[route], before[route]
        found = (objects - already) / (requests - earlier)
        # Beside that, a few hundred blocks of the server's own come and go.
        own = 100 / rounds
        assert 0.95 * leak - own < found < 1.05 * leak + own, f"{route} leaks {leak}, found {found:.3f}"


def test_flask_streams_and_exceptions(monitor: HeapMonitor) -> None:
    """What a generator keeps while the server iterates, and at its close, is its route's."""
    app = Flask("shop")

    @app.get("/stream")
    def stream() -> Response:
        def parts() -> Iterator[str]:
            try:
                keep()
                yield "part"
            finally:
                keep()

        return Response(parts())

    @app.get("/broken")
    def broken() -> str:
        raise ValueError("as always")

    app.logger.disabled = True
    app.wsgi_app = WsgiMiddleware(app.wsgi_app, monitor=monitor)  # type: ignore[method-assign]
    client = Client(app)
    for rounds in (200, 600):
        before = dict(monitor.endpoints())
        for _ in range(rounds):
            assert client.get("/stream").data == b"part"
            assert client.get("/broken").status_code == 500
            keep()  # nobody's
    assert per_request(monitor, before, "/stream") == pytest.approx(2, abs=0.4)  # the client shares the heap here
    totals = monitor.endpoints()[Endpoint("GET", "/stream")]
    assert totals.measured == totals.requests == 800
    assert totals.retained_bytes is not None
    assert totals.retained_bytes > 800 * 2 * 100


def test_a_response_is_as_it_was(monitor: HeapMonitor) -> None:
    """Iterating twice, a length, and a close that raises reach the server as without us."""

    class Sized:
        closed = 0

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[bytes]:
            return iter([b"part"])

        def close(self) -> None:
            self.closed += 1
            raise ValueError("mine")

    body = Sized()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return body

    result: Any = WsgiMiddleware(app, monitor=monitor)({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *_: None)
    assert len(result) == 1
    assert [list(result), list(result)] == [[b"part"], [b"part"]]
    for _ in range(2):  # as some servers do
        with pytest.raises(ValueError, match="mine"):
            result.close()
    assert body.closed == 2
    assert sum(totals.requests for totals in monitor.endpoints().values()) == 1


def test_a_fault_at_the_end_of_a_response_is_not_the_servers(
    monitor: HeapMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong in ours is told to `sys.unraisablehook`; the response is closed as without us."""
    from heap_middleware import _native

    def end(body: object) -> None:
        raise RuntimeError("ours")

    told: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", told.append)
    body: Any = _native.body([b"part"], _native.begin(), end)
    assert list(body) == [b"part"]
    assert body.close() is None
    assert [str(fault.exc_value) for fault in told] == ["ours"]


@pytest.fixture
def collected_alone() -> Iterator[Callable[[], None]]:
    """After its call collections look at what comes then, not at the half a million objects of all tests."""
    yield gc.freeze
    gc.unfreeze()


def test_a_response_closed_in_another_thread(monitor: HeapMonitor, collected_alone: Callable[[], None]) -> None:
    """What it keeps is its route's wherever it is closed, and what its thread does next is nobody's."""
    app = Flask("shop")

    @app.get("/stream")
    def stream() -> Response:
        def parts() -> Iterator[str]:
            keep()
            yield "part"
            keep()

        return Response(parts())

    middleware = WsgiMiddleware(app.wsgi_app, monitor=monitor)

    def retained() -> int:
        gc.collect()  # where each object starts a collection, garbage grows old at once
        return sum(totals.retained_objects or 0 for totals in monitor.endpoints().values())

    collected_alone()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(keep).result()  # the pool's thread is there
        found = []
        for _ in range(100):
            body: Any = middleware(EnvironBuilder("/stream").get_environ(), lambda *_: lambda _: None)
            assert list(body) == [b"part"]
            pool.submit(body.close).result()
            found.append(retained())
            for _ in range(10):
                keep()
            assert retained() - found[-1] <= 2
    assert found[-1] - found[49] == pytest.approx(100, abs=25)


def test_metrics(monitor: HeapMonitor) -> None:
    """/metrics shows bytes, allocations and the tracker's own figures."""
    app = Flask("shop")
    app.add_url_rule("/keep", "keep", lambda: keep() or "kept")
    app.wsgi_app = WsgiMiddleware(app.wsgi_app, monitor=monitor)  # type: ignore[method-assign]
    client = Client(app)
    for _ in range(20):
        client.get("/keep")
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    for name in ("retained_bytes", "allocated_objects", "allocated_bytes", "measured_requests"):
        (sample,) = families[f"heap_endpoint_{name}"].samples
        assert sample.labels == {"method": "GET", "route": "/keep"}
        assert sample.value >= 20
    assert families["heap_tracker_records"].samples[0].value >= 20
    assert families["heap_tracker_sampling_interval"].samples[0].value == 1
    assert families["heap_middleware_info"].samples[0].labels["backend"] == "native"


def test_a_forked_child_counts_its_own(monitor: HeapMonitor) -> None:
    """A child forked under way starts from zero and is measured."""
    app = Flask("shop")
    app.add_url_rule("/keep", "keep", lambda: keep() or "kept")
    app.wsgi_app = WsgiMiddleware(app.wsgi_app, monitor=monitor)  # type: ignore[method-assign]
    client = Client(app)
    for _ in range(50):
        client.get("/keep")
    child = os.fork()
    if child == 0:
        for _ in range(20):
            client.get("/keep")
        totals = monitor.endpoints()[Endpoint("GET", "/keep")]
        os._exit(0 if totals.requests == 20 and 20 <= totals.retained_objects <= 400 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert monitor.endpoints()[Endpoint("GET", "/keep")].requests == 50


def test_where_it_was_not_built(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Asked for by name where it is missing, it is an error that says why; True serves without it and says so once."""
    monkeypatch.setattr(accelerator, "missing", "no such module")
    monkeypatch.setattr(accelerator, "native", None)
    accelerator.say_it_is_missing.cache_clear()
    with pytest.raises(BackendUnavailable, match="no such module"):
        HeapMonitor(HeapSettings(attribution="native"))
    for _ in range(3):
        monitor = HeapMonitor(HeapSettings(attribution=True))
        assert monitor.own_figures().backend == "windows"
        assert monitor.census().kind == "tracked"
    assert [record.message for record in caplog.records] == ["heap_middleware runs in pure Python: no such module"]


def test_own_time_is_told(monitor: HeapMonitor) -> None:
    """What recording costs is among the middleware's own figures."""
    assert monitor.recorder is not None
    before = monitor.own_figures().overhead["request"]
    request = monitor.recorder.begin({}, None)  # type: ignore[arg-type]
    until = time.monotonic() + 0.05
    while time.monotonic() < until:
        [bytes(100) for _ in range(100)]
    request.leave()
    assert 0 < monitor.own_figures().overhead["request"] - before < 1


def test_a_route_that_is_learned_that_very_moment(monitor):
    """Another thread has counted its first request, and not told the accelerator yet: it is there, with nothing."""
    monitor.ledger.count("GET", "/new")
    assert monitor.endpoints()[Endpoint("GET", "/new")] == EndpointTotals(requests=1)


def test_a_child_of_a_process_that_follows_nothing(monitor):
    """The accelerator is there and does not run: a fork does not start it."""
    from heap_middleware import _native

    _native.stop()
    reset_in_child()
    assert not _native.statistics()["running"]
