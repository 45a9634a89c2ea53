"""`heap_leaks(app)`: asks for a route again and again, and says whether what is alive grows with the requests."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Final

from heap_middleware.errors import SettingsError
from heap_middleware.testing.drivers import HOST, Answer, Interface, Send, driving, interface_of, quiet_client
from heap_middleware.testing.meters import Detail, Meter, meter

__all__ = ["Leak", "Probe"]

_PARTS: Final = 10
"""Of the requests: what is loaded once, or a table that grows now and then, is in a few of them, a leak in most."""
_LEAST: Final = 2 * _PARTS
_SHOWN: Final = 5
_SHARE: Final = 0.05
"""Of the largest: what is less is what a few requests loaded, or the measuring itself."""
_HELD_TYPES: Final = 2
_NOT_ONE_TYPE: Final = frozenset({"(buffer)", "__other__"})
Path = str | Callable[[int], str]


class Leak(AssertionError):
    """Requests leave objects behind; the message says how many, of which types, from which lines, and held by whom."""


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: Path
    headers: dict[str, str]
    body: bytes
    status: int | None

    def path_of(self, number: int) -> str:
        return self.path if isinstance(self.path, str) else self.path(number)

    def check(self, answer: Answer, path: str) -> None:
        status, body = answer
        if status == self.status or (self.status is None and status < 400):
            return
        wanted = "below 400" if self.status is None else str(self.status)
        start = body[:200].decode("utf-8", "replace")
        raise AssertionError(
            f"{self.method} {path} answers {status}, not {wanted}: {start!r}; status={status} if that is what is tested"
        )


@dataclass(frozen=True, slots=True)
class Probe:
    """An application under test. Raises `SettingsError` if nobody can tell whether it is WSGI or ASGI."""

    app: Any
    interface: Interface | None = None
    """`"wsgi"` or `"asgi"`; without it, the application's parameters tell."""
    _requests: tuple[_Request, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        known = self.interface or interface_of(self.app)
        if known not in ("wsgi", "asgi"):
            raise SettingsError(f"interface is {known!r}; allowed: 'wsgi' or 'asgi'")
        object.__setattr__(self, "interface", known)

    def request(
        self,
        method: str,
        path: Path,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        body: bytes = b"",
        status: int | None = None,
    ) -> "Probe":
        """The same with a request to be sent; with several, they are sent in turns.

        `path` may be a function from the number of the request. An answer of 400 or above fails the test, as a wrong
        path leaks nothing; `status` is the one that is expected instead. Each request comes without cookies.
        """
        if not isinstance(method, str) or not (isinstance(path, str) or callable(path)):
            raise SettingsError(
                f"request({method!r}, {path!r}); allowed: a method like 'GET', and a path or a function of a number"
            )
        if status is not None and type(status) is not int:
            raise SettingsError(f"status is {status!r}; allowed: a number such as 404")
        if json is not None and body:
            raise SettingsError("json= beside body=; allowed: one of them")
        sent = dict(headers or {})
        if json is not None:
            body = _encoded(json)
            sent.setdefault("Content-Type", "application/json")
        request = _Request(method.upper(), path, sent, body, status)
        return Probe(self.app, self.interface, (*self._requests, request))

    def stays_flat(self, *, after: int = 50, over: int = 500, at_most: float = 0.01) -> None:
        """Send `after` requests that may fill caches, then `over` more, which must leave nothing behind.

        `at_most` is the number of objects a request may leave alive, at the median of ten parts of the requests: what
        is loaded once does not count. Raises `Leak`, an AssertionError, if it is more. Without the accelerator 0.1 is
        the least that can be told apart, and nothing else may go on in the process.
        """
        self._check(after, over, at_most)
        with meter() as measured, driving(self.app, self.interface or "wsgi") as send:
            course = _Course(self._requests, measured, after, over, at_most)
            for number in course.numbers():
                course.send(send, number)
            course.judge()

    async def stays_flat_here(self, *, after: int = 50, over: int = 500, at_most: float = 0.01) -> None:
        """The same for an ASGI application in the event loop that runs: of a test that is a coroutine itself.

        Its lifespan is the test's own affair, as with `httpx.ASGITransport`.
        """
        self._check(after, over, at_most)
        if self.interface != "asgi":
            raise SettingsError("stays_flat_here is for ASGI applications; for this one use stays_flat")
        from httpx import ASGITransport, AsyncClient  # only who tests an ASGI application needs it

        async with AsyncExitStack() as stack:
            measured = stack.enter_context(meter())
            transport = ASGITransport(self.app)
            stack.enter_context(quiet_client())
            client = await stack.enter_async_context(AsyncClient(transport=transport, base_url=f"http://{HOST}"))
            course = _Course(self._requests, measured, after, over, at_most)
            for number in course.numbers():
                request, path = course.request(number)
                with measured.request():
                    answer = await client.request(request.method, path, headers=request.headers, content=request.body)
                    client.cookies.clear()
                    status_and_body = answer.status_code, answer.content
                    del answer
                request.check(status_and_body, path)
            course.judge()

    def _check(self, after: int, over: int, at_most: float) -> None:
        if not self._requests:
            raise SettingsError('nothing to ask for: heap_leaks(app).request("GET", "/path") first')
        if type(over) is not int or over < _LEAST:
            raise SettingsError(f"over is {over!r}; allowed: an integer of {_LEAST} or more requests")
        if type(after) is not int or after < 1:
            raise SettingsError(f"after is {after!r}; allowed: an integer of 1 or more requests")
        if type(at_most) not in (int, float) or not 0 <= at_most < math.inf:
            raise SettingsError(f"at_most is {at_most!r}; allowed: a number of objects a request, from 0 on")


class _Course:
    """Requests on their way: the level of what is alive is read after each part of them, and a growth explained."""

    def __init__(self, requests: Sequence[_Request], measured: Meter, after: int, over: int, at_most: float) -> None:
        self._requests = requests
        self._meter = measured
        self._after = after
        self._ends = [round(over * part / _PARTS) for part in range(_PARTS + 1)]
        self._at_most = max(at_most, measured.noise)
        self._levels: list[float] = []
        self._explained = max(_LEAST, over // _PARTS)
        self._grown = Detail()

    def numbers(self) -> Iterator[int]:
        """The number of each request; what is to be measured is measured in between."""
        yield from range(self._after)
        self._levels.append(self._meter.level())
        for start, end in pairwise(self._ends):
            yield from range(self._after + start, self._after + end)
            self._levels.append(self._meter.level())
        if self._kept() > self._at_most:
            with self._meter.explaining():
                before = self._meter.detail()
                start = self._after + self._ends[-1]
                yield from range(start, start + self._explained)
                self._grown = self._meter.detail().since(before)

    def _kept(self) -> float:
        """Objects that a request leaves alive."""
        steps = zip(pairwise(self._levels), pairwise(self._ends), strict=True)
        return median((level - before) / (end - start) for (before, level), (start, end) in steps)

    def request(self, number: int) -> tuple[_Request, str]:
        """The request that is the turn's, and its path."""
        request = self._requests[number % len(self._requests)]
        return request, request.path_of(number)

    def send(self, send: Send, number: int) -> None:
        """Send it, and look at the answer."""
        request, path = self.request(number)
        with self._meter.request():
            answer = send(request, path)
        request.check(answer, path)

    def judge(self) -> None:
        """Raise `Leak` if a request leaves more behind than it may."""
        if self._kept() > self._at_most:
            raise Leak(self._words())

    def _words(self) -> str:
        types, lines = _largest(self._grown.types), _largest(self._grown.lines)
        asked = ", ".join(dict.fromkeys(f"{request.method} {request.path_of(0)}" for request in self._requests))
        held = [name for name in types if name not in _NOT_ONE_TYPE][:_HELD_TYPES]
        return "\n".join(
            [
                f"{asked} leaves {self._kept():.3g} objects behind with every request, where {self._at_most:g} may be: "
                f"{self._levels[-1] - self._levels[0]:,.0f} more after {self._ends[-1]:,} requests",
                *_rows("of type", self._per_request(types)),
                *_rows("made at", self._per_request(lines)),
                *(line for module in held for line in _rows("held by", self._meter.holders(module))),
                "A cache that still fills looks the same: raise after=, or allow for it with at_most=.",
            ]
        )

    def _per_request(self, amounts: Mapping[str, float]) -> list[str]:
        return [f"{name} × {amount / self._explained:.3g} a request" for name, amount in amounts.items()]


def _largest(amounts: Mapping[str, float]) -> dict[str, float]:
    most = max(amounts.values(), default=0.0)
    return {name: amount for name, amount in amounts.items() if amount >= _SHARE * most}


def _rows(title: str, entries: Sequence[str]) -> list[str]:
    return [f"  {'' if at else title:<9}{entry}" for at, entry in enumerate(entries[:_SHOWN])]


def _encoded(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except (TypeError, ValueError) as error:
        raise SettingsError(f"json= is no JSON: {error}") from error
