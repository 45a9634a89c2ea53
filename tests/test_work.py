"""Work that is no HTTP request: a block or a function that counts like a route."""

import asyncio
import functools

import pytest

from heap_middleware import HeapMonitor, HeapSettings, SettingsError
from heap_middleware.exposition.requests import PageRequest

pytestmark = pytest.mark.usefixtures("own_sampling")
BOTH = pytest.mark.parametrize("backend", [pytest.param("native", marks=pytest.mark.accelerator), "windows"])


class Mail:
    pass


def monitor_of(backend):
    return HeapMonitor(HeapSettings(attribution=backend, sampling=1, overhead_budget=1.0))


def figures(monitor):
    return {tuple(endpoint): totals for endpoint, totals in monitor.endpoints().items()}


@BOTH
def test_a_block_counts_like_a_route(backend):
    """What a block leaves alive is its own, per kind and name; a clean one is clean, on the metrics page, too."""
    monitor, kept = monitor_of(backend), []
    for _ in range(400):
        with monitor.request("task", "send_mail"):
            kept.append(Mail())
    for _ in range(400):
        with monitor.request("task", "clean"):
            [Mail() for _ in range(5)]
    found = figures(monitor)
    assert found["task", "send_mail"].requests == found["task", "clean"].requests == 400
    assert found["task", "send_mail"].measured > 300
    # Mail and its dict, which CPython 3.13 keeps in the object
    assert found["task", "send_mail"].objects_per_request == pytest.approx(2, abs=1.1)
    assert found["task", "clean"].objects_per_request == pytest.approx(0, abs=0.1)
    page = monitor.respond(PageRequest("GET", "/metrics")).body.decode()
    assert 'heap_endpoint_requests_total{method="task",route="send_mail"} 400.0' in page


@BOTH
def test_a_function_can_be_decorated(backend):
    """As a decorator it measures each call, gives the result back and lets exceptions through."""
    monitor = monitor_of(backend)

    @monitor.request("task", "halve")
    def halve(n):
        if n % 2:
            raise ValueError(n)
        return n // 2

    assert halve(4) == 2
    with pytest.raises(ValueError, match="3"):
        halve(3)
    assert figures(monitor)["task", "halve"].requests == 2


@BOTH
def test_a_coroutine_function_can_be_decorated(backend):
    """It is measured until it has ended, not until its coroutine was made; any number of calls run at once."""
    monitor, kept = monitor_of(backend), []

    @monitor.request("task", "fetch")
    async def fetch(n):
        await asyncio.sleep(0)
        kept.extend([Mail() for _ in range(4)])
        return n

    async def main():
        for _ in range(100):
            await fetch(1)
        assert await asyncio.gather(*(fetch(n) for n in range(20))) == list(range(20))

    asyncio.run(main())
    found = figures(monitor)["task", "fetch"]
    assert found.requests == 120
    assert found.gained > 4 * 40


def test_a_generator_function_is_refused():
    """A call of it does nothing that could be measured: an error says so, when it is decorated."""

    def rows():
        yield 1

    async def pages():
        yield 1

    for function in (rows, pages, functools.partial(rows)):
        with pytest.raises(TypeError, match=r"(rows|pages).* is a generator function.*allowed"):
            monitor_of("windows").request("task", "x")(function)


@BOTH
def test_an_object_that_is_called_like_a_coroutine_function(backend):
    """What it does after it has waited is measured as well."""
    monitor, kept = monitor_of(backend), []

    class Fetch:
        async def __call__(self):
            await asyncio.sleep(0)
            kept.extend([Mail() for _ in range(4)])

    fetch = monitor.request("task", "fetch")(Fetch())

    async def main():
        for _ in range(100):
            await fetch()

    asyncio.run(main())
    assert figures(monitor)["task", "fetch"].gained > 4 * 40


def test_one_block_after_another():
    """The same object serves block after block, one in another, too."""
    monitor = monitor_of("windows")
    work = monitor.request("task", "again")
    for _ in range(3):
        with work, work:
            pass
    assert figures(monitor)["task", "again"].requests == 6


@pytest.mark.accelerator
def test_concurrent_blocks_are_told_apart():
    """Of coroutines that run in turns, each block gets what it allocated, and of nested ones the inner."""
    monitor, kept = monitor_of("native"), []

    async def leak():
        with monitor.request("message", "leak"):
            await asyncio.sleep(0)
            kept.append(bytearray(100))

    async def clean():
        with monitor.request("message", "outer"):
            await asyncio.sleep(0)
            with monitor.request("message", "inner"):
                kept.append(bytearray(100))

    async def main():
        for _ in range(200):
            await asyncio.gather(leak(), clean())

    asyncio.run(main())
    types = {tuple(endpoint): types for endpoint, types in monitor.retained_by_type().items()}
    assert types["message", "leak"]["builtins.bytearray"] == 200
    assert types["message", "inner"]["builtins.bytearray"] == 200
    assert "builtins.bytearray" not in types.get(("message", "outer"), {})


@pytest.mark.accelerator
def test_what_we_note_of_a_block_is_not_its_own():
    """The first request of a route leaves nothing alive where the route itself leaves nothing."""
    monitor = monitor_of("native")
    with monitor.request("task", "quiet"):
        pass
    assert not any(name.startswith("heap_middleware") for name in monitor.retained_by_type().get(("task", "quiet"), {}))


def test_kinds_are_bounded():
    """Sixteen kinds have their own label; a program that makes them up cannot make series without end."""
    monitor = monitor_of("windows")
    for number in range(40):
        with monitor.request(f"kind{number}", "x"):
            pass
    methods = {endpoint.method for endpoint in monitor.endpoints()}
    assert methods == {*(f"kind{number}" for number in range(16)), "OTHER"}
    assert figures(monitor)["OTHER", "x"].requests == 24


@pytest.mark.parametrize(
    ("kind", "name", "wrong"), [("", "x", "kind"), ("task", "", "name"), ("\ud800", "x", "kind"), (b"x", "x", "kind")]
)
def test_what_cannot_be_a_label_is_refused(kind, name, wrong):
    """A wrong kind or name is an error that names it, before anything is measured."""
    with pytest.raises(SettingsError, match=f"^{wrong} is "), HeapMonitor(HeapSettings()).request(kind, name):
        pytest.fail("the block ran")


def test_it_is_a_pass_through_where_nothing_is_measured():
    """Without attribution, or switched off, the block runs and nothing is counted."""
    monitor, ran = HeapMonitor(HeapSettings(enabled=False, attribution=True)), []
    with monitor.request("task", "x"):
        ran.append(1)
    assert ran == [1]
    assert monitor.endpoints() == {}


@pytest.mark.parametrize("broken", ["begin", "finish"])
def test_a_fault_of_ours_stays_ours(broken, monkeypatch, caplog):
    """If measuring fails, the block runs as if nothing were there; the fault is logged and counted."""
    monitor, ran = monitor_of("windows"), []
    with monitor.request("task", "x"):
        pass

    def fail(*arguments):
        raise RuntimeError("ours")

    monkeypatch.setattr(monitor.recorder, broken, fail)
    with monitor.request("task", "x"):
        ran.append(1)
    assert ran == [1]
    assert monitor.own_figures().faults["request"] == 1
    assert "failed in its own request handling" in caplog.text
