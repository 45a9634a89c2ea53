"""Ten routes for the accuracy tests, in Starlette; three leak 1, 3 and 20 blocks a request, seven do not."""

import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from heap_middleware.asgi import HeapMetricsMiddleware

leaked: list[bytes] = []
counter = iter(range(10**9))


def leaking(blocks: int) -> Callable[[Request], Awaitable[Response]]:
    async def leak(request: Request) -> Response:
        # One block each: a fresh bytes object, in a list whose buffer grows in place.
        leaked.extend(b"leak %d" % next(counter) for _ in range(blocks))
        return PlainTextResponse("leaked")

    return leak


async def collect(request: Request) -> Response:
    return PlainTextResponse(str(gc.collect()))


async def plain(request: Request) -> Response:
    return PlainTextResponse("plain")


async def numbers(request: Request) -> Response:
    return JSONResponse([{"n": n} for n in range(50)])


async def user(request: Request) -> Response:
    return PlainTextResponse(f"hello {request.path_params['name']}")


async def headers(request: Request) -> Response:
    return JSONResponse(dict(request.headers))


async def raises(request: Request) -> Response:
    raise ValueError("as always")


async def cycles(request: Request) -> Response:
    for _ in range(50):
        ring: list[object] = []
        ring.append(ring)
    return PlainTextResponse("garbage")


async def streams(request: Request) -> Response:
    async def parts() -> AsyncIterator[str]:
        for number in range(20):
            yield f"part {number}\n"

    return StreamingResponse(parts())


app = Starlette(
    routes=[
        Route("/leak1", leaking(1)),
        Route("/leak3", leaking(3)),
        Route("/leak20", leaking(20)),
        Route("/collect", collect),
        Route("/plain", plain),
        Route("/json", numbers),
        Route("/user/{name}", user),
        Route("/headers", headers),
        Route("/raises", raises),
        Route("/cycles", cycles),
        Route("/streams", streams),
    ]
)
app.add_middleware(HeapMetricsMiddleware, attribution=os.environ["BACKEND"])
