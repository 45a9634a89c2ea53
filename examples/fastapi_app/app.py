"""A FastAPI application with two routes that leak: uvicorn app:app, then python load.py."""

from fastapi import FastAPI

from heap_middleware.asgi import HeapMetricsMiddleware


class AsyncLeak:
    """What /leak/async leaves behind with every request."""


class ThreadLeak:
    """What /leak/thread leaves behind with every request."""


leakable: list[object] = []

app = FastAPI()
app.add_middleware(HeapMetricsMiddleware, attribution=True, report_path="/heap")
shop = FastAPI()


@app.get("/leak/async")
async def leak_async() -> dict[str, int]:
    leakable.append(AsyncLeak())  # on the event loop
    return {"leaked": len(leakable)}


@app.get("/leak/thread")
def leak_thread() -> dict[str, int]:
    leakable.append(ThreadLeak())  # in a thread of the pool: that is where `def` endpoints run
    return {"leaked": len(leakable)}


@app.get("/clean")
async def clean() -> dict[str, int]:
    garbage = [AsyncLeak() for _ in range(100)]  # a lot of work, and nothing stays
    return {"made": len(garbage)}


@app.get("/users/{user_id}")
async def user(user_id: int) -> dict[str, object]:
    return {"id": user_id, "name": f"user {user_id}", "groups": ["readers", "writers"]}


@shop.get("/items/{item_id}")
async def item(item_id: int) -> dict[str, int]:
    return {"id": item_id, "price": item_id * 3}


app.mount("/shop", shop)
