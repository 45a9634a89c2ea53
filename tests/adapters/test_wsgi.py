import gc
import io
import itertools
import logging
import random
import signal
import sys
import threading
import weakref
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import httpx
import pytest
from werkzeug.middleware.lint import LintMiddleware
from werkzeug.test import Client, run_wsgi_app

from heap_middleware import HeapMonitor, HeapSettings, SettingsError
from heap_middleware.workers import publisher
from heap_middleware.wsgi import HeapMetricsMiddleware

ROUTE = "/things/{id}"


def route_of(environ):
    return ROUTE if environ["PATH_INFO"].startswith("/things") else None


@pytest.fixture(params=["windows", pytest.param("native", marks=pytest.mark.accelerator)])
def monitor(request):
    return HeapMonitor(HeapSettings(attribution=request.param, route_of=route_of, sampling=1))


@pytest.fixture
def wrap(monitor):
    return lambda app, **settings: HeapMetricsMiddleware(app, **(settings or {"monitor": monitor}))


def environ_for(path="/things/1", **more):
    environ = {"PATH_INFO": path, **more}
    setup_testing_defaults(environ)
    return environ


def nothing(*args):
    return lambda data: None


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def counted(monitor):
    return {tuple(endpoint): totals.requests for endpoint, totals in monitor.endpoints().items() if totals.requests}


ONCE = {("GET", ROUTE): 1}


class Body:
    """An iterable that writes down what happens to it."""

    def __init__(self, chunks=(b"a", b"b"), events=None):
        self.chunks, self.events = chunks, [] if events is None else events

    def __iter__(self):
        self.events.append("iter")
        return iter(self.chunks)

    def close(self):
        self.events.append("close")


def returning(result):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return result

    return app


def test_a_request_ends_at_close(wrap, monitor):
    """A streaming response is measured until it is closed, and my close runs first and once."""
    seen = []
    body = Body()
    body.close = lambda: seen.append(counted(monitor))
    result = wrap(returning(body))(environ_for(), nothing)
    assert list(result) == [b"a", b"b"]
    assert counted(monitor) == {}
    result.close()
    assert seen == [{}]
    assert counted(monitor) == ONCE


def test_a_client_that_left(wrap, monitor):
    """A client that leaves in the middle ends the request once, and my generator is closed."""
    closed = []

    def stream():
        try:
            yield b"a"
            yield b"b"
        finally:
            closed.append(counted(monitor))

    result = wrap(returning(stream()))(environ_for(), nothing)
    assert next(iter(result)) == b"a"
    result.close()
    result.close()
    assert closed == [{}]
    assert counted(monitor) == ONCE


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_an_exception_at_the_call(wrap, monitor, error):
    """What my application raises is the very exception the server sees."""

    def app(environ, start_response):
        raise error

    with pytest.raises(type(error)) as caught:
        wrap(app)(environ_for(), nothing)
    assert caught.value is error
    assert error.__context__ is None
    assert counted(monitor) == ONCE


def test_an_exception_while_streaming(wrap, monitor):
    """An exception at the first chunk reaches the server unchanged, and the request ends at close."""
    error = ValueError("mine")

    def stream():
        raise error
        yield b""

    result = wrap(returning(stream()))(environ_for(), nothing)
    with pytest.raises(ValueError, match="mine") as caught:
        list(result)
    assert caught.value is error
    assert counted(monitor) == {}
    result.close()
    assert counted(monitor) == ONCE


def test_an_exception_in_close(wrap, monitor):
    """An exception of my close reaches the server unchanged, and the request has ended."""
    error = ValueError("mine")
    body = Body()

    def close():
        raise error

    body.close = close
    result = wrap(returning(body))(environ_for(), nothing)
    with pytest.raises(ValueError, match="mine") as caught:
        result.close()
    assert caught.value is error
    assert counted(monitor) == ONCE


def test_a_response_that_nobody_closes(wrap, monitor):
    """A server that drops a response without closing it ends the request as well."""
    events = []
    result = wrap(returning(Body(events=events)))(environ_for(), nothing)
    del result
    assert counted(monitor) == ONCE
    assert events == []
    if monitor.recorder.name == "windows":  # nothing overlaps what comes next
        assert monitor.recorder._active == set()


def test_start_response_passes(wrap, monitor):
    """Status, headers and exc_info arrive as I gave them, and I get the server's own write()."""
    calls = []

    def write(data):
        calls.append(data)

    def start_response(*args, **kwargs):
        calls.append((args, kwargs))
        return write

    headers = [("Content-Type", "text/plain")]
    got = []

    def app(environ, start_response):
        got.append(start_response("200 OK", headers))
        got[0](b"written")
        try:
            raise ValueError
        except ValueError:
            info = sys.exc_info()
            got.append(start_response("500 Oops", headers, info))
            got.append(start_response("500 Oops", headers, exc_info=info))
            got.append(info)
        return []

    assert wrap(app)(environ_for(), start_response) == []
    info = got.pop()
    assert all(one is write for one in got)
    assert calls == [
        (("200 OK", headers), {}),
        b"written",
        (("500 Oops", headers, info), {}),
        (("500 Oops", headers), {"exc_info": info}),
    ]
    assert calls[0][0][1] is headers
    assert counted(monitor) == ONCE


def test_start_response_after_the_end(wrap, monitor):
    """An application that answers late, even after its response was closed, still reaches the server."""
    kept = []

    def app(environ, start_response):
        kept.append(start_response)
        return [b""]

    wrap(app)(environ_for(), lambda *args: args)
    assert kept[0]("200 OK", []) == ("200 OK", [])
    assert counted(monitor) == ONCE


def test_start_response_on_the_first_chunk(wrap, monitor):
    """A generator may start its response late."""

    def app(environ, start_response):
        start_response("201 Created", [("Content-Type", "text/plain")])
        yield b"late"

    body, status, _ = run_wsgi_app(wrap(app), environ_for(), buffered=True)
    assert (list(body), status) == ([b"late"], "201 Created")
    assert counted(monitor) == ONCE


class Wrapped(FileWrapper):
    pass


@pytest.mark.parametrize(
    "result",
    [[b"x"], (b"x",), [], b"x", None, Wrapped(io.BytesIO(b"x"))],
    ids=["list", "tuple", "empty list", "bytes", "None", "file wrapper"],
)
def test_the_very_object_comes_back(wrap, monitor, result):
    """Lists keep their length, and the server recognises its file wrapper: it gets the very object I returned."""
    environ = environ_for(**{"wsgi.file_wrapper": FileWrapper})
    assert wrap(returning(result))(environ, nothing) is result
    assert counted(monitor) == ONCE


def test_a_file_wrapper_that_is_a_function(wrap, monitor):
    """A server whose file wrapper is a function that returns the file itself still sends it with sendfile."""
    file = io.BytesIO(b"x")

    def app(environ, start_response):
        return environ["wsgi.file_wrapper"](file)

    assert wrap(app)(environ_for(**{"wsgi.file_wrapper": lambda file, size=0: file}), nothing) is file
    assert counted(monitor) == ONCE


def test_iterables_keep_their_ways(wrap):
    """A response that starts anew at each iteration, or has a length, is the same through the middleware."""
    body = Body()
    result = wrap(returning(body))(environ_for(), nothing)
    assert list(result) + list(result) == [b"a", b"b"] * 2
    assert not hasattr(result, "__len__")
    sized = type("Sized", (Body,), {"__len__": lambda self: 1})((b"a",))
    assert len(wrap(returning(sized))(environ_for(), nothing)) == 1
    empty = wrap(returning(iter(())))(environ_for(), nothing)
    assert list(empty) == []
    empty.close()


@pytest.mark.parametrize("checker", [validator, LintMiddleware])
@pytest.mark.parametrize("kind", ["list", "generator", "late"])
def test_the_checkers_have_no_complaint(wrap, monitor, checker, kind):
    """The standard library's validator and Werkzeug's, around and inside, find nothing to say."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
        return [b"hello"] if kind == "list" else iter([b"hel", b"lo"])

    def late(environ, start_response):
        yield from app(environ, start_response)

    inner = late if kind == "late" and checker is validator else app
    response = Client(checker(wrap(checker(inner)))).get("/things/1", buffered=True)
    assert response.get_data() == b"hello"
    assert counted(monitor) == ONCE


# Werkzeug's checker takes the Content-Length of an answer to HEAD for a mistake, whoever sends it.
@pytest.mark.filterwarnings("ignore:Content-Length and the number of bytes")
@pytest.mark.parametrize("checker", [validator, LintMiddleware, lambda app: app])
@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
def test_the_metrics_path(wrap, monitor, checker, path):
    """GET and HEAD answer a scrape with the same headers, HEAD without a body; POST is told what is allowed."""
    census, figures = monitor.census(), monitor.own_figures()
    monitor.census, monitor.own_figures = lambda: census, lambda: figures  # the length must not change meanwhile
    client = Client(checker(wrap(hello)))
    got, head, post = (client.open(path, method=method, buffered=True) for method in ("GET", "HEAD", "POST"))
    assert got.status_code == head.status_code == 200
    assert b"object_count" in got.data
    assert head.data == b""
    assert int(head.headers["Content-Length"]) == len(got.data)
    assert head.headers == got.headers
    assert (post.status_code, post.headers["Allow"]) == (405, "GET, HEAD")
    assert counted(monitor) == {}


def test_mounts(wrap, monitor):
    """Below a mount, the metrics path is that of the application, wherever it is mounted."""
    transport = httpx.WSGITransport(wrap(hello), script_name="/mounted")
    with httpx.Client(transport=transport, base_url="http://t") as client:
        assert "object_count" in client.get("/metrics").text
        assert client.get("/metrics/more").text == "hello"
    inner = wrap(hello)

    def outer(environ, start_response):
        environ.update(SCRIPT_NAME="/api", PATH_INFO=environ["PATH_INFO"].removeprefix("/api"))
        return inner(environ, start_response)

    assert b"object_count" in Client(wrap(outer)).get("/api/metrics").data


def test_no_metrics_path():
    """With metrics_path=None the path belongs to my application."""
    app = HeapMetricsMiddleware(hello, metrics_path=None)
    assert Client(app).get("/metrics").data == b"hello"


@pytest.mark.parametrize("settings", [{"enabled": False, "attribution": True}, {"attribution": False}])
def test_a_pass_through(settings):
    """Switched off, or without attribution, my own result object comes back and the environ is untouched."""
    body = Body()
    given = environ_for()
    before = dict(given)
    seen = []

    def app(environ, start_response):
        seen.append((environ, start_response))
        return body

    assert HeapMetricsMiddleware(app, **settings)(given, nothing) is body
    assert seen[0][0] is given
    assert seen[0][1] is nothing
    assert given == before
    off = HeapMetricsMiddleware(hello, enabled=False)
    assert Client(off).get("/metrics").data == b"hello"


def test_settings_beside_a_monitor(monitor):
    """Settings that a given monitor would ignore are refused, by name."""
    with pytest.raises(SettingsError, match="top_types"):
        HeapMetricsMiddleware(hello, monitor=monitor, top_types=3)


def boom(*args, **kwargs):
    raise RuntimeError("a fault of our own")


@pytest.mark.parametrize("fault", ["recorder.begin", "recorder.finish", "at_start", "at_end"])
def test_our_faults_stay_ours(wrap, monitor, monkeypatch, caplog, fault):
    """A fault of the middleware is logged once and counted; my responses are as they were."""
    app = wrap(hello if fault != "at_end" else returning([b"hello"]))
    if fault == "at_end":
        monkeypatch.setattr(app._routes, "at_start", lambda *args: None)
    target = monitor._recorder if fault.startswith("recorder.") else app._routes
    monkeypatch.setattr(target, fault.removeprefix("recorder."), boom)
    with caplog.at_level(logging.ERROR, "heap_middleware"):
        assert [Client(app).get("/things/1").data for _ in range(3)] == [b"hello"] * 3
    assert len(caplog.records) == 1
    assert 'heap_middleware_faults_total{part="request"} 3.0' in Client(app).get("/metrics").text


def test_a_fault_does_not_replace_my_exception(wrap, monitor, monkeypatch):
    """When my application and the middleware fail at once, the server sees my exception."""
    monkeypatch.setattr(monitor.recorder, "finish", boom)

    def app(environ, start_response):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        wrap(app)(environ_for(), nothing)
    assert monitor.own_figures().faults["request"] == 1


def test_a_failing_census(monkeypatch, caplog):
    """A census that fails is a 503 to the scraper, and the next scrape tells of it."""
    take = HeapMonitor._take_census
    monkeypatch.setattr(HeapMonitor, "_take_census", lambda self: boom() if failing else take(self))
    failing = True
    app = HeapMetricsMiddleware(hello, monitor=HeapMonitor(HeapSettings()))
    client = Client(app)
    assert [client.get("/metrics").status_code for _ in range(2)] == [503, 503]
    assert client.get("/").data == b"hello"
    assert len(caplog.records) == 1
    failing = False
    assert 'heap_middleware_faults_total{part="scrape"} 2.0' in client.get("/metrics").text


def test_two_monitors_count_once_each():
    """Two middlewares with different settings around one application count each request once."""
    first, second = (HeapMonitor(HeapSettings(attribution=True, top_types=n)) for n in (1, 2))
    app = hello
    for monitor in (first, second, first):
        app = HeapMetricsMiddleware(app, monitor=monitor)
    assert Client(app).get("/").data == b"hello"
    assert [sum(t.requests for t in m.endpoints().values()) for m in (first, second)] == [1, 1]


def test_built_often_and_nested():
    """Built five times and nested twice there is one monitor, and a request counts once."""
    settings = {"attribution": True, "route_of": route_of}
    built = [HeapMetricsMiddleware(hello, **settings) for _ in range(5)]
    assert len({id(one.monitor) for one in built}) == 1
    nested = HeapMetricsMiddleware(HeapMetricsMiddleware(built[0], **settings), **settings)
    given = environ_for()
    for _ in range(2):  # with the very environ, as some servers do
        nested(given, nothing)
    assert counted(nested.monitor) == {("GET", ROUTE): 2}


def test_paths_never_become_labels(wrap, monitor):
    """A thousand random paths add no series."""
    client = Client(wrap(hello))
    chance = random.Random(7)

    def one():
        client.get(f"/{chance.getrandbits(64):x}")
        return len(monitor.endpoints())

    assert {one() for _ in range(1000)} == {1}
    assert counted(monitor) == {("GET", "__unmatched__"): 1000}


def test_we_do_not_leak(wrap, monkeypatch):
    """After many requests no object of the middleware is left, and the environ dies with its request."""
    # A look at the history in between forgets which request was the last: one object more or less.
    monkeypatch.setattr(publisher, "add", lambda pool: None)
    app = wrap(lambda environ, start_response: itertools.chain(hello(environ, start_response)))

    class Mine:
        pass

    mine = []

    def request():
        given = environ_for(mine=Mine())
        mine.append(weakref.ref(given["mine"]))
        result = app(given, nothing)
        list(result)
        result.close()
        return result

    def ours():
        gc.collect()
        return sorted(
            type(one).__name__ for one in gc.get_objects() if str(type(one).__module__).startswith("heap_middleware")
        )

    for _ in range(20):
        request()
    before = ours()
    kept = [request() for _ in range(200)]
    assert all(one() is None for one in mine)
    del kept
    assert ours() == before


def test_the_interpreter_is_left_alone():
    """Thirty middlewares change no interpreter-wide state; one thread serves them all."""

    def state():
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.gettrace(), sys.getprofile())
        return gc.get_threshold(), list(gc.callbacks), gc.isenabled(), handlers, hooks

    # One that nobody shares, and that lives: the thread ends with the last of them.
    first = HeapMetricsMiddleware(hello, monitor=HeapMonitor(HeapSettings(attribution=True)))
    Client(first).get("/")
    before, threads = state(), set(threading.enumerate())
    for index in range(30):
        app = HeapMetricsMiddleware(hello, attribution=True, top_types=index + 1)
        assert Client(app).get("/").data == b"hello"
    assert state() == before
    assert set(threading.enumerate()) <= threads
