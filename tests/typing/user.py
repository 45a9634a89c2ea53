"""What people write, for mypy and pyright to read: nobody runs it."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from django.core.wsgi import get_wsgi_application
from fastapi import FastAPI
from flask import Flask
from litestar import Litestar, get
from litestar.middleware import DefineMiddleware
from prometheus_client import REGISTRY
from quart import Quart
from starlette.applications import Starlette
from starlette.middleware import Middleware

from heap_middleware import (
    BackendUnavailable,
    HeapCollector,
    HeapDendrogram,
    HeapMonitor,
    HeapSettings,
    SettingsError,
)
from heap_middleware.asgi import HeapMetricsMiddleware as AsgiMiddleware
from heap_middleware.testing import Leak, Probe
from heap_middleware.wsgi import HeapMetricsMiddleware as WsgiMiddleware

# Frameworks, as README has them.
flask_app = Flask(__name__)
flask_app.wsgi_app = WsgiMiddleware(flask_app.wsgi_app, attribution=True)  # type: ignore[method-assign]

django_app = WsgiMiddleware(get_wsgi_application(), attribution=True)


def plain_wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b""]


wsgi_app = WsgiMiddleware(plain_wsgi, attribution=True, report_path="/heap", workers_dir="/run/app")

fastapi_app = FastAPI()
fastapi_app.add_middleware(AsgiMiddleware, attribution=True)

starlette_app = Starlette(middleware=[Middleware(AsgiMiddleware, attribution=True)])
starlette_app.add_middleware(AsgiMiddleware, sampling=64)

quart_app = Quart(__name__)
quart_app.asgi_app = AsgiMiddleware(quart_app.asgi_app, attribution=True)  # type: ignore[method-assign]


@get("/")
async def index() -> str:
    return ""


litestar_app = AsgiMiddleware(Litestar([index]), attribution=True)
litestar_inside = Litestar([index], middleware=[DefineMiddleware(AsgiMiddleware, attribution=True)])

# Settings: their names and types are known.
settings = HeapSettings(attribution="native", sampling=64, app_roots=("/srv/app",), exclude_routes=(r"^/health",))
from_environment: HeapSettings = HeapSettings.from_environment({"HEAP_MIDDLEWARE_SAMPLING": "64"}, attribution=True)
try:
    monitor = HeapMonitor(settings)
except BackendUnavailable:
    monitor = HeapMonitor(HeapSettings(attribution="windows"))
REGISTRY.register(HeapCollector(monitor))
REGISTRY.register(monitor.collector())
served = WsgiMiddleware(plain_wsgi, monitor=monitor)

# Answers.
for suspect in monitor.suspects():
    line: str = (
        f"{suspect.endpoint.method} {suspect.endpoint.route}: {suspect.objects_per_request:.1f} of {suspect.types}"
    )
    for site in monitor.endpoints()[suspect.endpoint].sites:
        where: str = site.where
objects: float = sum(row.objects for row in monitor.census().rows)
paths: list[str] = list(monitor.holders("app.Leak", max_depth=5).paths())
paths = list(monitor.holders(endpoint=("GET", "/leakable")).paths())


@monitor.request("task", "send_mail")
def send_mail(to: str) -> int:
    return len(to)


sent: int = send_mail("somebody")
with monitor.request("task", "sweep"):
    pass

tree = HeapDendrogram(max_depth=5, ignore_modules=("builtins",))
tree.generate()
total: int = tree.total_objects()


def why_not(value: int) -> str:
    try:
        return str(HeapSettings(max_routes=value))
    except SettingsError as error:
        return str(error)


# Tests.
def test_search_does_not_leak(heap_leaks: Callable[..., Probe]) -> None:
    heap_leaks(flask_app).request("GET", "/search").stays_flat(after=50, over=500)


def test_it_does_leak() -> None:
    with pytest.raises(Leak):
        Probe(flask_app).request("POST", "/leak", json={"a": 1}, status=201).stays_flat()


async def test_here(heap_leaks: Callable[..., Probe]) -> None:
    await heap_leaks(fastapi_app).request("GET", lambda number: f"/users/{number}").stays_flat_here(at_most=0.1)
