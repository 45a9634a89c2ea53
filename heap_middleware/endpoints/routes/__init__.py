"""Which route template a request matched: the label `route` of every metric per endpoint.

The rules of this package:

- it is asked after the application ran, because no framework knows the route before;
- `None` means "matched no route", which the ledger writes as `__unmatched__`;
- a template consists of what the application's author configured, never of a part of the request: a path taken from
  the request would let anybody create time series;
- a resolver never raises and never imports a framework: what is not in `sys.modules` did not serve the request.

When a method is not allowed (405): Starlette, FastAPI and Django name the route, Flask, Quart and Litestar none.
"""

from heap_middleware.endpoints.routes.asgi import AsgiRoutes
from heap_middleware.endpoints.routes.asked import RouteOf
from heap_middleware.endpoints.routes.wsgi import WsgiRoutes

__all__ = ["AsgiRoutes", "RouteOf", "WsgiRoutes"]
