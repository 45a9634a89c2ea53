"""Ten routes for the accuracy tests, in Flask; three leak 1, 3 and 20 blocks a request, seven are clean."""

import gc
import os
from collections.abc import Iterator

from flask import Flask, Response, jsonify, request

from heap_middleware.wsgi import HeapMetricsMiddleware

app = Flask(__name__)
leaked: list[bytes] = []
counter = iter(range(10**9))


def leak(blocks: int) -> None:
    # One block each: a fresh bytes object, in a list whose buffer grows in place.
    leaked.extend(b"leak %d" % next(counter) for _ in range(blocks))


@app.get("/leak/<int:blocks>")
def leaking(blocks: int) -> str:
    leak(blocks)
    return "leaked"


app.add_url_rule("/leak1", "leak1", lambda: leaking(1))
app.add_url_rule("/leak3", "leak3", lambda: leaking(3))
app.add_url_rule("/leak20", "leak20", lambda: leaking(20))
app.add_url_rule("/collect", "collect", lambda: str(gc.collect()))
app.add_url_rule("/plain", "plain", lambda: "plain")
app.add_url_rule("/json", "json", lambda: jsonify([{"n": n} for n in range(50)]))
app.add_url_rule("/user/<name>", "user", lambda name: f"hello {name}")
app.add_url_rule("/headers", "headers", lambda: jsonify(dict(request.headers)))


@app.get("/raises")
def raises() -> str:
    raise ValueError("as always")


@app.get("/cycles")
def cycles() -> str:
    for _ in range(50):
        ring: list[object] = []
        ring.append(ring)
    return "garbage"


@app.get("/streams")
def streams() -> Response:
    def parts() -> Iterator[str]:
        for number in range(20):
            yield f"part {number}\n"

    return Response(parts())


app.wsgi_app = HeapMetricsMiddleware(app.wsgi_app, attribution=os.environ["BACKEND"])  # type: ignore[method-assign]
