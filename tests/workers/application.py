"""Three routes as plain WSGI and plain ASGI; each answer names the process that gave it."""

import os

from heap_middleware.asgi import HeapMetricsMiddleware as ASGIMiddleware
from heap_middleware.wsgi import HeapMetricsMiddleware

LEAKS = "/leak"
leaked = []


class Leaked:
    pass


def answer(path):
    if path == LEAKS:
        leaked.append(Leaked())
    return str(os.getpid()).encode()


def route(held):
    return held.get("PATH_INFO") or held.get("path")


def plain_wsgi(environ, start_response):
    body = answer(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def plain_asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        for what in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{what}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": answer(scope["path"])})


wsgi = HeapMetricsMiddleware(plain_wsgi, attribution=True, route_of=route)
asgi = ASGIMiddleware(plain_asgi, attribution=True, route_of=route)
