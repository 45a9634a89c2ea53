"""Work that is no HTTP request, measured like one: a block, a function, or a coroutine function."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, ContextDecorator
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar, cast

__all__ = ["Work"]

Function = TypeVar("Function", bound=Callable[..., Any])


def _is(kind: Callable[[object], bool], function: object) -> bool:
    """Whether a function, or an object that is called like one, is of a kind."""
    return kind(function) or kind(getattr(function, "__call__", None))  # noqa: B004


class Work(ContextDecorator):
    """A context manager, for one block after another, and a decorator, for any number of calls at once.

    Blocks that overlap, in threads or coroutines, each need one of their own.
    """

    def __init__(self, measuring: Callable[[], AbstractContextManager[None]]) -> None:
        """`measuring` makes the context in which one piece of it is measured."""
        self._measuring = measuring
        self._entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        entered = self._measuring()
        entered.__enter__()
        self._entered.append(entered)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._entered.pop().__exit__(kind, error, traceback)

    def __call__(self, function: Function) -> Function:
        """Measure each call, of a coroutine function until it has ended. Raises TypeError for a generator function."""
        if _is(inspect.isgeneratorfunction, function) or _is(inspect.isasyncgenfunction, function):
            raise TypeError(
                f"{getattr(function, '__qualname__', function)} is a generator function, whose call does no work yet; "
                "allowed: functions and coroutine functions, or a with block around the loop"
            )
        measuring = self._measuring
        if _is(inspect.iscoroutinefunction, function):

            @wraps(function)
            async def until_it_ends(*arguments: Any, **named: Any) -> Any:
                with measuring():
                    return await function(*arguments, **named)

            return cast(Function, until_it_ends)

        @wraps(function)
        def measured(*arguments: Any, **named: Any) -> Any:
            with measuring():
                return function(*arguments, **named)

        return cast(Function, measured)
