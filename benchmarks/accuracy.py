"""How near the figures come to what routes really leak, at concurrency 32 on uvicorn: FastAPI with the accelerator.

    pip install -e . --group bench
    python benchmarks/accuracy.py [--quick]

Routes that leak in a coroutine, in a thread, in child tasks and in a background task, and a clean one, in random order
by 32 clients. Printed is what a request leaves alive by `/metrics`, after as many requests as a warm-up needs.
"""

import argparse
import asyncio
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import uvicorn
from anyio import to_thread
from fastapi import BackgroundTasks, FastAPI
from rich.console import Console
from rich.table import Table

from heap_middleware.asgi import HeapMetricsMiddleware

CLIENTS = 32
KEPT = 400_000
LEAKS = {"/async": 1, "/thread": 1, "/child": 2, "/later": 1, "/clean/{name}": 0}
WARM_UP = 2_000  # requests of each route
TYPE = "builtins.bytes"


def leaking_app(sampling: int) -> FastAPI:
    kept = [b""] * KEPT  # never grows: what is kept is one block each
    places = iter(range(KEPT))
    app = FastAPI(on_startup=[few_threads])
    app.add_middleware(HeapMetricsMiddleware, attribution="native", sampling=sampling)

    def keep() -> None:
        kept[next(places)] = bytes(100)

    @app.get("/async")
    async def in_a_coroutine() -> None:
        await asyncio.sleep(0)
        keep()

    @app.get("/thread")
    def in_a_thread() -> None:
        keep()

    @app.get("/child")
    async def in_child_tasks() -> None:
        async def child() -> None:
            await asyncio.sleep(0)
            keep()

        await asyncio.gather(child(), child())

    @app.get("/later")
    async def after_the_response(tasks: BackgroundTasks) -> None:
        tasks.add_task(keep)

    @app.get("/clean/{name}")
    async def clean(name: str) -> list[dict[str, str]]:
        await asyncio.sleep(0)
        return [{name: str(number)} for number in range(20)]

    return app


def few_threads() -> None:
    # Each of a pool's threads is some 45 blocks, charged to whoever needed it first: few, so that they are soon there.
    to_thread.current_default_thread_limiter().total_tokens = 4


@contextmanager
def serving(sampling: int) -> Iterator[str]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, "--serve", str(sampling), str(port)])
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 30
    while True:
        try:
            httpx.get(url + "/metrics")
            break
        except httpx.TransportError:
            if time.monotonic() > until or process.poll() is not None:
                raise
            time.sleep(0.1)
    try:
        yield url
    finally:
        process.terminate()
        process.wait()


def drive(url: str, rounds: int) -> None:
    todo = list(LEAKS) * rounds
    random.shuffle(todo)

    def work(_: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while todo:
                try:
                    path = todo.pop()
                except IndexError:
                    return
                client.get(path.format(name="x")).raise_for_status()

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(work, range(CLIENTS)))


def figures(url: str) -> dict[tuple[str, str], float]:
    """Requests, retained blocks, and retained objects of the leaked type, by route."""
    found: dict[tuple[str, str], float] = {}
    for line in httpx.get(url + "/metrics", timeout=60).text.splitlines():
        sample = re.match(
            r"heap_endpoint_(requests_total|retained_objects|retained_objects_by_type)\{(.*)\} (\S+)", line
        )
        if sample is not None:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', sample[2]))
            if labels.get("module", TYPE) == TYPE:
                found[labels["route"], sample[1]] = float(sample[3])
    return found


def run(table: Table, sampling: int, requests: int) -> None:
    rounds = requests // len(LEAKS)
    with serving(sampling) as url:
        drive(url, WARM_UP)
        before = figures(url)
        drive(url, rounds)
        after = figures(url)

    def per_request(route: str, name: str) -> float:
        served = after[route, "requests_total"] - before[route, "requests_total"]
        return (after.get((route, name), 0.0) - before.get((route, name), 0.0)) / served

    for route, leak in LEAKS.items():
        blocks, objects = (per_request(route, f"retained_objects{suffix}") for suffix in ("", "_by_type"))
        table.add_row(str(sampling), f"{rounds:,}", route, str(leak), f"{blocks:.3f}", f"{objects:.3f}")
    table.add_section()


def main() -> None:
    parser = argparse.ArgumentParser(description="How exact the attribution is at concurrency 32.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    parser.add_argument("--serve", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        sampling, port = arguments.serve
        uvicorn.run(leaking_app(sampling), port=port, log_level="critical", access_log=False)
        return
    table = Table(title=f"Retained per request, {CLIENTS} clients, {os.cpu_count()} cores")
    for column in ("sampling", "requests", "route", "leaks", "all blocks", TYPE):
        table.add_column(column, justify="left" if column == "route" else "right", no_wrap=True)
    for sampling, requests in ((1, 10_000), (64, 100_000)):
        run(table, sampling, requests // (10 if arguments.quick else 1))
    Console().print(table)


if __name__ == "__main__":
    main()
