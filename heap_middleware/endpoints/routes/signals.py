"""Quart and Django leave nothing in the scope or the environ: their own signals say what served the request.

The receivers are connected once per process, on the first request after the framework was imported.
"""

import sys
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from heap_middleware.endpoints.routes.asked import text

__all__ = ["django_template", "quart_template", "slashed", "watch"]

_QUART: Final = "heap_middleware.quart_route"
_DJANGO: Final = "heap_middleware.django"


def watch() -> None:
    """Look for frameworks at every request, as they may be imported late: two look-ups while none is there."""
    for name in tuple(_pending) if _pending else ():
        module = sys.modules.get(name)
        if module is not None:
            try:
                _pending[name](module)
            except Exception:  # noqa: S112 - half-imported by another thread: the next request tries again
                continue
            _pending.pop(name, None)


def quart_template(scope: MutableMapping[str, Any]) -> str | None:
    """Return the rule that the signal noted."""
    return text(scope.get(_QUART))


def django_template(request: MutableMapping[str, Any], path: str) -> str | None:
    """Django's route by routing once more; only for a request that Django served and whose own match is out of reach.

    A `request.urlconf` set by a middleware is not seen here.
    """
    if _DJANGO not in request:
        return None
    try:
        return slashed(sys.modules["django.urls"].resolve(path).route)
    except Exception:  # Resolver404 among them
        return None


def slashed(route: Any) -> str | None:
    """Django's string with the leading slash it leaves out; an outer `^` goes, as Django drops the inner ones."""
    return "/" + route.removeprefix("^").removeprefix("/") if type(route) is str else None


# Quart runs receivers that are no coroutines in a thread; these must stay `async`.
async def _quart_request(_sender: Any, **_: Any) -> None:
    _note_quart("request")


async def _quart_websocket(_sender: Any, **_: Any) -> None:
    _note_quart("websocket")


def _note_quart(name: str) -> None:
    try:
        current = getattr(sys.modules["quart"], name)
        current.scope[_QUART] = current.url_rule.rule
    except Exception:  # no rule matched
        return


def _django_request(**sent: Any) -> None:
    request = sent.get("environ") or sent.get("scope")
    if isinstance(request, MutableMapping):
        request[_DJANGO] = True


def _connect_quart(signals: Any) -> None:
    signals.request_started.connect(_quart_request)
    signals.websocket_started.connect(_quart_websocket)


def _connect_django(signals: Any) -> None:
    signals.request_started.connect(_django_request, dispatch_uid=_DJANGO)


_pending: dict[str, Callable[[Any], None]] = {
    "quart.signals": _connect_quart,
    "django.core.signals": _connect_django,
}
