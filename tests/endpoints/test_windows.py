"""The windows backend on a heap of our own making: the rules at the top of windows.py, one by one."""

import asyncio
from typing import Any

import pytest

from heap_middleware.endpoints import windows
from heap_middleware.endpoints.ledger import Endpoint, Ledger
from heap_middleware.endpoints.windows import Level, WindowRecorder

ROUTE = Endpoint("GET", "/route")


class Heap:
    """A heap that counts what the test says, and a clock that the test moves."""

    def __init__(self) -> None:
        self.blocks = 1_000
        self.now = 0.0
        self.cost = 0.0

    def settle(self) -> None:
        self.now += self.cost


class Server:
    """Serves requests one after the other through a recorder, as a server of the given kind would."""

    def __init__(self, level: Level = Level.RELEASE, **settings: Any) -> None:
        self.heap = Heap()
        self.level = level
        self.ledger = Ledger()
        self.recorder = WindowRecorder(
            self.ledger,
            clock=lambda: self.heap.now,
            allocated_blocks=lambda: self.heap.blocks,
            settle=self.heap.settle,
            **settings,
        )
        self.last: dict[str, Any] = {}

    def serve(
        self,
        change: int = 0,
        *,
        route: str | None = "/route",
        headers: int = 0,
        keep: Any = None,
        client: Any = None,
        threads: bool = False,
    ) -> None:
        if self.level is Level.RELEASE:
            held: dict[str, Any] = {f"HTTP_{number}": "" for number in range(headers)}
            held["wsgi.multithread"] = threads
            held["REMOTE_PORT"] = client or "5000"
            alive = 2 * headers
        else:
            # The server's connection lets go of the last scope while it builds the new one.
            held = self.last = {"headers": [(b"name", b"value")] * headers, "client": client}
            alive = 2 * headers
            self.heap.blocks += alive
        window = self.recorder.begin(held, self.level)
        if self.level is Level.ARRIVAL:
            self.heap.blocks -= alive
        self.heap.blocks += change
        self.recorder.finish(window, held, self.level, "GET", route)
        if self.level is Level.RELEASE:
            self.heap.blocks += alive
            if keep is not None:
                keep.append(held)
            del held
            self.heap.blocks -= alive

    def serve_many(self, count: int, change: int = 0, **how: Any) -> None:
        for _ in range(count):
            self.serve(change, **how)

    @property
    def totals(self) -> Any:
        return self.ledger.snapshot()[ROUTE]


@pytest.fixture(params=list(Level))
def server(request: pytest.FixtureRequest) -> Server:
    return Server(request.param)


def test_a_leak_is_measured_to_the_block(server: Server) -> None:
    """A route that leaves three blocks a request is charged three blocks a request."""
    server.serve_many(100, change=3)
    assert server.totals.requests == 100
    assert server.totals.measured >= 95
    assert server.totals.gained == 3 * server.totals.measured
    assert server.totals.lost == 0


def test_a_clean_route_is_charged_nothing(server: Server) -> None:
    """A route that leaves nothing is charged nothing, however many headers its clients send."""
    for number in range(100):
        server.serve(headers=number % 17)
    assert server.totals.measured >= 95
    assert (server.totals.gained, server.totals.lost) == (0, 0)


def test_given_back_counts_as_lost(server: Server) -> None:
    """What a route frees is counted as lost, so that gained minus lost is the net change."""
    server.serve_many(50, change=2)
    server.serve_many(50, change=-2)
    assert server.totals.lost > 0
    assert abs(server.totals.gained - server.totals.lost) <= 10


def test_overlapping_requests_are_not_measured(server: Server) -> None:
    """Of requests that overlap, none is measured, and all are counted."""
    server.serve_many(10)
    measured = server.totals.measured
    for _ in range(20):
        first, second = {}, {}
        windows = [server.recorder.begin(held, server.level) for held in (first, second)]
        for window, held in zip(windows, (first, second), strict=True):
            server.recorder.finish(window, held, server.level, "GET", "/route")
        del held, first, second
    # The last window before the crowd may still have ended well.
    assert server.totals.measured <= measured + 1
    assert server.totals.requests == 50


def test_only_after_a_request_of_the_same_route(server: Server) -> None:
    """A request after one of another route is not measured: it clears what that one left."""
    for _ in range(50):
        server.serve(5, route="/route")
        server.serve(-5, route="/other")
    assert server.totals.measured == 0


def test_a_scrape_is_nobodys_doing(server: Server) -> None:
    """What a scrape leaves on the heap is charged to no route, nor to one that is served meanwhile."""
    for _ in range(50):
        server.serve_many(3)
        with server.recorder.disturbing():
            server.heap.blocks += 1_000
            server.serve_many(3)
            server.heap.blocks += 1_000
    assert server.totals.gained == 0


def test_an_environ_that_dies_late_spoils_that_window() -> None:
    """What an earlier request's environ held, in a traceback say, is given back in nobody's name."""
    server = Server()
    server.serve_many(10)
    for _ in range(20):
        held: list[Any] = []
        server.serve(keep=held)
        server.serve_many(5)
        window = server.recorder.begin(environ := {}, server.level)
        held.clear()
        server.heap.blocks -= 30
        server.recorder.finish(window, environ, server.level, "GET", "/route")
        del environ
        server.serve_many(5)
    assert server.totals.measured > 50
    assert (server.totals.gained, server.totals.lost) == (0, 0)


def test_a_scope_that_dies_during_the_next_request_spoils_it() -> None:
    """What a server still held of the request before is given back in nobody's name, whoever arrives next."""
    server = Server(Level.ARRIVAL)
    server.serve_many(10)
    for _ in range(20):
        scopes: list[dict[str, Any]] = [{}, {}, {}]
        for number, scope in enumerate(scopes):
            window = server.recorder.begin(scope, server.level)
            if number == 1:
                scopes[0].clear()
                server.heap.blocks -= 30
            server.recorder.finish(window, scope, server.level, "GET", "/route")
        del scope
        scopes.clear()
        server.serve_many(5)
    assert server.totals.measured > 20
    assert (server.totals.gained, server.totals.lost) == (0, 0)


def test_a_request_that_arrives_while_a_level_is_read(server: Server) -> None:
    """A level during which another thread's request begins is not used."""
    server.serve_many(10)
    settle, inner = server.recorder._settle_stores, []

    def disturbed() -> None:
        settle()
        if not inner:
            inner.append(server.recorder.begin({}, server.level))
            server.heap.blocks += 500

    server.recorder._settle_stores = disturbed
    server.serve(0)
    server.serve(0)
    for window in inner:
        server.heap.blocks -= 500
        server.recorder.finish(window, {}, server.level, "GET", "/route")
    server.serve_many(60)
    assert (server.totals.gained, server.totals.lost) == (0, 0)
    assert server.totals.measured > 20


def test_a_fault_of_ours_ends_with_its_request(server: Server) -> None:
    """If reading a level fails once, it is reported, and later requests are measured."""
    faults: list[str] = []
    server.recorder._fault = lambda: faults.append("told")
    server.serve_many(10)
    settle, times = server.recorder._settle_stores, iter(range(100))

    def failing() -> None:
        if next(times) == 0:
            raise RuntimeError("ours")
        settle()

    server.recorder._settle_stores = failing
    raised = 0
    for _ in range(2):
        try:
            server.serve()
        except RuntimeError:
            raised += 1
    assert raised + len(faults) == 1
    server.recorder._settle_stores = settle
    measured = server.totals.measured
    server.serve_many(100)
    assert server.totals.measured > measured + 50


def test_an_environ_that_is_never_released_does_not_end_measuring() -> None:
    """An application that keeps a request's environ for good is still measured after it."""
    server = Server()
    held: list[Any] = []
    server.serve(keep=held)
    server.serve_many(300, change=1)
    assert server.totals.measured > 150


def test_a_full_collection_inside_spoils_the_window(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """A window with a full garbage collection in it is not counted: that frees what many requests left."""
    full = iter(range(10_000))
    monkeypatch.setattr(windows, "full_collections", lambda: next(full))
    server.serve_many(50, change=7)
    assert server.totals.measured == 0


def test_measuring_keeps_to_its_budget() -> None:
    """Levels take no more of a core than `overhead_budget` allows, apart from what was saved up before."""
    server = Server(budget=0.01)
    server.heap.cost = 0.001
    for _ in range(10_000):
        server.heap.now += 0.01
        server.serve()
    assert 0.5 <= server.recorder.spent <= 0.01 * server.heap.now + 0.06
    assert server.totals.measured > 100


def test_sampling_measures_one_in_n() -> None:
    """`sampling=4` measures about a quarter of the requests, whatever the budget says."""
    server = Server(sampling=4, budget=0.0001)
    server.heap.cost = 1.0
    server.serve_many(3_200)
    assert 600 <= server.totals.measured <= 800


def test_an_unmatched_request_is_counted(server: Server) -> None:
    """A request that matched no route is counted as `__unmatched__`."""
    server.serve_many(5, route=None)
    assert server.ledger.snapshot()[Endpoint("GET", "__unmatched__")].requests == 5


def test_excluded_routes_leave_no_trace() -> None:
    """A route that is excluded gets no series, and the others are measured all the same."""
    server = Server()
    server.ledger = server.recorder._ledger = Ledger(exclude_routes=["^/health"])
    for _ in range(20):
        server.serve(route="/healthz")
        server.serve_many(4, change=1)
    assert list(server.ledger.snapshot()) == [ROUTE]
    assert server.totals.gained == server.totals.measured > 0


def test_the_event_loops_timers_are_taken_off() -> None:
    """Timers that a server arms and cancels for each request are not charged to the route."""
    server = Server(Level.ARRIVAL)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(80):
            loop.call_later(60, print).cancel()
            server.heap.blocks += 1
            server.serve()

    asyncio.run(main())
    assert server.totals.measured > 60
    assert (server.totals.gained, server.totals.lost) == (0, 0)


def test_after_an_exception_the_next_one_is_measured() -> None:
    """A route whose environ dies in a reference cycle with a traceback is measured from the second time on."""
    server = Server()
    cycles: list[Any] = []

    def settle() -> None:
        cycles.clear()

    server.recorder._settle_stores = settle
    for _ in range(50):
        held: dict[str, Any] = {}
        window = server.recorder.begin(held, server.level)
        cycles.append(held)
        server.heap.blocks += 4
        server.recorder.finish(window, held, server.level, "GET", "/route")
        del held
    assert server.totals.measured >= 40
    assert server.totals.gained == 4 * server.totals.measured


def test_closed_connections_are_not_measured_where_they_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python leaves closed connections behind as garbage, a window over two connections is not counted."""
    monkeypatch.setattr(windows, "_CONNECTIONS_LINGER", True)
    server = Server(Level.ARRIVAL)
    for number in range(60):
        server.serve(13, client=("127.0.0.1", 40_000 + number))
    assert server.totals.measured == 0
    for _ in range(60):
        server.serve(0, client=("127.0.0.1", 50_000))
    assert server.totals.measured > 50
    assert server.totals.gained == 0


def test_among_threads_a_request_that_follows_at_once_spoils_the_level() -> None:
    """On a threaded server, a level read while another thread may be parsing the next request is not believed."""
    server = Server()
    for _ in range(100):
        server.heap.now += 0.0001
        server.serve(102, threads=True)
    assert server.totals.measured == 0
    for _ in range(100):
        server.heap.now += 0.002
        server.serve(2, threads=True)
    assert server.totals.measured >= 95
    assert server.totals.gained == 2 * server.totals.measured


def test_among_threads_other_connections_are_nobodys() -> None:
    """On a threaded server, nothing is measured while requests come over ever new connections."""
    server = Server()
    for number in range(100):
        server.heap.now += 0.002
        server.serve(92, threads=True, client=str(number))
    assert server.totals.measured == 0
