"""A real Prometheus, and the Flask example under gunicorn with traffic for it to see."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

FLASK_EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "flask_app"
_ROUTES = ("/leakable", "/clean", "/users/{number}", "/search")


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        missing = f"{name} is not installed (Debian: apt-get install prometheus)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return found


class Prometheus:
    """Asks the HTTP API of a running Prometheus."""

    def __init__(self, url: str, connect: Callable[[str], Any]) -> None:
        self.url = url
        self._connect = connect

    def ask(self, what: str, **parameters: str) -> Any:
        """The data of an answer."""
        with self._connect(self.url) as connection:
            return json.loads(connection.text(f"/api/v1/{what}?{urlencode(parameters)}"))["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series, in the order of the answer."""
        found = self.ask("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def scalar(self, expression: str) -> float | None:
        """The one value of the answer; None if there is no series."""
        result = self.query(expression)
        assert len(result) <= 1, result
        return result[0][1] if result else None

    def by_route(self, expression: str) -> dict[str, float]:
        """The values by their `route` label."""
        return {labels["route"]: value for labels, value in self.query(expression)}

    def wait(self, expression: str, holds: Callable[[float | None], bool], seconds: float = 20) -> float | None:
        """Ask until the value is as wanted, and return it; fails after `seconds`."""
        deadline = time.monotonic() + seconds
        while not holds(value := self.scalar(expression)):
            if time.monotonic() > deadline:
                pytest.fail(f"{expression} is still {value} after {seconds} s; targets: {self.ask('targets')}")
            time.sleep(0.2)
        return value


@pytest.fixture
def example(serve: Callable[..., Any], free_port: Callable[[], int], tmp_path: Path) -> Callable[..., Any]:
    """`example(workers=1)` starts a copy of the Flask example under gunicorn, always on the same port.

    A single worker has no directory to share: it does without the example's configuration.
    """
    copy = shutil.copytree(FLASK_EXAMPLE, tmp_path / "flask_app", ignore=shutil.ignore_patterns(".heap_workers"))
    port = free_port()
    # Coverage keeps notes of its own on the heap; the figures are those of a service without it. Every request is
    # measured, or in these few seconds the unmeasured ones would be taken to be like those that filled the caches.
    bare = {"COVERAGE_PROCESS_CONFIG": None, "HEAP_MIDDLEWARE_SAMPLING": "1", "HEAP_MIDDLEWARE_WORKERS_WAIT": "5"}

    def start(workers: int = 1) -> Any:
        if workers == 1:
            (copy / "gunicorn.conf.py").unlink(missing_ok=True)
        return serve("gunicorn", app="app:app", cwd=copy, port=port, env=bare, args=["--workers", str(workers)])

    return start


@pytest.fixture
def warm_up(connect: Callable[[str], Any]) -> Callable[[str], int]:
    """Fill the caches of a server: urllib.parse remembers 128 URLs. Returns how many objects it leaked meanwhile."""

    def run(url: str) -> int:
        with connect(url) as connection:
            for number in range(200):
                for route in _ROUTES:
                    connection.text(route.format(number=number))
        return 200

    return run


@pytest.fixture
def watch(
    launch: Callable[..., Any], free_port: Callable[[], int], tmp_path: Path, connect: Callable[[str], Any]
) -> Callable[..., Prometheus]:
    """`watch(url, rules=None)` starts a Prometheus that scrapes the server at that URL every second."""

    def start(url: str, rules: Path | None = None) -> Prometheus:
        program = _tool("prometheus")
        config = tmp_path / "prometheus.yml"
        target = url.removeprefix("http://")
        config.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
            f"rule_files: [{rules or ''}]\n"
            f"scrape_configs: [{{job_name: example, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        address = f"127.0.0.1:{free_port()}"
        command = [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address={address}",
            "--log.level=warn",
        ]
        prometheus = Prometheus(launch(command, url=f"http://{address}", ready="/-/ready").url, connect)
        prometheus.wait("up", lambda value: value == 1)
        return prometheus

    return start


@pytest.fixture
def traffic(connect: Callable[[str], Any]) -> Callable[[str], AbstractContextManager[dict[str, int]]]:
    """`with traffic(url) as sent:` one client asks for routes in random order; `sent` counts requests by path."""

    @contextmanager
    def run(url: str) -> Iterator[dict[str, int]]:
        sent = dict.fromkeys(_ROUTES, 0)
        stop = threading.Event()
        failures: list[Exception] = []

        def client() -> None:
            try:
                with connect(url) as connection:
                    while not stop.is_set():
                        route = random.choice(_ROUTES)
                        path = route.format(number=random.randint(1, 1000))
                        for _ in range(random.randint(3, 5)):
                            connection.text(path)
                            sent[route] += 1
            except Exception as failure:
                failures.append(failure)

        thread = threading.Thread(target=client)
        thread.start()
        try:
            yield sent
        finally:
            stop.set()
            thread.join(15)
        assert failures == []

    return run


@pytest.fixture
def promtool() -> Callable[..., str]:
    """`promtool(*arguments, cwd=...)` runs it; what it said, and the test fails where it complains."""

    def run(*arguments: str, cwd: Path) -> str:
        done = subprocess.run([_tool("promtool"), *arguments], cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def check_metrics() -> Callable[[str], list[str]]:
    """`check_metrics(text)` returns the complaints of `promtool check metrics`, one a line."""

    def check(text: str) -> list[str]:
        command = [_tool("promtool"), "check", "metrics"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30)
        # 3: it could be read, and something was found.
        assert done.returncode in (0, 3), done.stderr or f"{sys.executable}: {command} failed"
        return done.stderr.splitlines()

    return check
