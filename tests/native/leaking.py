"""Routes that leak in a coroutine, a thread, child tasks and a background task, and a clean one, for a real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anyio import to_thread
from fastapi import BackgroundTasks, FastAPI

from heap_middleware.asgi import HeapMetricsMiddleware

KEPT = 200_000
kept: list[Any] = [None] * KEPT  # never grows: what is kept is one block each
places = iter(range(KEPT))


@asynccontextmanager
async def few_threads(_: FastAPI) -> AsyncIterator[None]:
    # Each of a pool's threads is some 45 blocks, charged to whoever needed it first: few, so that they are soon there.
    to_thread.current_default_thread_limiter().total_tokens = 4
    yield


app = FastAPI(lifespan=few_threads)
app.add_middleware(HeapMetricsMiddleware, attribution="native", sampling=1)


def keep() -> None:
    kept[next(places)] = bytes(100)


@app.get("/async")
async def in_a_coroutine() -> str:
    await asyncio.sleep(0)
    keep()
    return "kept"


@app.get("/thread")
def in_a_thread() -> str:
    keep()
    return "kept"


@app.get("/child")
async def in_child_tasks() -> str:
    async def child() -> None:
        await asyncio.sleep(0)
        keep()

    await asyncio.gather(child(), child())
    return "kept"


@app.get("/later")
async def after_the_response(tasks: BackgroundTasks) -> str:
    tasks.add_task(keep)
    return "kept"


@app.get("/clean/{name}")
async def clean(name: str) -> list[dict[str, str]]:
    await asyncio.sleep(0)
    return [{name: str(number)} for number in range(20)]
