"""A service of several workers, and clients that keep count."""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

HERE = Path(__file__).parent
Key = tuple[str, ...]
_CENSUS_MIN_INTERVAL = 0.2  # a second would be slept through many times


def ask(url: str, path: str) -> int:
    """Ask over a connection of its own, which may lead to another worker; returns the id of the one that answered."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        return int(answer.read())
    finally:
        connection.close()


@dataclass
class Service:
    """A server with several workers, which share a directory."""

    server: Any
    directory: Path
    connect: Callable[[str], Any]

    @property
    def url(self) -> str:
        return str(self.server.url)

    def scrape(self) -> dict[Key, float]:
        """The samples of /metrics by name and label values; a worker that dies meanwhile is asked again."""
        for _ in range(20):
            try:
                with self.connect(self.url) as connection:
                    text = connection.text("/metrics")
                break
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)
        return {
            (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def settled(self) -> dict[Key, float]:
        """The same once nothing is younger than a scrape would show."""
        time.sleep(1.5 * _CENSUS_MIN_INTERVAL)
        return self.scrape()

    def await_workers(self, number: int) -> None:
        """Return once so many workers listen to the others: each does from its first request on."""
        deadline = time.monotonic() + 20
        while self.files()["bell"] < number:
            assert time.monotonic() < deadline, self.files()
            time.sleep(0.02)

    def visit(self, *paths: str) -> Counter[int]:
        """Ask for each path; which processes answered how often."""
        return Counter(ask(self.url, path) for path in paths)

    def complaints(self) -> list[str]:
        """What the middleware had to say; that the accelerator is missing is none."""
        lines = self.server.log.splitlines()
        return [line for line in lines if "heap_middleware" in line and "runs in pure Python" not in line]

    def files(self) -> Counter[str]:
        """How many files of each kind are in the directory."""
        return Counter(path.suffix.removeprefix(".") or path.name for path in self.directory.glob("format-*/*"))


@pytest.fixture
def workers(serve: Callable[..., Any], connect: Callable[[str], Any], tmp_path: Path) -> Callable[..., Service]:
    """`workers("gunicorn" | "uvicorn", *options, number=4, **settings)` serves application.py with several workers."""

    def start(kind: str, *options: str, number: int = 4, directory: str = "shared", **settings: object) -> Service:
        path = tmp_path / directory
        settings = {"census_min_interval": _CENSUS_MIN_INTERVAL, **settings}
        variables = {f"HEAP_MIDDLEWARE_{name.upper()}": str(value) for name, value in settings.items()}
        # Coverage keeps notes of its own on the heap, and a killed process leaves them half-written.
        env = {"HEAP_MIDDLEWARE_WORKERS_DIR": str(path), "COVERAGE_PROCESS_CONFIG": None, **variables}
        app = "application:wsgi" if kind == "gunicorn" else "application:asgi"
        args = ["--workers", str(number), *options]
        return Service(serve(kind, app=app, cwd=HERE, args=args, env=env), path, connect)

    return start


@dataclass
class Traffic:
    """What clients saw."""

    answered: list[tuple[float, str, int]] = field(default_factory=list)
    """When, which path, and which process answered."""
    failed: int = 0
    """Requests without a whole answer: the worker was killed meanwhile."""


@pytest.fixture
def clients() -> Callable[..., Any]:
    """`with clients(url, paths, number=8, requests=20000) as (traffic, busy):` sends that many while the block runs."""

    @contextmanager
    def run(
        url: str, paths: Sequence[str], *, number: int, requests: int
    ) -> Iterator[tuple[Traffic, Callable[[], bool]]]:
        traffic = Traffic()
        left = iter(range(requests))

        def client() -> None:
            for turn in left:
                path = paths[turn % len(paths)]
                try:
                    traffic.answered.append((time.monotonic(), path, ask(url, path)))
                except (OSError, http.client.HTTPException, ValueError):
                    traffic.failed += 1

        threads = [threading.Thread(target=client) for _ in range(number)]
        for thread in threads:
            thread.start()
        try:
            yield traffic, lambda: any(thread.is_alive() for thread in threads)
        finally:
            for _ in left:  # if the block failed: no more
                pass
            for thread in threads:
                thread.join(60)

    return run
