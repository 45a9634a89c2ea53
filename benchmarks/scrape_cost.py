"""What a scrape costs that answers for many workers: its time, and the memory it takes meanwhile.

Every worker has as many routes, and as many types on its heap. The other workers are processes that sleep; their files
are those that real ones write. The census is not part of it: benchmarks/census_cost.py measures that.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from heap_middleware import HeapMonitor, HeapSettings
from heap_middleware.endpoints.history import History
from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.endpoints.verdict import Evidence
from heap_middleware.exposition.details import ENDPOINTS, POINTS, Details, encode_details
from heap_middleware.exposition.families import OwnFigures
from heap_middleware.exposition.joined import own_part
from heap_middleware.exposition.requests import PageRequest
from heap_middleware.heap.census import Census, TypeRow
from heap_middleware.workers.directory import WorkersDirectory
from heap_middleware.workers.processes import running, service
from heap_middleware.workers.snapshot import Snapshot

REPEATS = 15
PEAK = 20e6
"""Bytes that a scrape may take where no types of routes are shown."""
NAMES = "service.package.module.SomeTypeNumber{}"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--routes", type=int, default=500)
    parser.add_argument("--types", type=int, default=200)
    options = parser.parse_args()
    title = f"A scrape over {options.workers} workers, {options.routes} routes and {options.types} types each"
    table = Table("what is shown of a route's types", title=title, title_justify="left")
    for heading in ("page MB", "ms", "gzip ms", "worst ms", "peak MB", "a file KB"):
        table.add_column(heading, justify="right")
    peaks = {}
    for shown, types_per_route, ragged in (("none", 0, False), ("none, each other routes", 0, True), ("10", 10, False)):
        *row, peaks[shown], size = measure(options.workers, options.routes, options.types, types_per_route, ragged)
        table.add_row(shown, *row, f"{peaks[shown] / 1e6:.1f}", size)
    Console().print(table)
    if peaks["none"] > PEAK:
        sys.exit(f"a scrape takes {peaks['none'] / 1e6:.1f} MB, more than {PEAK / 1e6:.0f}")


def measure(
    workers: int, routes: int, types: int, types_per_route: int, ragged: bool
) -> tuple[str, str, str, str, int, str]:
    """The row of the table; `ragged` if each worker has served routes that some others have not."""
    sleepers = [subprocess.Popen(["sleep", "1000"]) for _ in range(workers - 1)]
    try:
        with tempfile.TemporaryDirectory() as path:
            settings = HeapSettings(workers_dir=path, attribution=True, census_min_interval=3600, publish_interval=3600)
            monitor = HeapMonitor(settings)
            fill(monitor, routes)
            scrape(monitor, "")
            (own,) = Path(path).glob("*/*.worker")
            group = own.name.partition("-")[0]
            for at, sleeper in enumerate(sleepers):
                first = at * routes // 20 if ragged else 0
                publish(own.parent, group, sleeper.pid, figures(range(first, first + routes), types, types_per_route))
            size = max(file.stat().st_size for file in own.parent.glob("*.worker"))
            body, plain = timed(lambda: scrape(monitor, ""))
            _, packed = timed(lambda: scrape(monitor, "gzip"))
            tracemalloc.start()
            scrape(monitor, "gzip")
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            scrape(monitor, "gzip")
            peak = tracemalloc.get_traced_memory()[1] - before
            tracemalloc.stop()
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
    return (
        f"{len(body) / 1e6:.1f}",
        f"{statistics.median(plain) * 1e3:.0f}",
        f"{statistics.median(packed) * 1e3:.0f}",
        f"{max(packed) * 1e3:.0f}",
        peak,
        f"{size / 1e3:.0f}",
    )


def fill(monitor: HeapMonitor, routes: int) -> None:
    """Have the answering worker serve a request of each route as well."""
    for number in range(routes):
        monitor.ledger.count("GET", f"/api/v1/things{number}/<int:id>")


def figures(routes: range, types: int, types_per_route: int) -> tuple[OwnFigures, Census, dict, dict]:  # type: ignore[type-arg]
    """What a worker knows of itself."""
    rows = tuple(TypeRow(NAMES.format(n), n * 17.0, n * 1009.0) for n in range(types))
    census = Census(rows, 1e6, 1e8, "reachable", 10**6, 0, 0.1, 0.01)
    endpoints = {
        Endpoint("GET", f"/api/v1/things{n}/<int:id>"): EndpointTotals(
            n * 31, n * 31, n * 7.5, n * 3.5, n * 4.0, n * 400.0, n * 310, n * 31000.0
        )
        for n in routes
    }
    retained = dict.fromkeys(endpoints, rows[-types_per_route:]) if types_per_route else {}
    own = OwnFigures("1", "native", "reachable", {"request": 1.0}, {"request": 0}, (1000, 64), 0)
    return own, census, endpoints, retained


def publish(path: Path, group: str, pid: int, known: tuple[OwnFigures, Census, dict, dict]) -> None:  # type: ignore[type-arg]
    """Write what the worker with that process id would."""
    process = running(pid)
    assert process is not None
    directory = WorkersDirectory(path, group, service(), process, print)
    endpoints = known[2]
    evidence = dict.fromkeys(
        list(endpoints)[:ENDPOINTS], Evidence(0.000123, 0.0004567, 123456.0, 0.0, 12.3456789, 1764164164.123, 123456.0)
    )
    view = history(list(endpoints)[:ENDPOINTS]).view(most=POINTS)
    details = encode_details(Details(view))
    said = Snapshot(service(), process, time.monotonic(), *own_part(*known), evidence=evidence, details=details)
    directory.publish(said)


def history(endpoints: list[Endpoint]) -> History[Endpoint]:
    """What the report knows of the largest routes."""
    made: History[Endpoint] = History(POINTS)
    for at in range(POINTS):
        made.note(1764164164.0 + at, dict.fromkeys(endpoints, EndpointTotals(at * 1000, retained_objects=at * 1000.0)))
    return made


def scrape(monitor: HeapMonitor, encoding: str) -> bytes:
    """The page."""
    page = monitor.respond(PageRequest("GET", "/metrics", accept_encoding=encoding))
    assert page.status == 200
    return page.body


def timed(act: Callable[[], bytes]) -> tuple[bytes, list[float]]:
    """What it returns, and the seconds of each repetition."""
    found, seconds = act(), []
    for _ in range(REPEATS):
        began = time.perf_counter()
        found = act()
        seconds.append(time.perf_counter() - began)
    return found, seconds


if __name__ == "__main__":
    main()
