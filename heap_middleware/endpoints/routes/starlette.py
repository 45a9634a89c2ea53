"""The route template of a request that Starlette's or FastAPI's router served.

What the routers leave in the scope, checked with Starlette 0.50 and 1.10, FastAPI 0.128 and 0.165:

- `endpoint` belongs to the innermost route or mount; without it nothing matched.
- `route` is the innermost route in Starlette 1.x, an API route in FastAPI; it may be missing (documentation pages,
  Starlette 0.x) or belong to an outer router, and is believed only when its endpoint is the scope's.
- FastAPI 0.137 and newer keep the include prefix out of `route`; the effective context has it.
- `app_root_path` is there once a mount was passed. Only then the mounts must be walked: `root_path` is text from the
  request (`/t/42`), the mounts' own paths are the template.
"""

import weakref
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any, Final, NamedTuple

from heap_middleware.endpoints.routes.asked import text

__all__ = ["StarletteTemplates"]

_Scope = MutableMapping[str, Any]
_DEPTH: Final = 32  # mounts inside mounts, and middlewares around a mounted application
_CACHED: Final = 512  # templates of mounted routes
_CACHED_ROOT: Final = 128  # a longer root_path comes from a parameter; keeping it would keep the request's text
_NOTHING: Final = object()


class _Walked(NamedTuple):
    """Where the walk ended: the mounts' joined paths, and the leaf below them if there was one."""

    prefix: str
    leaf: Any = None
    opaque: bool = False  # the last mount's routes are not known: static files, a foreign application
    cacheable: bool = False


class StarletteTemplates:
    """Templates of one application; remembers those of mounted routes without keeping a route alive."""

    def __init__(self) -> None:
        self._cache: dict[tuple[int, str, int], tuple[Any, Any, str]] = {}

    def find(self, scope: _Scope, path: Any, inner: str | None) -> str | None:
        """`path` is the one at arrival, `inner` the template of another framework below a mount."""
        leaf = _leaf(scope)
        if leaf is not None and "app_root_path" not in scope:
            return text(leaf.path)
        if inner is None:
            inner = _frontend(scope)
        if inner is not None:
            return _walk(scope, path).prefix + inner
        return self._cached(scope, path, leaf)

    def _cached(self, scope: _Scope, path: Any, leaf: Any) -> str | None:
        subject = scope.get("endpoint") if leaf is None else leaf
        router, root = scope.get("router"), scope.get("root_path", "")
        key = (id(subject), root, id(router))
        known = self._cache.get(key)
        # The references prove that the ids still mean the same objects.
        if known is not None and known[0]() is subject and known[1]() is router:
            return known[2]
        if subject is None:
            return None
        walked = _walk(scope, path)
        template = text(_joined(walked, leaf))
        if template is not None and len(root) <= _CACHED_ROOT and _may_cache(walked, leaf):
            self._remember(key, subject, router, template)
        return template

    def _remember(self, key: tuple[int, str, int], subject: Any, router: Any, template: str) -> None:
        if len(self._cache) >= _CACHED:
            self._cache.clear()
        try:
            self._cache[key] = (weakref.ref(subject), weakref.ref(router), template)
        except TypeError:  # an endpoint without weak references is walked to each time
            return


def _may_cache(walked: _Walked, leaf: Any) -> bool:
    return walked.cacheable or (leaf is not None and walked.leaf is leaf)


def _joined(walked: _Walked, leaf: Any) -> str | None:
    if walked.leaf is not None:
        return walked.prefix + str(walked.leaf.path)
    if leaf is not None:
        # Inside a mounted application whose routes cannot be seen from outside.
        return walked.prefix + str(leaf.path)
    # Starlette compiles a mount's path to just this; a known router below it that matched nothing is no route.
    return walked.prefix + "/{path:path}" if walked.opaque else None


def _leaf(scope: _Scope) -> Any:
    """Find the object whose `.path` is the matched route's, from the scope alone; None if it is not to be trusted."""
    endpoint = scope.get("endpoint")
    if endpoint is None:
        return None
    route = scope.get("route")
    fastapi = scope.get("fastapi")
    context = fastapi.get("effective_route_context") if fastapi is not None else None
    if context is not None:
        effective = context.starlette_route or context
        # An outer router's context stays in the scope when a mounted application takes over.
        if (route is None or context.original_route is route) and _serves(effective, endpoint):
            return effective
        if context.starlette_route is not None and _serves(context.starlette_route, endpoint):
            return context.starlette_route
    return route if _serves(route, endpoint) else None


def _serves(route: Any, endpoint: Any) -> bool:
    """Tell a leaf: a mount has no endpoint of its own, another framework's route has no `path_regex`."""
    return getattr(route, "endpoint", _NOTHING) is endpoint and getattr(route, "path_regex", None) is not None


def _frontend(scope: _Scope) -> str | None:
    """FastAPI's static frontends: what is before the file's name was compared literally, so it is configuration."""
    fastapi = scope.get("fastapi")
    file = fastapi.get("frontend_path") if fastapi is not None else None
    if type(file) is not str:
        return None
    path, root = scope["path"], scope.get("root_path", "")
    served = path[len(root) :] if root and path.startswith(root) else path
    if not served.endswith(file):
        return None
    return str(served[: len(served) - len(file)].rstrip("/") + "/{path}")


def _walk(scope: _Scope, path: Any) -> _Walked:
    """Follow the mounts again. Starlette before 0.33 shortened `path` at each, others may have rewritten it earlier."""
    walked = _Walked("")
    for tried in dict.fromkeys((path, scope.get("path"))):
        probe = dict(scope, path=tried, root_path=scope.get("app_root_path", scope.get("root_path", "")), fastapi={})
        walked = _descend(scope["router"].routes, probe, scope.get("endpoint"))
        if walked.prefix or walked.leaf is not None or walked.opaque:
            break
    return walked


def _descend(routes: Any, probe: dict[str, Any], endpoint: Any) -> _Walked:
    prefix, cacheable = "", True
    for _ in range(_DEPTH):
        level = tuple(_flat(routes))
        route, child = _choose(level, probe, endpoint)
        if route is None:
            return _Walked(prefix)
        if hasattr(route, "endpoint"):
            return _Walked(prefix, route, cacheable=cacheable and _alone(level, endpoint))
        # Which Host matched is not in the key of the cache, nor is a mount without a path; a Host has no path.
        cacheable = cacheable and bool(getattr(route, "path", ""))
        prefix += getattr(route, "path", "")
        probe.update(child)
        routes = _routes_below(route)
        if not routes:
            return _Walked(prefix, opaque=True, cacheable=cacheable)
    return _Walked(prefix)


def _flat(routes: Iterable[Any]) -> Iterator[Any]:
    """FastAPI 0.137 and newer keep an included router as one route; its routes with their prefixes are contexts."""
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            yield from (context.starlette_route or context for context in contexts())


def _choose(level: tuple[Any, ...], probe: dict[str, Any], endpoint: Any) -> tuple[Any, dict[str, Any]]:
    """Choose the route the router took: the first full match, else the first partial one (405), as in Starlette.

    Only mounts and routes with the endpoint that ran are matched again: any other leaf was not taken.
    """
    partial: tuple[Any, dict[str, Any]] = (None, {})
    for route in level:
        if getattr(route, "endpoint", endpoint) is not endpoint:
            continue
        match, child = route.matches(probe)
        if match.value == 2:
            return route, child
        if match.value == 1 and partial[0] is None:
            partial = (route, child)
    return partial


def _alone(level: tuple[Any, ...], endpoint: Any) -> bool:
    """Whether the endpoint names one route here; a mount without a path could hide a second one."""
    names = sum(getattr(route, "endpoint", _NOTHING) is endpoint for route in level)
    return names == 1 and all(getattr(route, "path", "") for route in level)


def _routes_below(mount: Any) -> Any:
    """Find the routes of a mounted application, also behind middlewares; empty when they are not Starlette's."""
    routes, app = mount.routes, getattr(mount, "app", None)
    for _ in range(_DEPTH):
        if _are_routes(routes):
            return routes
        routes, app = getattr(app, "routes", None), getattr(app, "app", None)
    return ()


def _are_routes(routes: Any) -> bool:
    """Litestar's applications and our own middleware may have an attribute of this name, too."""
    return isinstance(routes, list | tuple) and bool(routes) and hasattr(routes[0], "matches")
