"""Requests to an application in this process, WSGI or ASGI, without a server."""

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, Protocol

from heap_middleware.errors import SettingsError
from heap_middleware.testing.lifespan import LifespanOptional

__all__ = ["HOST", "Answer", "Asked", "Interface", "Send", "driving", "interface_of", "quiet_client"]

Interface = Literal["wsgi", "asgi"]
HOST: Final = "testserver"
"""That of Starlette's client as well."""
_CONVENTIONS: dict[int, Interface] = {2: "wsgi", 3: "asgi"}


class Asked(Protocol):
    """A request that can be sent again and again."""

    @property
    def method(self) -> str:
        """Its HTTP method."""
        ...

    @property
    def headers(self) -> dict[str, str]:
        """Its headers."""
        ...

    @property
    def body(self) -> bytes:
        """Its body."""
        ...


Answer = tuple[int, bytes]
"""Status and body."""
Send = Callable[[Asked, str], Answer]
"""Sends a request for a path; raises what the application raises."""


def interface_of(app: Any) -> Interface:
    """Which of the two an application speaks. Raises `SettingsError` if nobody can tell."""
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(vars(type(app)).get("__call__")):
        return "asgi"
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        parameters = {}.values()
    wanted = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(wanted) not in _CONVENTIONS:
        raise SettingsError(
            f"whether {type(app).__qualname__} is a WSGI or an ASGI application cannot be told from its parameters; "
            "say heap_leaks(app, interface='wsgi') or 'asgi'"
        )
    return _CONVENTIONS[len(wanted)]


@contextmanager
def driving(app: Any, interface: Interface) -> Iterator[Send]:
    """How to send requests to it. An ASGI application has its lifespan around them, in an event loop of its own.

    One that has none, and says so by an exception or by returning, is asked without, as servers do.
    """
    if interface == "wsgi":
        yield _wsgi(app)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it would rather have httpx2 is not for who tests an application
        try:
            from starlette.testclient import TestClient  # only who tests an ASGI application needs it, and httpx
        except (ImportError, RuntimeError) as error:
            raise SettingsError(f"heap_leaks needs starlette and httpx for an ASGI application: {error}") from error

    with (
        quiet_client(),
        TestClient(LifespanOptional(app), raise_server_exceptions=True, follow_redirects=False) as client,
    ):

        def send(asked: Asked, path: str) -> Answer:
            answer = client.request(asked.method, path, headers=asked.headers, content=asked.body)
            client.cookies.clear()  # each request is a new visitor's
            return answer.status_code, answer.content

        yield send


@contextmanager
def quiet_client() -> Iterator[None]:
    """Keep httpx from logging our own requests, as it does at the level INFO: pytest keeps each record."""
    log = logging.getLogger("httpx")
    log.addFilter(_of_others)
    try:
        yield
    finally:
        log.removeFilter(_of_others)


def _of_others(record: logging.LogRecord) -> bool:
    return HOST not in str(record.args)


def _wsgi(app: Any) -> Send:
    from werkzeug.test import Client  # only who tests a WSGI application needs it

    client = Client(app, use_cookies=False)

    def send(asked: Asked, path: str) -> Answer:
        answer = client.open(path, method=asked.method, headers=asked.headers, data=asked.body)
        try:
            return answer.status_code, answer.get_data()
        finally:
            answer.close()

    return send
