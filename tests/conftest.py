"""Real servers for the tests: started on a free loopback port, torn down with the test."""

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from heap_middleware import accelerator
from heap_middleware.workers import publisher

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the accelerator its tests are skipped; in CI they fail."""
    for item in items:
        if "tests/native" in item.path.as_posix():
            item.add_marker(pytest.mark.accelerator)
        if item.get_closest_marker("accelerator") is not None and accelerator.missing is not None:
            assert not os.environ.get("CI"), f"the accelerator was not built: {accelerator.missing}"
            item.add_marker(pytest.mark.skip(f"the accelerator was not built: {accelerator.missing}"))


@pytest.fixture(autouse=True)
def _no_ticks_of_another_test() -> Iterator[None]:
    """Monitors that a test leaves behind are looked after no longer: their thread would disturb counts of objects."""
    yield
    publisher._publisher._due.clear()


@pytest.fixture
def own_sampling() -> None:
    """The next monitor's `sampling` holds: a process has one tracker, with the settings of the first monitor."""
    if accelerator.missing is None and accelerator.native.statistics()["running"]:
        accelerator.native.stop()


@dataclass
class Server:
    """A server that answers at `url` until `stop()`."""

    url: str
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        """What it has written to its standard output and error so far."""
        return self.log_path.read_text(errors="replace")

    def stop(self) -> None:
        """Ask it to end, and see to it that it does. May be called twice."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(_STOP_SECONDS)


class Connection:
    """A client that takes little of the machine's time: httpx takes five times as much, and the tests ask a lot."""

    def __init__(self, url: str, timeout: float = 30) -> None:
        self._http = http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def text(self, path: str) -> str:
        """The text of an answer, which must be 200."""
        status, text = self.get(path)
        assert status == 200, f"{path}: {status} {text}"
        return text

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Status and text. Where the server has closed the connection, it asks again over a new one."""
        try:
            return self._get(path, headers or {})
        except (http.client.HTTPException, ConnectionError):
            self.close()
            return self._get(path, headers or {})

    def close(self) -> None:
        self._http.close()

    def _get(self, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        self._http.request("GET", path, headers=dict(headers))
        answer = self._http.getresponse()
        return answer.status, answer.read().decode()


@pytest.fixture
def connect() -> type[Connection]:
    """`with connect(url) as connection: status, text = connection.get(path)`."""
    return Connection


Launch = Callable[..., Server]


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A callable that returns a loopback port nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return find


@pytest.fixture
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """`launch(command, url=, ready=, cwd=, env=)` starts a process and waits for an answer from `url + ready`, not 503.

    Its log is shown with a failing test. Environment variables come on top of those of the tests, which servers need
    for coverage; None takes one away.
    """
    started: list[Server] = []

    def run(
        command: Sequence[str],
        *,
        url: str,
        ready: str = "/metrics",
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> Server:
        directory = tmp_path_factory.mktemp("server")
        log_path = directory / "log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=cwd or directory,
                env={name: value for name, value in {**os.environ, **(env or {})}.items() if value is not None},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        server = Server(url, process, log_path)
        started.append(server)
        _wait_until_ready(server, ready)
        return server

    yield run
    for server in reversed(started):
        server.stop()
        print(f"--- log of {server.url}\n{server.log}")


@pytest.fixture
def serve(launch: Launch, free_port: Callable[[], int]) -> Launch:
    """`serve("gunicorn" | "uvicorn", app="module:app", cwd=..., args=[...], env={...}, port=..., ready=...)`.

    Starts the server with one worker on a free loopback port and returns a `Server` once it answers. `cwd` is where
    the module is imported from; `ready` is the path asked until any answer comes.
    """

    def run(
        kind: str,
        *,
        app: str,
        cwd: Path | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str | None] | None = None,
        port: int | None = None,
        ready: str = "/metrics",
    ) -> Server:
        port = port or free_port()
        address = {
            "gunicorn": ["--bind", f"127.0.0.1:{port}", "--workers", "1"],
            "uvicorn": ["--host", "127.0.0.1", "--port", str(port), "--no-access-log"],
        }[kind]
        command = [sys.executable, "-m", kind, *address, *args, app]
        return launch(command, url=f"http://127.0.0.1:{port}", ready=ready, cwd=cwd, env=env)

    return run


def _wait_until_ready(server: Server, ready: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with Connection(server.url, timeout=5) as connection:
                status, _ = connection.get(ready)
            if status != http.HTTPStatus.SERVICE_UNAVAILABLE:
                return
        except (OSError, http.client.HTTPException):
            pass  # it does not listen yet
        time.sleep(0.05)
    pytest.fail(f"no answer from {server.url}, exit code {server.process.poll()}; its log:\n{server.log}")
