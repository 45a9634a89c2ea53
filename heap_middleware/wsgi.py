"""The middleware for WSGI: Flask, Django, any WSGI application.

    app.wsgi_app = HeapMetricsMiddleware(app.wsgi_app, attribution=True)

A WSGI request ends at `close()` of the response iterable (PEP 3333), not when the call returns.
"""

from collections.abc import Callable, Iterable, Iterator
from types import NoneType
from typing import Any, Final, cast

from werkzeug.wrappers import Response
from werkzeug.wsgi import ClosingIterator

from heap_middleware.endpoints.recorder import Follower, RequestRecorder
from heap_middleware.endpoints.routes import WsgiRoutes
from heap_middleware.endpoints.windows import Level
from heap_middleware.errors import SettingsError
from heap_middleware.exposition.access import Caller
from heap_middleware.exposition.requests import PageRequest
from heap_middleware.monitor import HeapMonitor
from heap_middleware.settings import HeapSettings

__all__ = ["HeapMetricsMiddleware"]

_FINISHED: Final = (list, tuple, bytes, str, NoneType)
"""Results with nothing of the application left to run. The last three are mistakes, for the server to find."""
_RELEASE: Final = Level.RELEASE
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
        if environ.get("PATH_INFO") in monitor.paths:
            return self._answer(environ, start_response)
        recorder = monitor.recorder
        if recorder is None or monitor.key in environ:  # nested twice counts once
            return self.app(environ, start_response)  # type: ignore[no-any-return]
        try:
            window = recorder.begin(environ, _RELEASE)
        except Exception:
            monitor.fault("request")
            return self.app(environ, start_response)  # type: ignore[no-any-return]
        exchange = _Exchange(self, recorder, environ, start_response, window)
        wrapper = environ.get("wsgi.file_wrapper")  # the application may change what it was given
        try:
            result = self.app(environ, exchange.start_response)
        except BaseException:
            exchange.end(None)
            raise
        if type(result) is not ClosingIterator and (  # Werkzeug's and Flask's: the common case, decided fast
            type(result) in _FINISHED or _is_wrapped_file(result, wrapper) or not _can_be_iterated(type(result))
        ):
            # Servers look at these types: at the length of a list, for Content-Length, and at their own file
            # wrapper, for sendfile.
            exchange.end(result)
            return result  # type: ignore[no-any-return]
        if recorder.follows:
            return cast(Follower, recorder).body(result, window, exchange.end)
        return (_SizedBody if hasattr(type(result), "__len__") else _Body)(exchange, result)

    def _answer(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = PageRequest(
            method=environ.get("REQUEST_METHOD", "GET"),
            path=environ.get("PATH_INFO", ""),
            query=environ.get("QUERY_STRING", ""),
            accept=environ.get("HTTP_ACCEPT", ""),
            accept_encoding=environ.get("HTTP_ACCEPT_ENCODING", ""),
            mount=environ.get("SCRIPT_NAME", ""),
            caller=_caller(environ),
        )
        page = self.monitor.respond(request)
        return Response(page.body, page.status, page.headers)(environ, start_response)


def _caller(environ: Environ) -> Caller:
    headers = {
        name[5:].replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") and type(value) is str
    }
    return Caller(environ.get("REMOTE_ADDR") or "", headers, environ)


class _Exchange:
    """One request on its way through the application."""

    __slots__ = (
        "_arrival",
        "_environ",
        "_middleware",
        "_route",
        "_start_response",
        "ended",
        "recorder",
        "window",
    )

    def __init__(
        self,
        middleware: HeapMetricsMiddleware,
        recorder: RequestRecorder,
        environ: Environ,
        start_response: Callable[..., Any],
        window: Any,
    ) -> None:
        self._middleware = middleware
        self.recorder = recorder
        self._environ = environ
        self._start_response = start_response
        self.window = window
        self._arrival = environ.get("SCRIPT_NAME", "")
        self._route: str | None = None
        self.ended = False
        environ[middleware.monitor.key] = True

    def start_response(self, *args: Any, **kwargs: Any) -> Any:
        """Pass it on, after a look at the route: Flask forgets it when its context ends, before the response does."""
        if self._route is None and not self.ended:
            try:
                self._route = self._middleware._routes.at_start(self._environ, self._arrival)
            except Exception:
                self._middleware.monitor.fault("request")
        # Without keywords, as PEP 3333 has it, a call costs a microsecond less.
        return self._start_response(*args, **kwargs) if kwargs else self._start_response(*args)

    def end(self, result: Iterable[bytes] | None) -> None:
        """End the request. May be called again, by a server that closes twice: it ends once."""
        if self.ended:
            return
        self.ended = True
        middleware, environ, route = self._middleware, self._environ, self._route
        environ.pop(middleware.monitor.key, None)  # a server may use the environ again
        if route is None:
            try:
                route = middleware._routes.at_end(environ, result, self._arrival)
            except Exception:
                middleware.monitor.fault("request")
        try:
            self.recorder.finish(self.window, environ, _RELEASE, environ.get("REQUEST_METHOD", ""), route)
        except Exception:
            middleware.monitor.fault("request")
        # Whoever keeps the response body must not keep the environ: the idle level waits for its release.
        del self._environ, self._arrival


def _is_wrapped_file(result: Any, wrapper: Any) -> bool:
    """Whether the server will recognise the result as what came out of its `wsgi.file_wrapper`."""
    if isinstance(wrapper, type):
        return issubclass(type(result), wrapper)
    return wrapper is not None and hasattr(type(result), "read")  # uWSGI's is a function that returns the very file


def _can_be_iterated(kind: type) -> bool:
    """Whether `iter` may take it; else it is one more mistake for the server to find."""
    return hasattr(kind, "__iter__") or hasattr(kind, "__getitem__")


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
        if not self._exchange.ended:
            # A server or middleware that never closes: a window left open would spoil every one after it.
            self._exchange.end(self._result)


class _SizedBody(_Body):
    """The same for an iterable with a length: servers derive Content-Length from a length of one."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._result)
