"""The middleware for ASGI: FastAPI, Starlette, Quart, Litestar, any ASGI application.

    app.add_middleware(HeapMetricsMiddleware, attribution=True)

An ASGI request ends when the application's call ends: after its background tasks, and for a websocket after it closed.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync
from starlette.responses import Response, StreamingResponse

from heap_middleware.endpoints.routes import AsgiRoutes
from heap_middleware.endpoints.windows import Level
from heap_middleware.errors import SettingsError
from heap_middleware.exposition.access import Caller
from heap_middleware.exposition.requests import PageRequest
from heap_middleware.monitor import HeapMonitor
from heap_middleware.settings import HeapSettings

__all__ = ["HeapMetricsMiddleware"]

Scope = Any
"""A mutable mapping of str; each framework has a type of its own for it, which another one is not."""
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

_scrape_threads: RunVar[anyio.CapacityLimiter] = RunVar("heap_middleware.scrape_threads")
"""Threads for scrapes, per event loop: not those that the application's own synchronous endpoints run in."""
_SCRAPE_THREADS: Final = 4
_ARRIVAL: Final = Level.ARRIVAL


class HeapMetricsMiddleware:
    """Wraps an ASGI application: answers the metrics path, and measures every other request and websocket.

    `monitor` is a `HeapMonitor` of yours; without it, `settings` (the fields of `HeapSettings`) and the environment
    choose one that all middleware with equal settings share. Raises `SettingsError` for a setting that is not allowed,
    and for settings beside a monitor, which has its own.
    """

    if TYPE_CHECKING:
        # Beside **settings, type checkers match Starlette's add_middleware only against a positional application;
        # Litestar's DefineMiddleware passes it by name.
        app: Any
        monitor: HeapMonitor
        _routes: AsgiRoutes

        def __init__(self, app: Any, /, *, monitor: HeapMonitor | None = None, **settings: Any) -> None: ...

    else:

        def __init__(self, app, *, monitor=None, **settings):
            if monitor is not None and settings:
                raise SettingsError(f"{', '.join(sorted(settings))} beside monitor=; a monitor has its own settings")
            self.app = app
            self.monitor = monitor or HeapMonitor.shared(HeapSettings.from_environment(**settings))
            self._routes = AsgiRoutes(self.monitor.settings.route_of)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Serve one request, websocket or lifespan."""
        monitor = self.monitor
        kind = scope.get("type")
        if kind == "http":
            # Without a prefix, as most are served, a call less.
            if (_path(scope) if scope.get("root_path") else scope.get("path")) in monitor.paths:
                return await self._answer(scope, receive, send)
            method = scope.get("method", "")
        elif kind == "websocket":
            method = "WEBSOCKET"
        else:
            try:
                return await self.app(scope, receive, send)
            finally:
                if kind == "lifespan":
                    monitor.flush()  # uvicorn ends its workers by the signal itself, and they skip `atexit`
        recorder = monitor.recorder
        if recorder is None or monitor.key in scope:  # nested twice counts once
            return await self.app(scope, receive, send)
        try:
            window = recorder.begin(scope, _ARRIVAL)
        except Exception:
            monitor.fault("request")
            return await self.app(scope, receive, send)
        arrival = scope.get("path")  # Litestar shortens it in place at its mounts
        scope[monitor.key] = True
        try:
            return await self.app(scope, receive, send)
        finally:
            scope.pop(monitor.key, None)  # whoever calls may use the scope again
            route = None
            try:
                route = self._routes.at_end(scope, arrival)
            except Exception:
                monitor.fault("request")
            try:
                recorder.finish(window, scope, _ARRIVAL, method, route)
            except Exception:
                monitor.fault("request")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers", ())}
        client = scope.get("client")
        request = PageRequest(
            method=scope.get("method", "GET"),
            path=_path(scope),
            query=scope.get("query_string", b"").decode("latin-1"),
            accept=headers.get("accept", ""),
            accept_encoding=headers.get("accept-encoding", ""),
            mount=scope.get("root_path") or "",
            caller=Caller(client[0] if client else "", headers, scope),
        )
        # A census takes from milliseconds to seconds: not on the event loop.
        page = await run_sync(self.monitor.respond, request, limiter=_limiter())
        if not isinstance(page.body, bytes):
            await StreamingResponse(page.body, page.status, dict(page.headers))(scope, receive, send)
            return
        response = Response(page.body, page.status, dict(page.headers))
        if request.method == "HEAD":
            response.body = b""
        await response(scope, receive, send)


def _limiter() -> anyio.CapacityLimiter:
    try:
        return _scrape_threads.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_SCRAPE_THREADS)
        _scrape_threads.set(limiter)
        return limiter


def _path(scope: Scope) -> str:
    """Find the path below `root_path`: servers put the prefix they were given in front of it."""
    path: str = scope.get("path", "")
    root: str = scope.get("root_path") or ""
    if not root:
        return path
    root = root.rstrip("/")
    return path[len(root) :] if path.startswith(root + "/") else path
