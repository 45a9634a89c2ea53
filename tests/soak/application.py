"""The application under fire, as plain WSGI and plain ASGI: it answers what its clients can check, or fails as asked.

The process id is in each answer's headers. Each log record is one line, so that lines of nobody's stand out.
"""

import hashlib
import logging
import os
import resource
import time

_ahead = 0.0
_real_time = time.time
time.time = lambda: _real_time() + _ahead  # before the middleware takes it: the clock that may jump

from heap_middleware.asgi import HeapMetricsMiddleware as ASGIMiddleware  # noqa: E402
from heap_middleware.wsgi import HeapMetricsMiddleware  # noqa: E402

CHUNKS = 16
ROOM = 8 << 20


class OneLine(logging.Formatter):
    def format(self, record):
        return super().format(record).replace("\n", " | ")

    def formatException(self, ei):
        return super().formatException(ei).rpartition("\n")[2]


def speak_in_lines():
    """What the server's and our loggers say, each record in a line that begins with LOG."""
    form = OneLine("LOG %(name)s %(levelname)s %(message)s")
    own = logging.StreamHandler()
    for name in ("heap_middleware", "asyncio"):
        logging.getLogger(name).addHandler(own)
    servers = [handler for name in ("gunicorn.error", "uvicorn") for handler in logging.getLogger(name).handlers]
    for handler in [own, *servers]:
        handler.setFormatter(form)


speak_in_lines()


def chunks(number):
    """A body that depends on the path alone: 16 pieces of 4 KB."""
    for at in range(CHUNKS):
        yield hashlib.sha256(f"{number} {at}".encode()).digest() * 128


def run_out_of_memory():
    """Allocate until the process's limit, a little above what it has now, is reached; raises MemoryError."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    kept = []
    try:
        resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, before[1]))
        while True:
            kept.append(bytes(10_000))
    finally:
        kept = None
        resource.setrlimit(resource.RLIMIT_AS, before)


def answer(path, body):
    """Status and pieces of the body; raises what the path asks for."""
    global _ahead
    _, what, number = path.split("/")
    if what == "text":
        return 200, chunks(number)
    if what == "echo":
        return (200, [hashlib.sha256(body).hexdigest().encode()]) if len(body) == int(number) else (400, [b"cut"])
    if what == "raise":
        raise ValueError("as asked")
    if what == "memory":
        run_out_of_memory()
    if what == "clock":
        _ahead += float(number)
        return 200, [b"jumped"]
    return 404, [b"none"]


def route_of(request):
    return "/" + (request.get("PATH_INFO") or request["path"]).split("/")[1]


def plain_wsgi(environ, start_response):
    status, body = answer(environ["PATH_INFO"], environ["wsgi.input"].read())
    start_response(f"{status} Said", [("Content-Type", "text/plain"), ("X-Process", str(os.getpid()))])
    return body


async def plain_asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    status, pieces = answer(scope["path"], body)
    headers = [(b"content-type", b"text/plain"), (b"x-process", str(os.getpid()).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


wsgi = HeapMetricsMiddleware(plain_wsgi, attribution=True, route_of=route_of)
asgi = ASGIMiddleware(plain_asgi, attribution=True, route_of=route_of)
