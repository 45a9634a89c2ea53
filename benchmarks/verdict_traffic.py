"""How good the verdict is on real traffic: leaking and clean routes, asked in turn, automatic sampling.

    python benchmarks/verdict_traffic.py [--backend native|windows --interface wsgi|asgi --concurrency 1|32] [--json]

Each combination runs in a process of its own. All routes are asked equally often, in a loop without a pause, which is
the busiest that a service can be: sampling is at its coarsest. A round is 100 requests of each route, and 15 seconds of
the clock that the history is kept by. It goes on until all leaks are named; then they stop, and it goes on until all
verdicts are withdrawn. A clean route that is named makes it exit with 1.

Pure Python ("windows") measures one request at a time, after another of the same route, and a part of these: there,
ten requests of a route come in a row, nothing overlaps, and the budget is what a service of few requests a second has.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from heap_middleware import HeapMonitor, HeapSettings
from heap_middleware.asgi import HeapMetricsMiddleware as ASGIMiddleware
from heap_middleware.endpoints.suspects import Suspect
from heap_middleware.endpoints.trend import Z
from heap_middleware.wsgi import HeapMetricsMiddleware as WSGIMiddleware

WAYS = [
    *(("native", interface, concurrency) for interface in ("wsgi", "asgi") for concurrency in (1, 32)),
    *(("windows", interface, 1) for interface in ("wsgi", "asgi")),
]
REQUESTS, SECONDS = 100, 15.0  # of a round
WARM_UP, LEAST, MOST = 40, 120, 2000  # rounds: clean routes are warm; before the leaks stop; to wait for a verdict
IN_A_ROW = {"native": 1, "windows": 10}
BUDGET = {"native": 0.01, "windows": 1.0}
CACHE, SESSIONS, REFILLED, POOL, TTL = 500, 300, 400, 20, 7 * SECONDS


class Thing:
    def __init__(self, number: int) -> None:
        self.text = f"thing {number}"


@dataclass
class Routes:
    """What each route keeps. A lock is not needed: every step is atomic, and a lost one is none of the figures."""

    leaking = True
    served = 0

    def __post_init__(self) -> None:
        self.kept: list[Any] = []
        self.cache: OrderedDict[int, Thing] = OrderedDict()
        self.sessions: deque[Thing] = deque()
        self.filled: list[Thing] = []
        self.modules: list[Thing] = []
        self.pool: list[list[Thing]] = []
        self.expiring: deque[tuple[float, Thing]] = deque()
        self.chance = random.Random(1)

    def keep(self, thing: object) -> None:
        if self.leaking:
            self.kept.append(thing)

    def leak_objects(self, number: int) -> None:
        self.keep(Thing(number))

    def leak_strings(self, number: int) -> None:
        self.keep(f"{number} " * 10)

    def leak_tracebacks(self, number: int) -> None:
        if number % 10 == 5:
            try:
                {}[number]
            except KeyError as error:
                self.keep(error)

    def leak_buffers(self, number: int) -> None:
        self.keep(bytearray(2000))

    def leak_classes(self, number: int) -> None:
        if number % 3 == 0:
            self.keep(type(f"Made{number}", (), {}))

    def leak_tasks(self, number: int) -> None:
        """Work that never ends: a task where there is a loop, else a generator that waits."""
        if self.leaking:
            try:
                self.keep(asyncio.get_running_loop().create_task(asyncio.Event().wait()))
            except RuntimeError:
                waiting = waits(number)
                next(waiting)
                self.keep(waiting)

    def clean(self, number: int) -> None:
        json.dumps([{"number": at} for at in range(5)])

    def clean_cache(self, number: int) -> None:
        key = self.chance.randrange(3 * CACHE)
        if key not in self.cache:
            self.cache[key] = Thing(key)
        while len(self.cache) > CACHE:
            self.cache.popitem(last=False)

    def clean_sessions(self, number: int) -> None:
        self.sessions.append(Thing(number))
        while len(self.sessions) > SESSIONS:
            self.sessions.popleft()

    def clean_cycles(self, number: int) -> None:
        for _ in range(3):
            thing = Thing(number)
            thing.itself = thing  # type: ignore[attr-defined]

    def clean_refilled(self, number: int) -> None:
        self.filled.append(Thing(number))
        if len(self.filled) >= REFILLED:
            self.filled = []

    def clean_pool(self, number: int) -> None:
        """Connections are made when more are needed than there are."""
        needed = min(POOL, int(self.chance.expovariate(1 / 3)))
        while len(self.pool) < needed:
            self.pool.append([Thing(at) for at in range(10)])

    def clean_expiring(self, number: int) -> None:
        now = time.time()
        self.expiring.append((now, Thing(number)))
        while self.expiring[0][0] < now - TTL:
            self.expiring.popleft()

    def clean_modules(self, number: int) -> None:
        if number in (200, 700):
            self.modules += [Thing(at) for at in range(2000)]


def waits(number: int) -> Iterator[int]:
    yield number


NAMES = [name for name in vars(Routes) if name.startswith(("leak_", "clean"))]
BLIND = {"native": set(), "windows": {"leak_tracebacks", "clean_expiring"}}
"""What a kept traceback holds is the request's own environ, which ends its window; and what expires by the clock goes
when a route was not asked for a while, which is in no window. docs/limits.md says so."""


Asked = Iterator[tuple[str, int]]
"""Route and number of each request. No list: what is kept with a traceback holds the frames of all callers."""


def wsgi_requests(monitor: HeapMonitor, routes: Routes, concurrency: int) -> Callable[[Asked], None]:
    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        name, number = environ["asked"]
        routes.served += 1
        getattr(routes, name)(number)
        start_response("200 OK", [])
        return [b"answer"]

    wrapped = WSGIMiddleware(application, monitor=monitor)

    def request(asked: tuple[str, int]) -> None:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "SCRIPT_NAME": "", "asked": asked}
        body = wrapped(environ, lambda *_: None)  # type: ignore[arg-type, return-value]
        b"".join(body)
        close = getattr(body, "close", None)
        if close is not None:
            close()

    if concurrency == 1:
        return lambda several: deque(map(request, several), maxlen=0) and None
    pool = ThreadPoolExecutor(concurrency)
    return lambda several: deque(pool.map(request, several), maxlen=0) and None


def asgi_requests(monitor: HeapMonitor, routes: Routes, concurrency: int) -> Callable[[Asked], None]:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        name, number = scope["asked"]
        routes.served += 1
        if concurrency > 1:
            await asyncio.sleep(0)
        getattr(routes, name)(number)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})

    wrapped = ASGIMiddleware(application, monitor=monitor)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    async def client(several: Asked) -> None:
        for asked in several:
            scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "asked": asked}
            await asyncio.create_task(wrapped(scope, receive, send))  # type: ignore[arg-type]

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # or each task that never ends is told of in the end

    async def serve(several: Asked) -> None:
        await asyncio.gather(*(client(several) for _ in range(concurrency)))

    return lambda several: loop.run_until_complete(serve(several))


def route_of(request: Any) -> str:
    return f"/{request['asked'][0]}"


@dataclass
class Outcome:
    """What was said of each route, in requests to each."""

    backend: str
    interface: str
    concurrency: int
    interval: int
    """One allocation in how many was recorded at the end."""
    named: dict[str, int]
    """The leaking routes: requests until the verdict, which held from then on."""
    slopes: dict[str, float]
    errors: dict[str, float]
    """Standard errors of the slopes."""
    withdrawn: dict[str, int]
    """Requests after the leak's end until it was said no more."""
    alarms: dict[str, list[int]]
    """The clean routes that were named after warm-up, and when."""


def run(backend: str, interface: str, concurrency: int) -> Outcome:
    """Raises RuntimeError if a leak is not named, or not withdrawn."""
    routes = Routes()
    began, real = time.time(), time.time
    time.time = lambda: began + routes.served * SECONDS / (REQUESTS * len(NAMES))  # before the monitor takes it
    settings = HeapSettings(
        attribution=backend, overhead_budget=BUDGET[backend], census_min_interval=3600, route_of=route_of
    )
    monitor = HeapMonitor(settings)
    ask = (wsgi_requests if interface == "wsgi" else asgi_requests)(monitor, routes, concurrency)
    chance = random.Random(2)
    rounds, row = 0, IN_A_ROW[backend]
    names = [name for name in NAMES if name not in BLIND[backend]]
    leaks = {f"/{name}" for name in names if name.startswith("leak_")}
    rows = [(name, first) for name in names for first in range(0, REQUESTS, row)]
    alarms: dict[str, list[int]] = {}

    def another_round() -> dict[str, Suspect]:
        nonlocal rounds
        chance.shuffle(rows)
        ask((name, rounds * REQUESTS + first + at) for name, first in rows for at in range(row))
        rounds += 1
        said = {suspect.endpoint.route: suspect for suspect in monitor.verdicts()}
        for route in said.keys() - leaks:
            if rounds > WARM_UP:
                alarms.setdefault(route, []).append(rounds * REQUESTS)
        return said

    named: dict[str, int] = {}
    latest: dict[str, Suspect] = {}
    while rounds < LEAST or named.keys() != leaks:
        if rounds == MOST:
            raise RuntimeError(f"not named after {MOST * REQUESTS} requests: {leaks - named.keys()}; {named}")
        said = another_round()
        latest |= said
        named = {route: named.get(route, rounds * REQUESTS) for route in leaks & said.keys()}
    routes.leaking = False
    stopped = rounds
    withdrawn: dict[str, int] = {}
    while withdrawn.keys() != leaks:
        if rounds == stopped + MOST:
            raise RuntimeError(f"not withdrawn after {MOST * REQUESTS} requests: {leaks - withdrawn.keys()}")
        said = another_round()
        withdrawn = {route: withdrawn.get(route, (rounds - stopped) * REQUESTS) for route in leaks - said.keys()}
    time.time = real
    interval = (monitor.own_figures().tracker or (0, 0))[1]
    return Outcome(
        backend,
        interface,
        concurrency,
        interval,
        named,
        {route: latest[route].objects_per_request for route in leaks},
        {route: (latest[route].upper - latest[route].lower) / 2 / Z for route in leaks},
        withdrawn,
        alarms,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="How good the verdict is on real traffic.")
    parser.add_argument("--backend", choices=("native", "windows"), default="native")
    parser.add_argument("--interface", choices=("wsgi", "asgi"))
    parser.add_argument("--concurrency", type=int, choices=(1, 32))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.interface and arguments.concurrency:
        found = run(arguments.backend, arguments.interface, arguments.concurrency)
        show(found, as_json=arguments.json)
        sys.exit(1 if found.alarms else 0)
    for backend, interface, concurrency in WAYS:
        command = [sys.executable, __file__, "--backend", backend, "--interface", interface]
        command += ["--concurrency", str(concurrency)]
        subprocess.run([*command, *(["--json"] if arguments.json else [])], check=True)


def show(found: Outcome, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(found)), flush=True)
        return
    way = f"{found.backend}, {found.interface}, {found.concurrency} at once"
    print(f"{way}, one in {found.interval} recorded at the end" if found.interval else way)
    for route, requests in sorted(found.named.items()):
        print(
            f"  {route:18} named after {requests:>6,} requests with {found.slopes[route]:.2f} a request; "
            f"withdrawn {found.withdrawn[route]:>6,} after it stopped"
        )
    print(f"  clean routes named after warm-up: {found.alarms or 'none'}", flush=True)


if __name__ == "__main__":
    main()
