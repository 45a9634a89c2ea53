"""Whether the package that is installed here works: `python tools/check_wheel.py --native | --pure`.

A WSGI and an ASGI application are asked for a route, for /metrics and for the report page. It needs the package with
its extras wsgi and asgi, and nothing else: cibuildwheel runs it with every wheel, on every platform.
"""

import argparse
import asyncio
import io
from contextlib import redirect_stdout
from typing import Any

from heap_middleware import accelerator
from heap_middleware.asgi import HeapMetricsMiddleware as AsgiMiddleware
from heap_middleware.cli import main as heap_middleware
from heap_middleware.wsgi import HeapMetricsMiddleware as WsgiMiddleware

SETTINGS = {"attribution": True, "sampling": 1, "report_path": "/heap", "census_min_interval": 0}
PAGES = ("/heap/", "/heap/static/report.js", "/heap/static/report.css", "/heap/static/echarts.min.js")
kept: list[object] = []


def main() -> None:
    """Ask both, then the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    backend = parser.add_mutually_exclusive_group(required=True)
    backend.add_argument("--native", action="store_true", help="the accelerator must be there")
    backend.add_argument("--pure", action="store_true", help="it must not")
    native = parser.parse_args().native
    assert (accelerator.missing is None) == native, accelerator.missing or "there is an accelerator"
    for requests, ask in ((50, ask_wsgi), (100, ask_asgi)):  # equal settings share a monitor: the second counts on
        for _ in range(50):
            ask("/leak")
        page = ask("/metrics").decode()
        assert f'heap_middleware_info{{backend="{"native" if native else "windows"}"' in page, page[-500:]
        assert f'heap_endpoint_requests_total{{method="GET",route="__unmatched__"}} {requests}.0' in page
        assert 'object_count{module="builtins.' in page
        for path in PAGES:
            assert len(ask(path)) > 100, path
    for command, starts in (("rules", "groups:"), ("dashboard", "{")):
        printed = io.StringIO()
        with redirect_stdout(printed):
            assert heap_middleware([command]) == 0
        assert starts in printed.getvalue(), command
    print(f"works, {'with the accelerator' if native else 'in pure Python'}")


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Keeps something of every request."""
    kept.append({"path": environ["PATH_INFO"]})
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The same."""
    kept.append({"path": scope["path"]})
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


wrapped_wsgi = WsgiMiddleware(wsgi, **SETTINGS)
wrapped_asgi = AsgiMiddleware(asgi, **SETTINGS)


def ask_wsgi(path: str) -> bytes:
    """The body of the answer, whose status must be 200."""
    statuses: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "localhost",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
    }
    result = wrapped_wsgi(environ, lambda status, headers, exc_info=None: statuses.append(status))
    body = b"".join(result)
    getattr(result, "close", lambda: None)()
    assert statuses == ["200 OK"], statuses
    return body


def ask_asgi(path: str) -> bytes:
    """The body of the answer, whose status must be 200."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(wrapped_asgi(scope, receive, send))
    assert sent[0]["status"] == 200, sent[0]
    return b"".join(message.get("body", b"") for message in sent[1:])


if __name__ == "__main__":
    main()
