"""Takes a path of the package again and again, and lets one allocation after the other fail in it.

    python no_memory.py wsgi|asgi|bare windows|native POINTS

The first, the second, up to the POINTS-th fails, one at a time. In between, requests and scrapes must work, and every
request is counted once at most. Prints how many failures were seen outside.
"""

import _testcapi
import faulthandler
import json
import sys

from heap_middleware import HeapMonitor, HeapSettings
from heap_middleware.asgi import HeapMetricsMiddleware as ASGIMiddleware
from heap_middleware.wsgi import HeapMetricsMiddleware

SCRAPE = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", "REMOTE_ADDR": "127.0.0.1"}


class Kept:
    pass


kept = []


def application(environ, start_response):
    kept.append(Kept())
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


async def asgi_application(scope, receive, send):
    kept.append(Kept())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def route_of(request):
    return "/route"


class Paths:
    """Each returns whether what it gave is right."""

    def __init__(self, backend):
        self._monitor = HeapMonitor(
            HeapSettings(
                attribution=backend,
                sampling=1,
                route_of=route_of,
                census_min_interval=0,
            )
        )
        self._wsgi = HeapMetricsMiddleware(application, monitor=self._monitor)
        self._asgi = ASGIMiddleware(asgi_application, monitor=self._monitor)

    def _get(self, **environ):
        said = []
        result = self._wsgi(environ, lambda status, headers, *_: said.append(status))
        try:
            body = b"".join(result)
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()
        return said[0], body

    def counted(self):
        return self._monitor.endpoints()["GET", "/route"].requests

    def wsgi(self):
        return self._get(REQUEST_METHOD="GET", PATH_INFO="/") == ("200 OK", b"ok")

    def asgi(self):
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        coroutine = self._asgi(scope, None, send)
        try:
            coroutine.send(None)
        except StopIteration:
            return sent[-1]["body"] == b"ok"
        finally:
            coroutine.close()

    def scrape(self):
        status, body = self._get(**SCRAPE)
        return status == "200 OK" and b"object_count" in body

    def bare(self):
        said = []
        return application({}, lambda status, headers: said.append(status)) == [b"ok"] and said == ["200 OK"]


def fail_at(path, point):
    """Let one allocation fail; what was raised, or whether the answer was right."""
    _testcapi.set_nomemory(point, point + 1)
    try:
        return path()
    except BaseException as error:
        _testcapi.remove_mem_hooks()
        return error
    finally:
        _testcapi.remove_mem_hooks()


def main(name, backend, points):
    paths = Paths(backend)
    path = getattr(paths, name)
    for warm in ("wsgi", "asgi", "scrape", name, name):
        assert getattr(paths, warm)(), warm
    raised = 0
    for point in range(1, points + 1):
        before = paths.counted()
        said = fail_at(path, point)
        assert said is True or type(said) is MemoryError, said
        raised += said is not True
        del said
        kept.clear()
        asked = paths.counted() - before
        assert 0 <= asked <= 1, asked
        assert paths.wsgi()
        assert paths.asgi()
        assert paths.counted() == before + asked + 2
        if point % 20 == 0:
            assert paths.scrape()
    assert path()
    print(json.dumps({"path": name, "points": points, "raised": raised}))


if __name__ == "__main__":
    faulthandler.enable()
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
