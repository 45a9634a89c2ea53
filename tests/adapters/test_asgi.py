import asyncio
import gc
import logging
import random
import signal
import sys
import threading
import warnings
import weakref

import anyio
import httpx
import pytest
from asgiref.testing import ApplicationCommunicator
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from heap_middleware import HeapMonitor, HeapSettings, SettingsError
from heap_middleware.asgi import HeapMetricsMiddleware
from heap_middleware.workers import publisher

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette would rather have another client than the httpx the tests use
    from starlette.testclient import TestClient

ROUTE = "/things/{id}"
pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


def route_of(scope):
    return ROUTE if scope["path"].startswith("/things") else None


@pytest.fixture(params=["windows", pytest.param("native", marks=pytest.mark.accelerator)])
def monitor(request):
    return HeapMonitor(HeapSettings(attribution=request.param, route_of=route_of, sampling=1))


@pytest.fixture
def wrap(monitor):
    return lambda app: HeapMetricsMiddleware(app, monitor=monitor)


def counted(monitor):
    return {tuple(endpoint): totals.requests for endpoint, totals in monitor.endpoints().items() if totals.requests}


ONCE = {("GET", ROUTE): 1}


def scope_for(path="/things/1", kind="http", **more):
    return {"type": kind, "method": "GET", "path": path, "root_path": "", "query_string": b"", "headers": [], **more}


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def hello(scope, receive, send):
    await PlainTextResponse("hello")(scope, receive, send)


def client_for(app, **options):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, **options), base_url="http://t")


async def sent_by(app, scope):
    sent = []

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("kind", ["lifespan", "webtransport", None])
async def test_other_scopes_pass(wrap, monitor, kind):
    """Lifespan and scope types of the future reach my application untouched, and are not counted."""
    seen = []

    async def app(*args):
        seen.append((args, dict(args[0])))
        return "result"

    async def send(message):
        raise AssertionError

    given = {"type": kind} if kind else {}
    assert await wrap(app)(given, receive, send) == "result"
    (scope, got_receive, got_send), content = seen[0]
    assert scope is given
    assert got_receive is receive
    assert got_send is send
    assert content == given == ({"type": kind} if kind else {})
    assert counted(monitor) == {}


async def test_the_very_objects_pass(wrap, monitor):
    """My application gets the server's own scope, receive and send, extensions included; its return value passes."""
    seen = []
    extensions = {"http.response.trailers": {}, "http.response.pathsend": {}}

    async def app(*args):
        seen.extend(args)
        return 17

    async def send(message):
        raise AssertionError

    given = scope_for(extensions=extensions)
    assert await wrap(app)(given, receive, send) == 17
    assert [id(one) for one in seen] == [id(given), id(receive), id(send)]
    assert given["extensions"] is extensions
    assert counted(monitor) == ONCE


async def test_messages_pass_unchanged(wrap):
    """Streams, trailers, early hints and pathsend are the same messages, bare and wrapped."""
    messages = [
        {"type": "http.response.early_hint", "links": [b"</a.css>"]},
        {"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")], "trailers": True},
        {"type": "http.response.body", "body": b"a", "more_body": True},
        {"type": "http.response.zerocopysend", "file": 3, "more_body": True},
        {"type": "http.response.pathsend", "path": "/tmp/a"},
        {"type": "http.response.trailers", "headers": [(b"t", b"u")]},
    ]

    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    bare, wrapped = await sent_by(app, scope_for()), await sent_by(wrap(app), scope_for())
    assert bare == wrapped == messages
    assert all(one is other for one, other in zip(wrapped, messages, strict=True))


def test_a_websocket_is_one_request(monitor):
    """A websocket counts as one request of its route when it closes; a rejected one counts too."""
    during = []

    async def talk(websocket):
        await websocket.accept()
        during.append(counted(monitor))
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    app = HeapMetricsMiddleware(Starlette(routes=[WebSocketRoute(ROUTE, talk)]), monitor=monitor)
    with TestClient(app) as client, client.websocket_connect("/things/1") as socket:
        socket.send_text("echo")
        assert socket.receive_text() == "echo"
    assert during == [{}]
    assert counted(monitor) == {("WEBSOCKET", ROUTE): 1}


async def test_a_stream_and_its_background_task(wrap, monitor):
    """A request ends after its stream and its background tasks."""
    during = []

    async def stream():
        during.append(counted(monitor))
        yield b"a"
        yield b"b"

    async def background():
        during.append(counted(monitor))

    async def app(scope, receive, send):
        await StreamingResponse(stream(), background=BackgroundTask(background))(scope, receive, send)

    async with client_for(wrap(app)) as client:
        assert (await client.get("/things/1")).text == "ab"
    assert during == [{}, {}]
    assert counted(monitor) == ONCE


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3)])
@pytest.mark.parametrize("faulty", [False, True])
async def test_exceptions_pass(wrap, monitor, monkeypatch, error, faulty):
    """The server sees the very exception I raised, also when the middleware fails at the same time."""
    if faulty:
        monkeypatch.setattr(monitor.recorder, "finish", boom)

    async def app(scope, receive, send):
        raise error

    caught = None
    try:
        await wrap(app)(scope_for(), receive, None)
    except BaseException as raised:
        caught = raised
    assert caught is error
    assert error.__context__ is None
    assert counted(monitor) == ({} if faulty else ONCE)


async def test_cancellation_passes(wrap, monitor):
    """A cancelled request is cancelled, and has ended once."""
    seen = []

    async def app(scope, receive, send):
        try:
            cancel.cancel()
            await anyio.sleep_forever()
        except BaseException as error:
            seen.append(error)
            raise

    with anyio.CancelScope() as cancel:
        await wrap(app)(scope_for(), receive, None)
    assert cancel.cancelled_caught
    assert isinstance(seen[0], anyio.get_cancelled_exc_class())
    assert counted(monitor) == ONCE


def test_a_disconnect_under_asgiref(wrap, monitor):
    """asgiref's communicator sees a request through, and one whose server stops waiting."""

    async def waiting(scope, receive, send):
        await receive()
        await receive()

    async def main():
        answered = ApplicationCommunicator(wrap(hello), scope_for())
        await answered.send_input({"type": "http.request"})
        assert (await answered.receive_output())["status"] == 200
        assert (await answered.receive_output())["body"] == b"hello"
        await answered.wait()
        left = ApplicationCommunicator(wrap(waiting), scope_for())
        await left.send_input({"type": "http.request"})
        left.future.cancel()
        await asyncio.gather(left.future, return_exceptions=True)
        scrape = ApplicationCommunicator(wrap(hello), scope_for("/metrics"))
        await scrape.send_input({"type": "http.request"})
        assert (await scrape.receive_output(timeout=30))["status"] == 200
        await scrape.receive_output()
        await scrape.wait()

    asyncio.run(main())
    # The second was cancelled before it began: an application that never ran served nothing.
    assert counted(monitor) == ONCE


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
async def test_the_metrics_path(wrap, monitor, path):
    """GET and HEAD answer a scrape with the same headers, HEAD without a body; POST is told what is allowed."""
    census, figures = monitor.census(), monitor.own_figures()
    monitor.census, monitor.own_figures = lambda: census, lambda: figures  # the length must not change meanwhile
    async with client_for(wrap(hello)) as client:
        got, post = await client.get(path, headers={"accept-encoding": "identity"}), await client.post(path)
        head = await client.head(path, headers={"accept-encoding": "identity"})
    assert got.status_code == head.status_code == 200
    assert "object_count" in got.text
    sent = await sent_by(wrap(hello), scope_for(path, method="HEAD"))  # httpx itself drops the body of a HEAD
    assert sent[1]["body"] == b""
    assert int(head.headers["content-length"]) == len(got.content)
    assert head.headers == got.headers
    assert (post.status_code, post.headers["allow"]) == (405, "GET, HEAD")
    assert counted(monitor) == {}


@pytest.mark.parametrize(
    ("path", "root", "ours"),
    [
        ("/metrics", "/api", True),  # a server that leaves the prefix out
        ("/api/metrics", "/api", True),
        ("/api/metrics", "/api/", True),
        ("/api/metrics", "", False),
        ("/apis/metrics", "/api", False),
        ("/metrics/metrics", "/metrics", True),
        ("/metrics", None, True),
    ],
)
async def test_root_path(wrap, path, root, ours):
    """Behind a prefix the metrics path is that of the application."""
    sent = await sent_by(wrap(hello), scope_for(path, root_path=root))
    assert (b"object_count" in sent[1]["body"]) is ours


async def test_a_mounted_application(wrap):
    """An application that is mounted in another with the same settings still answers its own metrics path."""
    inner = wrap(Starlette(routes=[Route("/x", lambda request: PlainTextResponse("x"))]))
    async with client_for(wrap(Starlette(routes=[Mount("/api", inner)]))) as client:
        assert "object_count" in (await client.get("/api/metrics")).text


async def test_pass_through():
    """Switched off, without a metrics path or without attribution my application gets an untouched scope."""
    for settings in ({"enabled": False, "attribution": True}, {"metrics_path": None}):
        app = HeapMetricsMiddleware(hello, **settings)
        given = scope_for("/metrics")
        before = dict(given)
        assert (await sent_by(app, given))[1]["body"] == b"hello"
        assert given == before


async def test_settings_beside_a_monitor(monitor):
    """Settings that a given monitor would ignore are refused, by name."""
    with pytest.raises(SettingsError, match="top_types"):
        HeapMetricsMiddleware(hello, monitor=monitor, top_types=3)


async def test_simultaneous_scrapes_share_one_census(monkeypatch):
    """Scrapes at the same time share one census, and none runs on the event loop."""
    take, threads, entered, go = HeapMonitor._take_census, [], threading.Event(), threading.Event()

    def slow(self):
        threads.append(threading.get_ident())
        entered.set()
        assert go.wait(30)
        return take(self)

    monkeypatch.setattr(HeapMonitor, "_take_census", slow)
    app = HeapMetricsMiddleware(hello, monitor=HeapMonitor(HeapSettings(census_min_interval=60.0)))
    answers = []

    async def scrape(client):
        answers.append((await client.get("/metrics")).status_code)

    async with client_for(app) as client, anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(scrape, client)
        await anyio.to_thread.run_sync(entered.wait)
        assert (await client.get("/")).text == "hello"  # the loop is free while a census runs
        go.set()
    assert answers == [200] * 8
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


def boom(*args, **kwargs):
    raise RuntimeError("a fault of our own")


@pytest.mark.parametrize("fault", ["begin", "finish", "at_end"])
async def test_our_faults_stay_ours(wrap, monitor, monkeypatch, caplog, fault):
    """A fault of the middleware is logged once and counted; my responses are as they were."""
    app = wrap(hello)
    monkeypatch.setattr(monitor._recorder if fault in ("begin", "finish") else app._routes, fault, boom)
    with caplog.at_level(logging.ERROR, "heap_middleware"):
        async with client_for(app) as client:
            assert [(await client.get("/things/1")).text for _ in range(3)] == ["hello"] * 3
            page = (await client.get("/metrics")).text
    assert len([record for record in caplog.records if record.name == "heap_middleware"]) == 1
    assert 'heap_middleware_faults_total{part="request"} 3.0' in page


async def test_a_failing_census(monkeypatch):
    """A census that fails is a 503 to the scraper alone."""
    monkeypatch.setattr(HeapMonitor, "_take_census", boom)
    async with client_for(HeapMetricsMiddleware(hello, monitor=HeapMonitor(HeapSettings()))) as client:
        assert (await client.get("/metrics")).status_code == 503
        assert (await client.get("/")).text == "hello"


async def test_built_often_and_nested():
    """Built five times and nested twice there is one monitor, and a request counts once."""
    settings = {"attribution": True, "route_of": route_of, "top_types": 77}
    built = [HeapMetricsMiddleware(hello, **settings) for _ in range(5)]
    assert len({id(one.monitor) for one in built}) == 1
    nested = HeapMetricsMiddleware(HeapMetricsMiddleware(built[0], **settings), **settings)
    given = scope_for()
    before = counted(nested.monitor).get(("GET", ROUTE), 0)
    for _ in range(2):  # with the very scope, as a caller of several may
        await sent_by(nested, given)
    assert counted(nested.monitor) == {("GET", ROUTE): before + 2}


async def test_paths_never_become_labels(wrap, monitor):
    """A thousand random paths add no series."""
    chance, app = random.Random(7), wrap(hello)
    seen = set()
    for _ in range(1000):
        await sent_by(app, scope_for(f"/{chance.getrandbits(64):x}"))
        seen.add(len(monitor.endpoints()))
    assert seen == {1}
    assert counted(monitor) == {("GET", "__unmatched__"): 1000}


async def test_we_do_not_leak(wrap, monkeypatch):
    """After many requests no object of the middleware is left, and each scope dies with its request."""
    # A look at the history in between forgets which request was the last: one object more or less.
    monkeypatch.setattr(publisher, "add", lambda pool: None)
    app, mine = wrap(hello), []

    class Mine:
        pass

    async def request():
        given = scope_for(mine=Mine())
        mine.append(weakref.ref(given["mine"]))
        await sent_by(app, given)

    def ours():
        gc.collect()
        types = (type(one) for one in gc.get_objects())
        return sorted(one.__name__ for one in types if str(one.__module__).startswith("heap_middleware"))

    for _ in range(20):
        await request()
    before = ours()
    for _ in range(200):
        await request()
    assert all(one() is None for one in mine)
    assert ours() == before


async def test_the_interpreter_is_left_alone():
    """Thirty middlewares change no interpreter-wide state; one thread serves them all."""

    def state():
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.gettrace(), sys.getprofile())
        return gc.get_threshold(), list(gc.callbacks), gc.isenabled(), handlers, hooks

    # One that nobody shares, and that lives: the thread ends with the last of them.
    first = HeapMetricsMiddleware(hello, monitor=HeapMonitor(HeapSettings(attribution=True)))
    await sent_by(first, scope_for())
    before, threads = state(), set(threading.enumerate())
    for index in range(30):
        await sent_by(HeapMetricsMiddleware(hello, attribution=True, top_types=index + 1), scope_for())
    assert state() == before
    assert set(threading.enumerate()) <= threads
