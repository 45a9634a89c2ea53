"""An application behind the middleware, asked without a server: over WSGI or ASGI, with the accelerator or without.

The tests use it through their conftest, and the programs that they start in other processes import it.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import unquote

from prometheus_client.parser import text_string_to_metric_families

from heap_middleware import HeapMonitor, HeapSettings, accelerator, asgi, wsgi
from heap_middleware.heap import holders

LEFT_OUT = "left out by a test"
Work = Callable[[str], bytes]
Headers = Iterable[tuple[str, str]]
Answer = tuple[int, bytes]


def unless_left_out(record: logging.LogRecord) -> bool:
    """Let pass what does not say that the accelerator is missing."""
    return "runs in pure Python" not in str(record.msg)


def leave_the_accelerator_out() -> None:
    """Let this process be one in which it was not built."""
    accelerator.missing = holders.missing = LEFT_OUT
    logging.getLogger("heap_middleware").addFilter(unless_left_out)


def path_of(held: Any) -> str:
    """The path of an environ or a scope: for tests that want a series for each."""
    return str(held.get("PATH_INFO") or held.get("path"))


class Service:
    """Each path is answered with what `work(path)` returns."""

    kind: str
    monitor: HeapMonitor

    def ask(
        self, path: str = "/", *, method: str = "GET", query: str = "", headers: Headers = (), body: bytes = b""
    ) -> Answer:
        """Status and body of a whole request."""
        raise NotImplementedError

    def samples(self, **more: Any) -> list[Any]:
        """The samples of a scrape."""
        status, body = self.ask("/metrics", **more)
        assert status == 200, body
        return [sample for family in text_string_to_metric_families(body.decode()) for sample in family.samples]

    def requests(self) -> dict[str, int]:
        """How many requests each route has had."""
        return {endpoint.route: totals.requests for endpoint, totals in self.monitor.endpoints().items()}


class WsgiService(Service):
    """Called as a WSGI server would."""

    kind = "wsgi"

    def __init__(self, work: Work, **settings: Any) -> None:
        def application(environ: Any, start_response: Any) -> Iterator[bytes]:
            environ["wsgi.input"].read()
            start_response("200 OK", [("Content-Type", "text/plain")])
            return iter([work(environ["PATH_INFO"])])

        self.app = wsgi.HeapMetricsMiddleware(application, **settings)
        self.monitor = self.app.monitor

    def ask(
        self, path: str = "/", *, method: str = "GET", query: str = "", headers: Headers = (), body: bytes = b""
    ) -> Answer:
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REMOTE_ADDR": "127.0.0.1",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": _Body(body),
            "HTTP_HOST": "localhost",
            **{"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers},
        }
        started: list[str] = []
        result = self.app(environ, lambda status, headers, *_: started.append(status))
        try:
            found = b"".join(result)
        finally:
            getattr(result, "close", lambda: None)()
        return int(started[-1][:3]), found


class _Body:
    """What a WSGI server gives to read from."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def read(self, *_: int) -> bytes:
        body, self._body = self._body, b""
        return body


class AsgiService(Service):
    """Called as an ASGI server would; what waits for nothing needs no event loop."""

    kind = "asgi"

    def __init__(self, work: Work, **settings: Any) -> None:
        async def application(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            found = work(scope["path"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": found})

        self.app = asgi.HeapMetricsMiddleware(application, **settings)
        self.monitor = self.app.monitor

    def ask(
        self, path: str = "/", *, method: str = "GET", query: str = "", headers: Headers = (), body: bytes = b""
    ) -> Answer:
        given = (("host", "localhost"), *headers)
        scope = {
            "type": "http",
            "method": method,
            "path": unquote(path),
            "raw_path": path.encode("utf-8", "surrogatepass"),
            "root_path": "",
            "query_string": query.encode("latin-1", "replace"),
            "client": ("127.0.0.1", 50_000),
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in given],
        }
        status, parts = [], []

        received = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            message = next(received, None)
            if message is None:
                await asyncio.Event().wait()  # the client stays
            return message or {}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])
            else:
                parts.append(message["body"])

        _run(self.app(scope, receive, send), waits=scope["path"] in self.monitor.paths)
        return status[-1], b"".join(parts)


def _run(coroutine: Any, *, waits: bool) -> None:
    if waits:
        asyncio.run(coroutine)
        return
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise AssertionError("the application waits for something, and there is no event loop")


KINDS: dict[str, type[WsgiService | AsgiService]] = {"wsgi": WsgiService, "asgi": AsgiService}


def hello(path: str) -> bytes:
    """An application that keeps nothing."""
    return b"hello"


def service_of(adapter: str, backend: str, work: Work = hello, **settings: Any) -> WsgiService | AsgiService:
    """A service with a monitor of its own, every request measured and every census new, unless told otherwise."""
    if backend == "windows":
        leave_the_accelerator_out()
    settings = {"attribution": backend, "sampling": 1, "census_min_interval": 0.0, "route_of": path_of, **settings}
    return KINDS[adapter](work, monitor=HeapMonitor(HeapSettings(**settings)))


def in_threads(number: int, work: Callable[[int], object]) -> list[BaseException]:
    """Do `work(n)` in so many threads at once; what they raised."""
    raised: list[BaseException] = []

    def one(n: int) -> None:
        try:
            work(n)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised
