"""Run as `python asks_application.py MODULE`: asks the module's `app` or `application`, if there is one, as clients do.

It prints "answered" once the application has answered a request, and /metrics with that request in it.
"""

import asyncio
import importlib
import inspect
import sys
from typing import Any

from werkzeug.test import Client

PATHS = ("/", "/users/7")


def main(name: str) -> None:
    sys.path.insert(0, ".")
    module = importlib.import_module(name)
    app = getattr(module, "app", None) or getattr(module, "application", None)
    if app is None:
        return
    if is_asgi(app):
        page = asyncio.run(ask_asgi(app))
    else:
        client = Client(app)
        assert min(client.get(path).status_code for path in PATHS) < 500
        page = client.get("/metrics").text
    assert 'heap_endpoint_requests_total{method="GET"' in page, page[:1000]
    assert 'object_count{module="' in page
    print("answered")


def is_asgi(app: Any) -> bool:
    call = app if inspect.isfunction(app) else type(app).__call__
    return inspect.iscoroutinefunction(call)


async def ask_asgi(app: Any) -> str:
    from httpx import ASGITransport, AsyncClient

    async with AsyncClient(transport=ASGITransport(app), base_url="http://localhost") as client:
        assert min([(await client.get(path)).status_code for path in PATHS]) < 500
        return (await client.get("/metrics")).text


main(sys.argv[1])
