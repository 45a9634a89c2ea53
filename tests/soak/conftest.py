"""Two services under fire, and clients of which every second request has a fault."""

import hashlib
import http.client
import os
import random
import re
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

HERE = Path(__file__).parent
INTERVAL = 0.5
REQUESTS = "heap_endpoint_requests_total"
LOGGED = re.compile(r"\[[-:+ \d]+\] \[\d+\] \[\w+\] |LOG |INFO: |$")
SETTINGS = {"CENSUS_MIN_INTERVAL": "0.2", "PUBLISH_INTERVAL": str(INTERVAL), "HISTORY_POINTS": "20"}


@dataclass
class Answered:
    """An answer that came as it should."""

    when: float
    service: str
    pid: int
    """0 if the server said it, because the application had failed."""


@dataclass
class Seen:
    """What all clients saw."""

    answered: list[Answered] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    """Requests to each service of which the service may know."""
    faults: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    """Those that had no whole answer, by service: their worker was killed meanwhile, or they left by themselves."""
    wrong: list[str] = field(default_factory=list)


@dataclass
class Service:
    name: str
    server: Any
    directory: Path | None = None
    seen: list[float] = field(default_factory=list)
    """The total of each scrape."""
    memory: list[int] = field(default_factory=list)
    """Resident bytes of the server's first process at each scrape."""
    before: float = 0.0
    """The total before the clients came."""

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.server.url.removeprefix("http://").split(":")
        return host, int(port)

    @property
    def pid(self) -> int:
        return int(self.server.process.pid)

    def scrape(self) -> dict[str, float]:
        """Requests by route, as /metrics says; a worker that dies meanwhile is asked again."""
        for _ in range(50):
            try:
                answer = httpx.get(self.server.url + "/metrics", timeout=30)
                break
            except httpx.TransportError:
                time.sleep(0.02)
        assert answer.status_code == 200, answer.text
        samples = [one for family in text_string_to_metric_families(answer.text) for one in family.samples]
        found = {one.labels["route"]: one.value for one in samples if one.name == REQUESTS}
        self.seen.append(sum(found.values()))
        self.memory.append(int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"))
        return found

    def settled(self) -> float:
        """The total once nobody asks and everything has been published."""
        time.sleep(3 * INTERVAL)
        return sum(self.scrape().values())

    def complaints(self) -> list[str]:
        """Lines of its log that are no record of the server's, and those of ours."""
        lines = self.server.log.splitlines()
        return [line for line in lines if not LOGGED.match(line) or line.startswith("LOG heap_middleware")]

    def children(self) -> list[int]:
        """The living children."""
        return [int(pid) for pid, state in self._listed() if state[0] != "Z"]

    def zombies(self) -> list[int]:
        """The dead ones that nobody has taken note of."""
        return [int(pid) for pid, state in self._listed() if state[0] == "Z"]

    def _listed(self) -> list[list[str]]:
        command = ["ps", "-o", "pid=,stat=", "--ppid", str(self.pid)]
        listed = subprocess.run(command, capture_output=True, text=True).stdout
        return [line.split() for line in listed.splitlines()]

    def held(self) -> dict[str, int]:
        """The most descriptors and threads that a process of the service has."""
        processes = [self.pid, *self.children()]
        return {
            kind: max(len(list(Path(f"/proc/{pid}/{kind}").iterdir())) for pid in processes) for kind in ("fd", "task")
        }


class Client:
    """One client of both services. A fault is a method that begins with `fault_`."""

    def __init__(self, services: list[Service], seen: Seen, seed: int) -> None:
        self.services, self.seen, self.chance = services, seen, random.Random(seed)
        self.faults = sorted(name for name in dir(self) if name.startswith("fault_"))

    def go_on(self, over: Callable[[], bool]) -> None:
        while not over():
            service = self.chance.choice(self.services)
            self.seen.sent[service.name] += 1
            if self.chance.random() < 0.5:
                ask = self.chance.choice([self.text, self.echo])
            else:
                ask = getattr(self, self.chance.choice(self.faults))
                self.seen.faults[ask.__name__.removeprefix("fault_").replace("_", " ")] += 1
            try:
                ask(service)
            except (OSError, http.client.HTTPException):
                self.seen.unanswered[service.name] += 1

    def request(self, service: Service, path: str, due: int, body: bytes | None = None, pause: float = 0.0) -> bytes:
        """An answer of the status that is due; `pause` before each piece is read."""
        connection = http.client.HTTPConnection(*service.address, timeout=30)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            answer = connection.getresponse()
            pieces = []
            while piece := answer.read(8192):
                pieces.append(piece)
                time.sleep(pause)
        finally:
            connection.close()
        if answer.status != due:
            self.seen.wrong.append(f"{service.name} {path}: {answer.status} {b''.join(pieces)[:200]!r}")
        pid = int(answer.headers.get("X-Process", 0))
        self.seen.answered.append(Answered(time.monotonic(), service.name, pid))
        return b"".join(pieces)

    def text(self, service: Service, pause: float = 0.0) -> None:
        number = self.chance.randrange(1000)
        found = self.request(service, f"/text/{number}", 200, pause=pause)
        due = b"".join(hashlib.sha256(f"{number} {at}".encode()).digest() * 128 for at in range(16))
        if found != due:
            self.seen.wrong.append(f"{service.name} /text/{number}: {len(found)} bytes")

    def echo(self, service: Service) -> None:
        body = self.chance.randbytes(self.chance.randrange(1, 50_000))
        if self.request(service, f"/echo/{len(body)}", 200, body).decode() != hashlib.sha256(body).hexdigest():
            self.seen.wrong.append(f"{service.name} /echo/{len(body)}")

    def fault_slow_reader(self, service: Service) -> None:
        self.text(service, pause=0.02)

    def fault_raises(self, service: Service) -> None:
        self.request(service, "/raise/0", 500)

    def fault_out_of_memory(self, service: Service) -> None:
        self.request(service, "/memory/0", 500)

    def fault_clock_jumps(self, service: Service) -> None:
        self.request(service, f"/clock/{self.chance.choice([-7200, 7200, -0.5, 86400, -86400])}", 200)

    def fault_leaves_midway(self, service: Service) -> None:
        with self.connected(service) as connection:
            connection.sendall(f"GET /text/{self.chance.randrange(1000)} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
            connection.recv(self.chance.randrange(1, 9000))
        self.seen.unanswered[service.name] += 1

    def fault_body_cut_short(self, service: Service) -> None:
        with self.connected(service) as connection:
            connection.sendall(b"POST /echo/9000 HTTP/1.1\r\nHost: here\r\nContent-Length: 9000\r\n\r\n" + bytes(4000))
        self.seen.unanswered[service.name] += 1

    @contextmanager
    def connected(self, service: Service) -> Iterator[socket.socket]:
        """A connection that ends with a reset, or politely."""
        with socket.create_connection(service.address, timeout=30) as connection:
            if self.chance.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            yield connection


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, where there may be one: root alone can mount it."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", path], capture_output=True)
    assert mounted.returncode == 0 or os.geteuid() != 0, mounted.stderr
    yield path
    if mounted.returncode == 0:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def services(serve: Callable[..., Any], small_disk: Path) -> list[Service]:
    """gunicorn with four workers, which share a directory on the small disk, and uvicorn."""
    environment = {"COVERAGE_PROCESS_CONFIG": None, **{f"HEAP_MIDDLEWARE_{k}": v for k, v in SETTINGS.items()}}
    directory = small_disk / "workers"
    shared = {**environment, "HEAP_MIDDLEWARE_WORKERS_DIR": str(directory)}
    gunicorn = serve("gunicorn", app="application:wsgi", cwd=HERE, args=["--workers", "4"], env=shared)
    uvicorn = serve("uvicorn", app="application:asgi", cwd=HERE, env=environment)
    return [Service("gunicorn", gunicorn, directory), Service("uvicorn", uvicorn)]


@pytest.fixture
def clients() -> Callable[..., Any]:
    """`with clients(services, number=16) as seen:` has so many clients asking while the block runs."""

    @contextmanager
    def run(services: list[Service], number: int) -> Iterator[Seen]:
        seen, over = Seen(), threading.Event()
        several = [Client(services, seen, seed) for seed in range(number)]
        threads = [threading.Thread(target=client.go_on, args=(over.is_set,)) for client in several]
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            over.set()
            for thread in threads:
                thread.join(60)

    return run
