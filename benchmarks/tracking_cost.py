"""What following every request with the accelerator adds to it, beside exporters and beside other ways to see a leak.

    pip install -e . --group bench
    python benchmarks/tracking_cost.py [--quick] [--tracers] [--live 10000 --live 5000000]

Hooks and tracers change the whole process, so every variant is a process of its own. They take turns on one core, a
short batch each, in an order that moves on with every round. "Added" is the median, over the rounds, of a batch's time
less that of the bare application in the same round. Two processes of the same program differ by some percent, by where
their memory came to lie, so all of them are started anew several times, and the median over the starts is shown. "bare
again" is what the noise of this run adds.

`overhead_budget` is a share of all time, and each process waits most of it for its turn: it gets so much less budget
that its share of the time it works is 1 %, as in a process that does nothing else.
"""

import argparse
import asyncio
import gc
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

from request_cost import (
    Batch,
    asgi_batch,
    fastapi_app,
    flask_app,
    flask_exporter,
    instrumentator,
    ours,
    starlette_app,
    starlette_exporter,
    wsgi_batch,
)
from rich.console import Console
from rich.table import Table

from heap_middleware.monitor import HeapMonitor
from heap_middleware.settings import HeapSettings
from heap_middleware.wsgi import HeapMetricsMiddleware as WsgiMiddleware

BATCH = 50  # requests, 3 to 15 ms
WARM_UP = 3_000
LEAST_ROUNDS = 5
STARTS = 7
BARE, AGAIN, AUTO, EVERY, WINDOWS = "bare", "bare again", "native", "native, sampling=1", "windows"
NO_LINES = "native, sampling=1, no lines"
OURS = {AUTO: ("native", "auto"), EVERY: ("native", 1), NO_LINES: ("native", 1), WINDOWS: ("windows", "auto")}
TRACERS = ("tracemalloc.start(1)", "memray", "gc.get_objects() before and after")
PEERS = {
    "Flask": ("prometheus-flask-exporter",),
    "Starlette": ("starlette_exporter",),
    "FastAPI": ("starlette_exporter", "prometheus-fastapi-instrumentator"),
}


def variants_of(route: str, tracers: bool) -> list[str]:
    return [BARE, AGAIN, *OURS, *PEERS[route], *(TRACERS if tracers else ())]


# One variant, in a process of its own


def monitor_of(variant: str, sharers: int) -> HeapMonitor:
    attribution, sampling = OURS[variant]
    lines = {"max_sites": 0} if variant == NO_LINES else {}
    return HeapMonitor(
        HeapSettings(attribution=attribution, sampling=sampling, overhead_budget=0.01 / sharers, **lines)
    )


def application(route: str, variant: str, sharers: int) -> Any:
    app = {"Flask": flask_app, "Starlette": starlette_app, "FastAPI": fastapi_app}[route]()
    if variant in OURS and route == "Flask":
        app.wsgi_app = WsgiMiddleware(app.wsgi_app, monitor=monitor_of(variant, sharers))
    elif variant in OURS:
        ours(app, monitor_of(variant, sharers))
    elif variant == "prometheus-flask-exporter":
        app = flask_exporter()
    elif variant == "starlette_exporter":
        starlette_exporter(app, "bench")
    elif variant == "prometheus-fastapi-instrumentator":
        instrumentator(app)
    return app


def batch_of(route: str, variant: str, sharers: int) -> Batch:
    app = application(route, variant, sharers)
    batch = wsgi_batch(app) if route == "Flask" else asgi_batch(app, asyncio.new_event_loop())
    if variant == "gc.get_objects() before and after":

        def counted(requests: int) -> float:
            spent = 0.0
            for _ in range(requests):
                began = time.perf_counter()
                before = len(gc.get_objects())
                batch(1)
                spent += time.perf_counter() - began
                assert len(gc.get_objects()) - before < 10_000
                spent += time.perf_counter() - began - (time.perf_counter() - began)
            return spent

        return counted
    return batch


def serve(route: str, variant: str, sharers: int, live: int) -> None:
    logging.disable(logging.WARNING)
    keep = [[] for _ in range(live)]
    gc.collect()
    batch = batch_of(route, variant, sharers)
    if variant == "tracemalloc.start(1)":
        tracemalloc.start(1)
    batch(WARM_UP if variant not in TRACERS else WARM_UP // 10)
    print("ready", flush=True)
    for line in sys.stdin:
        print(batch(int(line)), flush=True)
    assert len(keep) == live


# All of them in turn


class Worker:
    def __init__(self, route: str, variant: str, sharers: int, live: int) -> None:
        command = [sys.executable, __file__, "--serve", route, variant, str(sharers), "--live", str(live)]
        if variant == "memray":
            log = Path(os.environ.get("TMPDIR", "/tmp")) / f"memray-{os.getpid()}-{route}.bin"
            command[1:1] = ["-m", "memray", "run", "--force", "--quiet", "--trace-python-allocators", "-o", str(log)]
            self._log: Path | None = log
        else:
            self._log = None
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def batch(self, requests: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{requests}\n")
        self._process.stdin.flush()
        return float(self._read()) / requests * 1e6

    def stop(self) -> None:
        self._process.communicate()
        if self._log is not None:
            self._log.unlink(missing_ok=True)


Figures = dict[str, float]
"""Microseconds a request that each variant adds; of BARE, what it takes."""


def measure(route: str, live: int, seconds: float, starts: int, tracers: bool) -> Figures:
    found = [measure_once(route, live, seconds / starts, tracers) for _ in range(starts)]
    return {name: statistics.median(figures[name] for figures in found) for name in found[0]}


def measure_once(route: str, live: int, seconds: float, tracers: bool) -> Figures:
    names = variants_of(route, tracers)
    workers = {name: Worker(route, name, len(names), live) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times[BARE]) < LEAST_ROUNDS:
        for name in names:
            few = 5 if name in TRACERS else BATCH
            times[name].append(workers[name].batch(few))
        names.append(names.pop(0))
    for worker in workers.values():
        worker.stop()
    added = {
        name: statistics.median(mine - bare for mine, bare in zip(figures, times[BARE], strict=True))
        for name, figures in times.items()
    }
    return {**added, BARE: statistics.median(times[BARE])}


def show(console: Console, live: int, results: dict[str, Figures]) -> None:
    table = Table(title=f"Added time per request, {live:,} live objects, Python {platform.python_version()}")
    for column in ("route", "variant"):
        table.add_column(column, no_wrap=True)
    for column in ("bare us", "added us", "over bare", f"{AUTO} / it"):
        table.add_column(column, justify="right", no_wrap=True)
    for route, figures in results.items():
        bare = figures[BARE]
        for name, more in figures.items():
            if name != BARE:
                peer = f"{figures[AUTO] / more:.2f}" if name in PEERS[route] + TRACERS and more > 0 else ""
                table.add_row(route, name, f"{bare:.1f}", f"{more:+.2f}", f"{1 + more / bare:.3f}", peer)
        table.add_section()
    console.print(table)


def tracker_memory() -> int:
    """Bytes of the tracker's tables in a process of its own."""
    code = "from heap_middleware import _native as n; n.start(262144, 0, 0.01); print(n.statistics()['memory'])"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="What following every request adds to it.")
    parser.add_argument("--quick", action="store_true", help="a second a route; noisier")
    parser.add_argument("--live", type=int, action="append", help="objects kept alive (10000); can be given again")
    parser.add_argument("--tracers", action="store_true", help="also tracemalloc, memray and gc.get_objects()")
    parser.add_argument("--route", choices=tuple(PEERS), action="append", help="only these routes")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    lives = arguments.live or [10_000]
    if arguments.serve:
        route, variant, sharers = arguments.serve
        serve(route, variant, int(sharers), lives[0])
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core, for the children as well
    seconds, starts = (1.0, 1) if arguments.quick else (40.0, STARTS)
    console, found = Console(width=100), {}
    for live in lives:
        found[live] = {r: measure(r, live, seconds, starts, arguments.tracers) for r in arguments.route or PEERS}
        show(console, live, found[live])
    for route, figures in found[lives[0]].items():
        for live in lives[1:]:
            ratio = found[live][route][AUTO] / figures[AUTO]
            console.print(f"{route}: {AUTO} adds {ratio:.2f} times as much at {live:,} live objects as at {lives[0]:,}")
    console.print(f"tables of the tracker, at 262,144 records: {tracker_memory() / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
