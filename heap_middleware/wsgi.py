"""The middleware for WSGI: Flask, Django, any WSGI application.

    app.wsgi_app = HeapMetricsMiddleware(app.wsgi_app, attribution=True)

A WSGI request ends at `close()` of the response iterable (PEP 3333), not when the call returns.
"""

from collections.abc import Callable, Iterable, Iterator
from types import NoneType
from typing import Any, Final

from werkzeug.wrappers import Response

from heap_middleware.endpoints.routes import WsgiRoutes
from heap_middleware.endpoints.windows import Level, Window
from heap_middleware.errors import SettingsError
from heap_middleware.exposition.pages import PageRequest
from heap_middleware.monitor import HeapMonitor
from heap_middleware.settings import HeapSettings

__all__ = ["HeapMetricsMiddleware"]

_SEEN: Final = "heap_middleware.monitor"
_FINISHED: Final = (list, tuple, bytes, str, NoneType)
"""Results with nothing of the application left to run. The last three are mistakes, for the server to find."""
Environ = dict[str, Any]


class HeapMetricsMiddleware:
    """Wraps a WSGI application: answers the metrics path, and measures every other request.

    `monitor` is a `HeapMonitor` of yours; without it, `settings` (the fields of `HeapSettings`) and the environment
    choose one that all middleware with equal settings share. Raises `SettingsError` for a setting that is not allowed,
    and for settings beside a monitor, which has its own.
    """

    def __init__(self, app: Any, *, monitor: HeapMonitor | None = None, **settings: Any) -> None:
        if monitor is not None and settings:
            raise SettingsError(f"{', '.join(sorted(settings))} beside monitor=; a monitor has its own settings")
        self.app = app
        self.monitor = monitor or HeapMonitor.shared(HeapSettings.from_environment(**settings))
        self._routes = WsgiRoutes(self.monitor.settings.route_of, app)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Serve one request."""
        monitor = self.monitor
        if monitor.settings.enabled:
            if monitor.answers(environ.get("PATH_INFO", "")):
                return self._answer(environ, start_response)
            if environ.get(_SEEN) is not monitor:  # nested twice counts once
                window = monitor.begin(environ, Level.RELEASE)
                if window is not None:
                    return _Exchange(self, environ, window).run(start_response)
        result: Iterable[bytes] = self.app(environ, start_response)
        return result

    def _answer(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = PageRequest(
            method=environ.get("REQUEST_METHOD", "GET"),
            path=environ.get("PATH_INFO", ""),
            query=environ.get("QUERY_STRING", ""),
            accept=environ.get("HTTP_ACCEPT", ""),
            accept_encoding=environ.get("HTTP_ACCEPT_ENCODING", ""),
        )
        page = self.monitor.respond(request)
        return Response(page.body, page.status, page.headers)(environ, start_response)

    def _ask(self, resolver: Callable[..., Any], *args: Any) -> Any:
        """Ask the route resolver; None if it fails, so that its fault never becomes the application's."""
        try:
            return resolver(*args)
        except Exception:
            self.monitor.fault("request")
            return None


class _Exchange:
    """One request on its way through the application."""

    __slots__ = ("_arrival", "_ended", "_environ", "_method", "_middleware", "_route", "_window")

    def __init__(self, middleware: HeapMetricsMiddleware, environ: Environ, window: Window) -> None:
        self._middleware = middleware
        self._environ = environ
        self._window = window
        self._method = environ.get("REQUEST_METHOD", "")
        self._arrival = middleware._ask(middleware._routes.on_arrival, environ)
        self._route: str | None = None
        self._ended = False
        environ[_SEEN] = middleware.monitor

    def run(self, start_response: Callable[..., Any]) -> Iterable[bytes]:
        def started(*args: Any, **kwargs: Any) -> Any:
            self.started()
            return start_response(*args, **kwargs)

        try:
            result: Iterable[bytes] = self._middleware.app(self._environ, started)
        except BaseException:
            self.end(None)
            raise
        if type(result) in _FINISHED or _is_wrapped_file(result, self._environ.get("wsgi.file_wrapper")):
            # Servers look at these types: at the length of a list, for Content-Length, and at their own file
            # wrapper, for sendfile.
            self.end(result)
            return result
        return (_SizedBody if hasattr(type(result), "__len__") else _Body)(self, result)

    def started(self) -> None:
        # Flask forgets the matched rule when its context ends, which may be before the response does.
        if self._route is None and not self._ended:
            self._route = self._middleware._ask(self._middleware._routes.at_start, self._environ, self._arrival)

    def end(self, result: Iterable[bytes] | None) -> None:
        """End the request. May be called again, by a server that closes twice: it ends once."""
        if self._ended:
            return
        self._ended = True
        middleware, environ, route = self._middleware, self._environ, self._route
        if route is None:
            route = middleware._ask(middleware._routes.at_end, environ, result, self._arrival)
        environ.pop(_SEEN, None)  # a server may use the environ again
        middleware.monitor.finish(self._window, environ, Level.RELEASE, self._method, route)
        # Whoever keeps the response body must not keep the environ: the idle level waits for its release.
        del self._environ, self._arrival


def _is_wrapped_file(result: Any, wrapper: Any) -> bool:
    """Whether the server will recognise the result as what came out of its `wsgi.file_wrapper`."""
    if isinstance(wrapper, type):
        return issubclass(type(result), wrapper)
    return wrapper is not None and hasattr(type(result), "read")  # uWSGI's is a function that returns the very file


class _Body:
    """The application's response iterable, with an end that we see."""

    __slots__ = ("_exchange", "_result")

    def __init__(self, exchange: _Exchange, result: Any) -> None:
        self._exchange = exchange
        self._result = result

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._result)

    def close(self) -> None:
        """Close the application's iterable, then end the request, even if that raises."""
        try:
            close = getattr(self._result, "close", None)
            if close is not None:
                close()
        finally:
            self._exchange.end(self._result)

    def __del__(self) -> None:
        # A server or middleware that never closes: a window left open would spoil every one after it.
        self._exchange.end(self._result)


class _SizedBody(_Body):
    """The same for an iterable with a length: servers derive Content-Length from a length of one."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._result)
