"""ASGI applications without a lifespan, for a client that insists on one."""

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["LifespanOptional"]

_log = logging.getLogger("heap_middleware")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class LifespanOptional:
    """Answers in the place of an application that ends its lifespan, or raises, before it has said a word.

    So do uvicorn's `lifespan="auto"` and the ASGI specification: such an application has none. What it raised is
    logged, for it may have meant to start. What it raises once it has started, or said that it cannot, is its own.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, or the lifespan."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        said = False

        async def told(message: Message) -> None:
            nonlocal said
            said = True
            await send(message)

        try:
            await self._app(scope, receive, told)
        except Exception as error:
            if said:
                raise
            _log.warning("the application is asked without its lifespan, in which it raised %r", error)
        if not said:
            await send({"type": "lifespan.startup.complete"})
            while (await receive())["type"] != "lifespan.shutdown":
                pass
            await send({"type": "lifespan.shutdown.complete"})
