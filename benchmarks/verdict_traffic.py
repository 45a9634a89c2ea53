"""How good the verdict is on real traffic: leaking and clean routes, asked in turn, automatic sampling.

    python benchmarks/verdict_traffic.py [--interface wsgi|asgi] [--concurrency 1|32] [--json]

Each of the four combinations runs in a process of its own. All routes are asked equally often, in a loop without a
pause, which is the busiest that a service can be: sampling is at its coarsest. A round is 100 requests of each route,
and 15 seconds of the clock that the history is kept by. It goes on until all leaks are named; then they stop, and it
goes on until all verdicts are withdrawn.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from heap_middleware import HeapMonitor, HeapSettings
from heap_middleware.asgi import HeapMetricsMiddleware as ASGIMiddleware
from heap_middleware.wsgi import HeapMetricsMiddleware as WSGIMiddleware

WAYS = [(interface, concurrency) for interface in ("wsgi", "asgi") for concurrency in (1, 32)]
REQUESTS, SECONDS = 100, 15.0  # of a round
WARM_UP, LEAST, MOST = 40, 120, 600  # rounds: clean routes are warm; before the leaks stop; to wait for a verdict
CACHE, SESSIONS, REFILLED = 500, 300, 400


class Thing:
    def __init__(self, number: int) -> None:
        self.text = f"thing {number}"


@dataclass
class Routes:
    """What each route keeps. A lock is not needed: every step is atomic, and a lost one is none of the figures."""

    leaking = True

    def __post_init__(self) -> None:
        self.kept: list[Any] = []
        self.cache: OrderedDict[int, Thing] = OrderedDict()
        self.sessions: deque[Thing] = deque()
        self.filled: list[Thing] = []
        self.modules: list[Thing] = []
        self.chance = random.Random(1)

    def keep(self, thing: object) -> None:
        if self.leaking:
            self.kept.append(thing)

    def leak_objects(self, number: int) -> None:
        self.keep(Thing(number))

    def leak_strings(self, number: int) -> None:
        self.keep(f"{number} " * 10)

    def leak_tracebacks(self, number: int) -> None:
        if number % 10 == 0:
            try:
                {}[number]
            except KeyError as error:
                self.keep(error)

    def leak_buffers(self, number: int) -> None:
        self.keep(bytearray(2000))

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

    def clean_modules(self, number: int) -> None:
        if number in (200, 700):
            self.modules += [Thing(at) for at in range(2000)]


NAMES = [name for name in vars(Routes) if name.startswith(("leak_", "clean"))]
LEAKS = {f"/{name}" for name in NAMES if name.startswith("leak_")}


def wsgi_requests(monitor: HeapMonitor, routes: Routes, concurrency: int) -> Callable[[list[tuple[str, int]]], None]:
    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        name, number = environ["asked"]
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
        return lambda several: [request(asked) for asked in several] and None
    pool = ThreadPoolExecutor(concurrency)
    return lambda several: deque(pool.map(request, several), maxlen=0) and None


def asgi_requests(monitor: HeapMonitor, routes: Routes, concurrency: int) -> Callable[[list[tuple[str, int]]], None]:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        name, number = scope["asked"]
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

    async def client(several: "deque[tuple[str, int]]") -> None:
        while several:
            scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "asked": several.popleft()}
            await asyncio.create_task(wrapped(scope, receive, send))  # type: ignore[arg-type]

    loop = asyncio.new_event_loop()

    async def serve(several: list[tuple[str, int]]) -> None:
        left = deque(several)
        await asyncio.gather(*(client(left) for _ in range(concurrency)))

    return lambda several: loop.run_until_complete(serve(several))


def route_of(request: Any) -> str:
    return f"/{request['asked'][0]}"


@dataclass
class Outcome:
    """What was said of each route, in requests to each."""

    interface: str
    concurrency: int
    interval: int
    """One allocation in how many was recorded at the end."""
    named: dict[str, int]
    """The leaking routes: requests until the verdict, which held from then on."""
    slopes: dict[str, float]
    withdrawn: dict[str, int]
    """Requests after the leak's end until it was said no more."""
    alarms: dict[str, list[int]]
    """The clean routes that were named after warm-up, and when."""


def run(interface: str, concurrency: int) -> Outcome:
    """Raises RuntimeError if a leak is not named, or not withdrawn."""
    ahead = 0.0
    real = time.time
    time.time = lambda: real() + ahead  # before the monitor takes it
    monitor = HeapMonitor(HeapSettings(attribution="native", census_min_interval=3600, route_of=route_of))
    routes = Routes()
    ask = (wsgi_requests if interface == "wsgi" else asgi_requests)(monitor, routes, concurrency)
    chance = random.Random(2)
    rounds = 0
    alarms: dict[str, list[int]] = {}

    def another_round() -> dict[str, float]:
        nonlocal ahead, rounds
        asked = [(name, rounds * REQUESTS + at) for name in NAMES for at in range(REQUESTS)]
        chance.shuffle(asked)
        ask(asked)
        ahead += SECONDS
        rounds += 1
        said = {suspect.endpoint.route: suspect.objects_per_request for suspect in monitor.verdicts()}
        for route in said.keys() - LEAKS:
            if rounds > WARM_UP:
                alarms.setdefault(route, []).append(rounds * REQUESTS)
        return said

    named: dict[str, int] = {}
    slopes: dict[str, float] = {}
    while rounds < LEAST or named.keys() != LEAKS:
        if rounds == MOST:
            raise RuntimeError(f"not named after {MOST * REQUESTS} requests: {LEAKS - named.keys()}; {named}")
        said = another_round()
        slopes |= said
        named = {route: named.get(route, rounds * REQUESTS) for route in LEAKS & said.keys()}
    routes.leaking = False
    stopped = rounds
    withdrawn: dict[str, int] = {}
    while withdrawn.keys() != LEAKS:
        if rounds == stopped + MOST:
            raise RuntimeError(f"not withdrawn after {MOST * REQUESTS} requests: {LEAKS - withdrawn.keys()}")
        said = another_round()
        withdrawn = {route: withdrawn.get(route, (rounds - stopped) * REQUESTS) for route in LEAKS - said.keys()}
    time.time = real
    interval = (monitor.own_figures().tracker or (0, 0))[1]
    return Outcome(
        interface, concurrency, interval, named, {route: slopes[route] for route in LEAKS}, withdrawn, alarms
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="How good the verdict is on real traffic.")
    parser.add_argument("--interface", choices=("wsgi", "asgi"))
    parser.add_argument("--concurrency", type=int, choices=(1, 32))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.interface and arguments.concurrency:
        show(run(arguments.interface, arguments.concurrency), as_json=arguments.json)
        return
    for interface, concurrency in WAYS:
        command = [sys.executable, __file__, "--interface", interface, "--concurrency", str(concurrency)]
        subprocess.run([*command, *(["--json"] if arguments.json else [])], check=True)


def show(found: Outcome, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(found)), flush=True)
        return
    print(f"{found.interface}, {found.concurrency} at once, one in {found.interval} recorded at the end")
    for route, requests in sorted(found.named.items()):
        print(
            f"  {route:18} named after {requests:>6,} requests with {found.slopes[route]:.2f} a request; "
            f"withdrawn {found.withdrawn[route]:>6,} after it stopped"
        )
    print(f"  clean routes named after warm-up: {found.alarms or 'none'}", flush=True)


if __name__ == "__main__":
    main()
