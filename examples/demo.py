"""The demo: the Flask example under gunicorn with four workers, traffic, and the route that leaks.

Everything it knows it reads from /metrics over HTTP, as Prometheus would.
"""

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

EXAMPLE = Path(__file__).parent / "flask_app"
ROUTES = ("/leakable", "/clean", "/users/{number}", "/search")
LEAKING = "/leakable"
WARM_UP = 800  # caches fill first: urllib.parse, through which servers take URLs apart, remembers 128 of them
REQUESTS = 6000
SECONDS = 15.0  # a slow machine sends fewer requests, not longer
START_SECONDS = 20.0
LEAK_FROM = 0.5  # objects per request; what a request of a clean route leaves is near zero

Key = tuple[str, ...]
Samples = dict[Key, float]


def main() -> int:
    """Run the demo; the exit code says whether the leak was found."""
    console = Console()
    with serving() as url, httpx.Client(base_url=url, timeout=10) as http:
        console.print(f"The Flask example runs under gunicorn, with four workers, at {url}")
        for number in range(WARM_UP):
            http.get(ROUTES[number % len(ROUTES)].format(number=number))
        scrape(http)  # the first one loads what later ones have
        time.sleep(1.1)  # scrapes within census_min_interval, a second, share a census
        before = scrape(http)
        send_traffic(http, console)
        after = scrape(http)
    change = {key: value - before.get(key, 0.0) for key, value in after.items()}
    ranking = rank(change)
    console.print(routes_table(ranking, change), types_table(change))
    if not ranking or ranking[0][1] != LEAKING or ranking[0][0] < LEAK_FROM:
        console.print(f"[bold red]The demo failed:[/] {LEAKING} is not on top.")
        return 1
    console.print(f"[bold]{LEAKING}[/] leaks {ranking[0][0]:.1f} objects with every request.")
    return 0


@contextmanager
def serving() -> Iterator[str]:
    """The example's URL; the server ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "gunicorn", "--bind", address, "app:app"]
    with tempfile.TemporaryFile("w+") as log:
        # The settings of whoever runs this are for their own services.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEAP_MIDDLEWARE_")}
        process = subprocess.Popen(command, cwd=EXAMPLE, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for_answer(f"http://{address}", process, log)
            yield f"http://{address}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_answer(url: str, process: "subprocess.Popen[bytes]", log: IO[str]) -> None:
    """Return once the server answers; exit with its last words if it does not."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"{url}/clean", timeout=5).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    log.seek(0)
    raise SystemExit(f"The demo failed: the server did not start. Its log:\n{log.read()[-2000:]}")


def send_traffic(http: httpx.Client, console: Console) -> None:
    """Visit the routes in random order, each visit a few requests long, as browsers do."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    deadline = time.monotonic() + SECONDS
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("requests", total=REQUESTS)
        sent = 0
        while sent < REQUESTS and time.monotonic() < deadline:
            path = random.choice(ROUTES).format(number=random.randint(1, 1000))
            visit = min(REQUESTS - sent, random.randint(3, 5))
            for _ in range(visit):
                http.get(path).raise_for_status()
            sent += visit
            progress.update(task, completed=sent)
        progress.update(task, total=sent)


def scrape(http: httpx.Client) -> Samples:
    """The samples of /metrics by name and label values."""
    families = text_string_to_metric_families(http.get("/metrics").raise_for_status().text)
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def rank(change: Samples) -> list[tuple[float, str, str]]:
    """(objects gained per request, route, method), the most leaking first."""
    ranking = []
    for name, method, route in (key for key in change if key[0] == "heap_endpoint_measured_requests_total"):
        measured = change[name, method, route]
        gained = change["heap_endpoint_objects_gained_total", method, route]
        lost = change["heap_endpoint_objects_lost_total", method, route]
        if measured:
            ranking.append(((gained - lost) / measured, route, method))
    return sorted(ranking, reverse=True)


def routes_table(ranking: list[tuple[float, str, str]], change: Samples) -> Table:
    """Which route left how much behind."""
    table = Table("route", title="Objects that a request leaves behind", title_justify="left")
    for heading in ("requests", "measured", "objects per request"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for objects, route, method in ranking:
        requests = change["heap_endpoint_requests_total", method, route]
        measured = change["heap_endpoint_measured_requests_total", method, route]
        mark = "LEAKS" if objects >= LEAK_FROM else ""
        shown = f"{objects:.2f}".replace("-0.00", "0.00")
        style = "bold red" if mark else None
        table.add_row(f"{method} {route}", f"{requests:.0f}", f"{measured:.0f}", shown, mark, style=style)
    return table


def types_table(change: Samples) -> Table:
    """The five types that grew most, in all workers together."""
    grown: Counter[str] = Counter()
    for name, *labels in change:
        if name == "object_count":
            grown[labels[0]] += round(change[name, *labels])
    table = Table("type", title="Types that grew", title_justify="left")
    table.add_column("objects", justify="right")
    for module, objects in grown.most_common(5):
        if objects > 0:
            table.add_row(module, f"+{objects}")
    return table


if __name__ == "__main__":
    sys.exit(main())
