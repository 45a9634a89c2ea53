"""The route template of a WSGI request: Flask, Django, and both mounted with Werkzeug's DispatcherMiddleware."""

from collections.abc import MutableMapping
from typing import Any, Final

from heap_middleware.endpoints.routes.asked import RouteOf, asked, text
from heap_middleware.endpoints.routes.signals import django_template, flask_template, slashed, watch

__all__ = ["WsgiRoutes"]

_Environ = MutableMapping[str, Any]
_HOPS: Final = 16  # middlewares looked through for a dispatcher; also ends the walk in a chain that is a ring
_INNER: Final = ("app", "wsgi_app", "application")
_MISSING: Final = object()


class WsgiRoutes:
    """Asked at two moments of a request; `app` is the wrapped application, to know its mounts.

    `arrival` is the SCRIPT_NAME before the application ran: dispatchers lengthen it in place.
    """

    def __init__(self, route_of: RouteOf | None = None, app: Any = None) -> None:
        self._route_of = route_of
        self._app = app
        self._mounts: set[str] = set()  # those seen in use; bounded, as only configured ones get in
        watch()

    def at_start(self, environ: _Environ, arrival: Any = None) -> str | None:
        """Inside `start_response`: Flask forgets its request when its context is popped."""
        if self._route_of is not None:
            found = asked(self._route_of, environ)
            if found is not None:
                return found
        try:
            found = environ["werkzeug.request"].url_rule.rule
            if environ.get("SCRIPT_NAME", "") == arrival and type(found) is str:
                return found
            return None if text(found) is None else self._mounted(environ, arrival) + found
        except Exception:  # not Flask, or no rule matched
            return None

    def at_end(self, environ: _Environ, response: Any, arrival: Any = None) -> str | None:
        """After the application returned (`response` is None when it raised), if `at_start` found nothing."""
        found = asked(self._route_of, environ)
        if found is None:
            watch()
            try:
                found = flask_template(environ) or _django(environ, response)
                return None if found is None else self._mounted(environ, arrival) + found
            except Exception:
                return None
        return found

    def _mounted(self, environ: _Environ, arrival: Any) -> str:
        """Tell what a dispatcher added to SCRIPT_NAME, if it is one of its configured mounts.

        The difference alone proves nothing: ProxyFix takes a prefix from a header, others take a tenant from the path.
        """
        now = environ.get("SCRIPT_NAME", "")
        if now == arrival or type(now) is not str or type(arrival) is not str or not now.startswith(arrival):
            return ""
        prefix = now[len(arrival) :]
        if prefix not in self._mounts:
            if not _is_mount(self._app, prefix):
                return ""
            self._mounts.add(prefix)
        return prefix


def _is_mount(app: Any, prefix: str, hops: int = _HOPS) -> bool:
    while app is not None and hops > 0:
        hops -= 1
        mounts = getattr(app, "mounts", None)
        for mount, inner in tuple(mounts.items()) if isinstance(mounts, dict) else ():
            if mount and prefix == mount:
                return True
            if mount and prefix.startswith(mount + "/") and _is_mount(inner, prefix[len(mount) :], hops):
                return True
        app = next((getattr(app, name) for name in _INNER if hasattr(app, name)), None)
    return False


def _django(environ: _Environ, response: Any) -> str | None:
    match = _resolver_match(response)
    if match is not _MISSING:
        return None if match is None else slashed(match.route)
    # PEP 3333: the bytes of the path as latin-1.
    return django_template(environ, environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace"))


def _resolver_match(response: Any) -> Any:
    """Django's own match, without routing again: its response holds `request.close` until it is closed.

    A server's file wrapper takes over the response's `close`, so the response is found through that method, too.
    """
    owner = getattr(getattr(response, "close", None), "__self__", None)
    for closer in reversed(getattr(owner, "_resource_closers", ())):
        held = getattr(closer, "__self__", None)
        match = getattr(held, "__dict__", {}).get("resolver_match", _MISSING)
        if match is not _MISSING:
            return match
    return _MISSING
