"""Quart and Django leave nothing in the scope or the environ: their own signals say what served the request.

Flask forgets its route when an exception leaves it (PROPAGATE_EXCEPTIONS); its signal comes before that.

The receivers are connected once per process, when a middleware is built, or after the first request that no known
framework served: one imported later than that has its first request without a template.
"""

import sys
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from heap_middleware.endpoints.routes.asked import text

__all__ = ["DJANGO", "QUART", "django_template", "flask_template", "quart_template", "slashed", "watch"]

QUART: Final = "heap_middleware.quart_route"
_FLASK: Final = "heap_middleware.flask_route"
DJANGO: Final = "heap_middleware.django"
"""Where Quart's and Django's signals note in a scope or environ that they served the request."""


def watch() -> None:
    """Look for frameworks, which may be imported late; a glance only while no module came or went."""
    global _modules
    modules = len(sys.modules)
    if modules == _modules:
        return
    for name in tuple(_pending):
        module = sys.modules.get(name)
        if module is not None:
            try:
                _pending[name](module)
                _pending.pop(name, None)
            except Exception:  # half-imported by another thread: the next request tries again
                modules = -1
    _modules = modules


def quart_template(scope: MutableMapping[str, Any]) -> str | None:
    """Return the rule that the signal noted."""
    return text(scope.get(QUART))


def flask_template(environ: MutableMapping[str, Any]) -> str | None:
    """Return the rule of a request that an exception ended."""
    return text(environ.get(_FLASK))


def django_template(request: MutableMapping[str, Any], path: str) -> str | None:
    """Django's route by routing once more; only for a request that Django served and whose own match is out of reach.

    A `request.urlconf` set by a middleware is not seen here.
    """
    if DJANGO not in request:
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
        current.scope[QUART] = current.url_rule.rule
    except Exception:  # no rule matched
        return


def _flask_exception(_sender: Any, **_: Any) -> None:
    try:
        current = sys.modules["flask"].request
        current.environ[_FLASK] = current.url_rule.rule
    except Exception:  # no rule matched
        return


def _connect_flask(signals: Any) -> None:
    signals.got_request_exception.connect(_flask_exception)


def _django_request(**sent: Any) -> None:
    request = sent.get("environ") or sent.get("scope")
    if isinstance(request, MutableMapping):
        request[DJANGO] = True


def _connect_quart(signals: Any) -> None:
    signals.request_started.connect(_quart_request)
    signals.websocket_started.connect(_quart_websocket)


def _connect_django(signals: Any) -> None:
    signals.request_started.connect(_django_request, dispatch_uid=DJANGO)


_modules = -1
_pending: dict[str, Callable[[Any], None]] = {
    "flask.signals": _connect_flask,
    "quart.signals": _connect_quart,
    "django.core.signals": _connect_django,
}
