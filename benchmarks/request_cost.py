"""What the middleware adds to a request, beside three exporters on the same route.

    pip install -e . --group bench
    python benchmarks/request_cost.py [--quick]

No server and no client: the raw application is called, so that nothing else is measured. Every variant has an
application of its own and runs short batches in turn with the others. "Added" is the median, over the rounds, of a
batch's time less that of the bare application in the same round. "bare again" is a second bare application: what it
"adds" is the noise of this run.

Idle levels are read in rare runs, which a median would hide: batches with and without them have a median each, and the
row "with levels", which is compared, mixes the two by their numbers. The recorder's clock, which its budget is a share
of, goes only while our own variant has its turn, as it would in a process that does nothing else.
"""

import argparse
import asyncio
import gc
import io
import logging
import platform
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from flask import Flask
from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator import Instrumentator
from prometheus_flask_exporter import PrometheusMetrics
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette_exporter import PrometheusMiddleware

from heap_middleware.asgi import HeapMetricsMiddleware as AsgiMiddleware
from heap_middleware.endpoints.windows import WindowRecorder
from heap_middleware.monitor import HeapMonitor
from heap_middleware.settings import HeapSettings
from heap_middleware.wsgi import HeapMetricsMiddleware as WsgiMiddleware

BATCH = 50  # requests: 3 to 15 ms, short enough that bare and measured batches of one round see the same machine
WARM_UP = 300
OURS_WARM_UP = 8_000  # requests: uses up the 50 ms of measuring that the recorder may have saved at its start
LEAST_ROUNDS = 10
OBJECTS = (10_000, 2_000_000)
HEADERS = {
    "host": "localhost:8000",
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64)",
    "accept": "application/json",
    "accept-encoding": "gzip, deflate",
    "connection": "keep-alive",
}
OURS, LEVELS, BARE, AGAIN = "heap_middleware", "heap_middleware, with levels", "bare", "bare again"
Batch = Callable[[int], float]
"""Serves so many requests, returns the seconds they took."""


def items() -> list[dict[str, Any]]:
    return [{"id": number, "name": f"item {number}", "price": number * 1.5} for number in range(50)]


class TurnClock:
    """Seconds, counted only while `running`."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._since = time.perf_counter()
        yield
        self._seconds, self._since = self(), None


def monitor_of(clock: TurnClock) -> HeapMonitor:
    monitor = HeapMonitor(HeapSettings(attribution="windows"))
    monitor.recorder = WindowRecorder(monitor.ledger, clock=clock)
    return monitor


# The routes, each with its variants


def flask_app() -> Flask:
    app = Flask("shop")
    app.add_url_rule("/items", view_func=lambda: {"items": items()}, endpoint="items")
    return app


def flask_ours(monitor: HeapMonitor) -> Flask:
    app = flask_app()
    app.wsgi_app = WsgiMiddleware(app.wsgi_app, monitor=monitor)  # type: ignore[method-assign]
    return app


def flask_exporter() -> Flask:
    app = flask_app()
    PrometheusMetrics(app, registry=CollectorRegistry())
    return app


async def starlette_items(_request: Any) -> JSONResponse:
    return JSONResponse({"items": items()})


def starlette_app() -> Starlette:
    return Starlette(routes=[Route("/items", starlette_items)])


def fastapi_app() -> FastAPI:
    app = FastAPI()

    @app.get("/items")
    async def fastapi_items() -> dict[str, list[dict[str, Any]]]:
        return {"items": items()}

    return app


def ours(app: Starlette, monitor: HeapMonitor) -> Starlette:
    app.add_middleware(AsgiMiddleware, monitor=monitor)
    return app


def starlette_exporter(app: Starlette, prefix: str) -> Starlette:
    # It knows the default registry only, and keeps its metrics by prefix.
    app.add_middleware(PrometheusMiddleware, prefix=prefix)
    return app


def instrumentator(app: FastAPI) -> FastAPI:
    Instrumentator(registry=CollectorRegistry()).instrument(app)
    return app


def flask_variants(monitor: HeapMonitor, _loop: Any, _run: str) -> dict[str, Batch]:
    apps = {
        BARE: flask_app(),
        AGAIN: flask_app(),
        OURS: flask_ours(monitor),
        "prometheus-flask-exporter": flask_exporter(),
    }
    return {name: wsgi_batch(app) for name, app in apps.items()}


def starlette_variants(monitor: HeapMonitor, loop: asyncio.AbstractEventLoop, run: str) -> dict[str, Batch]:
    apps: dict[str, Any] = {
        BARE: starlette_app(),
        AGAIN: starlette_app(),
        OURS: ours(starlette_app(), monitor),
        "starlette_exporter": starlette_exporter(starlette_app(), f"starlette{run}"),
    }
    return {name: asgi_batch(app, loop) for name, app in apps.items()}


def fastapi_variants(monitor: HeapMonitor, loop: asyncio.AbstractEventLoop, run: str) -> dict[str, Batch]:
    apps: dict[str, Any] = {
        BARE: fastapi_app(),
        AGAIN: fastapi_app(),
        OURS: ours(fastapi_app(), monitor),
        "starlette_exporter": starlette_exporter(fastapi_app(), f"fastapi{run}"),
        "prometheus-fastapi-instrumentator": instrumentator(fastapi_app()),
    }
    return {name: asgi_batch(app, loop) for name, app in apps.items()}


# Calling an application as a server does


def environ() -> dict[str, Any]:
    made: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/items",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in HEADERS.items():
        made["HTTP_" + name.upper().replace("-", "_")] = value
    return made


def scope() -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/items",
        "raw_path": b"/items",
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in HEADERS.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }


def wsgi_batch(app: Callable[..., Iterable[bytes]]) -> Batch:
    statuses: set[str] = set()

    def start_response(status: str, _headers: Any, _exc_info: Any = None) -> Callable[[bytes], None]:
        statuses.add(status)
        return lambda _data: None

    def serve() -> None:
        body = app(environ(), start_response)
        try:
            for _ in body:
                pass
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()

    def batch(requests: int) -> float:
        began = time.perf_counter()
        for _ in range(requests):
            serve()
        spent = time.perf_counter() - began
        assert statuses == {"200 OK"}, statuses
        return spent

    return batch


def asgi_batch(app: Callable[..., Awaitable[None]], loop: asyncio.AbstractEventLoop) -> Batch:
    statuses: set[int] = set()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.add(message["status"])

    async def serve(requests: int) -> float:
        began = time.perf_counter()
        for _ in range(requests):
            await app(scope(), receive, send)
        return time.perf_counter() - began

    def batch(requests: int) -> float:
        spent = loop.run_until_complete(serve(requests))
        assert statuses == {200}, statuses
        return spent

    return batch


# Measuring and showing


@dataclass(frozen=True)
class Result:
    """Microseconds a request."""

    bare: float
    added: dict[str, float]


def measure(variants: dict[str, Batch], monitor: HeapMonitor, clock: TurnClock, seconds: float) -> Result:
    recorder = monitor.recorder
    assert recorder is not None
    for name, batch in variants.items():
        with clock.running() if name == OURS else nullcontext():
            batch(OURS_WARM_UP if name == OURS else WARM_UP)
    times: dict[str, list[float]] = {name: [] for name in variants}
    measuring: list[bool] = []
    order = list(variants)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times[BARE]) < LEAST_ROUNDS:
        spent = recorder.spent
        for name in order:
            with clock.running() if name == OURS else nullcontext():
                times[name].append(variants[name](BATCH) / BATCH * 1e6)
        measuring.append(recorder.spent > spent)
        order.append(order.pop(0))  # all take every place in the round
    return Result(statistics.median(times[BARE]), added(times, measuring))


def added(times: dict[str, list[float]], measuring: list[bool]) -> dict[str, float]:
    """Medians of the differences to bare in the same round; `measuring`: whether we read levels in that round."""
    found: dict[str, float] = {}
    for name, figures in times.items():
        more = [mine - bare for mine, bare in zip(figures, times[BARE], strict=True)]
        if name == OURS:
            resting = [value for value, busy in zip(more, measuring, strict=True) if not busy]
            reading = [value for value, busy in zip(more, measuring, strict=True) if busy]
            found[OURS] = statistics.median(resting)
            found[LEVELS] = found[OURS]
            if reading:
                found[LEVELS] += (statistics.median(reading) - found[OURS]) * len(reading) / len(more)
        elif name != BARE:
            found[name] = statistics.median(more)
    return found


def show(console: Console, count: int, results: dict[str, Result]) -> None:
    table = Table(title=f"Added time per request, {count:,} live objects, Python {platform.python_version()}")
    table.add_column("route", no_wrap=True)
    table.add_column("variant", no_wrap=True)
    for column in ("bare us", "added us", "of bare", "ours / it"):
        table.add_column(column, justify="right", no_wrap=True)
    for route, result in results.items():
        for name, more in result.added.items():
            ratio = "" if name in (OURS, LEVELS, AGAIN) else share(result.added[LEVELS], more)
            table.add_row(route, name, f"{result.bare:.1f}", f"{more:+.2f}", f"{more / result.bare:+.1%}", ratio)
        table.add_section()
    console.print(table)


def share(mine: float, theirs: float) -> str:
    if theirs <= 0:
        return "in the noise"
    return f"{mine / theirs:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What the middleware adds to a request, beside three exporters.")
    parser.add_argument("--quick", action="store_true", help="seconds a heap size instead of a minute; noisier")
    seconds = 0.8 if parser.parse_args().quick else 20.0
    logging.disable(logging.WARNING)
    console = Console()
    loop = asyncio.new_event_loop()
    cases = {"Flask": flask_variants, "Starlette": starlette_variants, "FastAPI": fastapi_variants}
    keep: list[list[Any]] = []
    for count in OBJECTS:
        keep += [[] for _ in range(count - len(keep))]
        gc.collect()
        results: dict[str, Result] = {}
        for route, variants in cases.items():
            clock = TurnClock()
            monitor = monitor_of(clock)
            results[route] = measure(variants(monitor, loop, str(count)), monitor, clock, seconds)
        show(console, count, results)
        console.print(
            f"Objects the garbage collector tracks, those of the imported modules included: {len(gc.get_objects()):,}\n"
        )
    loop.close()


if __name__ == "__main__":
    main()
