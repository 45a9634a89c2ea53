"""The route template of an ASGI request: Starlette, FastAPI, Litestar, Quart, Django, and one mounted in another."""

from collections.abc import MutableMapping
from typing import Any

from heap_middleware.endpoints.routes.asked import RouteOf, asked, text
from heap_middleware.endpoints.routes.signals import DJANGO, QUART, django_template, quart_template, watch
from heap_middleware.endpoints.routes.starlette import StarletteTemplates

__all__ = ["AsgiRoutes"]

_Scope = MutableMapping[str, Any]


class AsgiRoutes:
    """Asked after the application returned or raised."""

    def __init__(self, route_of: RouteOf | None = None) -> None:
        self._route_of = route_of
        self._starlette = StarletteTemplates()
        watch()

    def at_end(self, scope: _Scope, arrival: Any) -> str | None:
        """Ask after the application returned or raised; `arrival` is the path before it ran."""
        if self._route_of is not None:
            found = asked(self._route_of, scope)
            if found is not None:
                return found
        try:
            return _plain(scope) or self._find(scope, arrival)
        except Exception:  # a scope of no framework known here
            return None

    def _find(self, scope: _Scope, arrival: Any) -> str | None:
        if "path_template" in scope:
            return self._litestar(scope, arrival)
        inner = (quart_template(scope) or _django(scope)) if QUART in scope or DJANGO in scope else None
        if "router" in scope:
            return self._starlette.find(scope, arrival, inner)
        if inner is None:
            watch()
        return inner

    def _litestar(self, scope: _Scope, arrival: Any) -> str | None:
        handler = scope.get("route_handler")
        if getattr(handler, "is_mount", False) is True:
            mount = _litestar_mount(scope, handler, arrival)
            below = self._starlette.find(scope, scope.get("path"), None) if "router" in scope else quart_template(scope)
            return mount + (below or "/{path:path}") if mount is not None else None
        template = text(scope["path_template"])
        return self._starlette.find(scope, arrival, template) if "router" in scope else template


def _plain(scope: _Scope) -> str | None:
    """Answer the common case, at half the price: Starlette's own router found the route, below no mount."""
    if (
        "route" in scope
        and "app_root_path" not in scope
        and "fastapi" not in scope
        and "path_template" not in scope
        and QUART not in scope
        and DJANGO not in scope
    ):
        route = scope["route"]
        try:
            if route.endpoint is scope["endpoint"] and route.path_regex is not None:
                return text(route.path)
        except (AttributeError, KeyError):
            return None
    return None


def _litestar_mount(scope: _Scope, handler: Any, arrival: Any) -> str | None:
    """Find the mount's configured path: for a mount, `path_template` is that of the root (Litestar 2.25)."""
    routes = scope["litestar_app"].routes
    paths = [route.path for route in routes if getattr(route, "route_handler", None) is handler]
    fitting = [path for path in paths if path.rstrip("/") + "/" in f"{arrival}/"]
    mount = text(max(fitting or paths, key=len, default=None))
    return None if mount is None else mount.rstrip("/")


def _django(scope: _Scope) -> str | None:
    path = scope.get("path")
    return django_template(scope, path.removeprefix(scope.get("root_path", ""))) if type(path) is str else None
