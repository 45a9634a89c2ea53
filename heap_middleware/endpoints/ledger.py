"""What is known of each endpoint: the sums that become the per-endpoint metrics.

The rules of this file:
- Labels are bounded. The method is one of HTTP's own, a kind of work that the program itself named, or `OTHER`; the
  route is a template, `__unmatched__`, or, once `max_routes` have been seen, `__other__`. Nothing that a client chooses
  becomes a label.
- Counters only grow: `gained` and `lost` take the measured changes by sign, so their difference is the net change.
- One lock, held only around arithmetic and dict look-ups with `str` keys: no code of the application can run under it,
  and it is re-entrant, because a signal handler or finalizer may serve a request in the middle of one of ours.
- Counting a request takes no lock, which alone would cost a fifth of what the middleware adds to a Flask request: it
  draws from an `itertools.count`, one step that no thread can interrupt. To read the number is to draw as well, so the
  draws for reading are counted and taken off.
"""

import itertools
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from heap_middleware.endpoints.sites import Site

__all__ = ["OTHER_ROUTE", "UNMATCHED", "Endpoint", "EndpointTotals", "Ledger"]

UNMATCHED: Final = "__unmatched__"
OTHER_ROUTE: Final = "__other__"
_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE", "WEBSOCKET"}
)
_OTHER_METHOD: Final = "OTHER"
_MAX_KINDS: Final = 16
"""Kinds of work beside HTTP's methods: a program has a few, "task" and "message" say."""
_REMEMBERED: Final = 32
"""Measured requests whose mean an unmeasured one is taken to be like. A mean of all of them would carry what a
service's start left behind into every later request, and a clean route would seem to grow for hours."""
_MEMO_LIMIT: Final = 4096
"""Remembered answers for (method, template) pairs; templates are few, but a `route_of` may make them up."""


class Endpoint(NamedTuple):
    """The labels of one endpoint: HTTP method and route template."""

    method: str
    route: str


@dataclass(slots=True)
class EndpointTotals:
    """Sums over the requests of one endpoint since the process started. Objects are memory blocks of CPython."""

    requests: int = 0
    measured: int = 0
    gained: float = 0.0
    lost: float = 0.0
    retained_objects: float = 0.0
    """Objects that requests left alive; with the windows backend an estimate, in which each request stands for the
    mean of the measured ones around it."""
    retained_bytes: float | None = None
    """The same in bytes; None where the backend does not know, as the two below."""
    allocated_objects: float | None = None
    allocated_bytes: float | None = None
    sites: tuple[Site, ...] = ()
    """The lines that allocated what is retained, most objects first; empty where the backend knows none."""
    scatter: float = 0.0
    """Mean square of what a measured request gave back, where not every request is measured."""

    @property
    def objects_per_request(self) -> float:
        """Net objects a measured request left alive, on average; 0.0 while none was measured."""
        return (self.gained - self.lost) / self.measured if self.measured else 0.0


class _Row:
    """The running sums of one endpoint; None for the requests of excluded routes, which are shown nowhere."""

    __slots__ = (
        "covered",
        "endpoint",
        "gained",
        "lost",
        "mean",
        "measured",
        "reads",
        "requests",
        "retained",
        "squares",
    )

    def __init__(self, endpoint: Endpoint | None) -> None:
        self.endpoint = endpoint
        self.requests = itertools.count()
        self.reads = 0
        self.measured = 0
        self.gained = 0.0
        self.lost = 0.0
        self.squares = 0.0  # of the losses
        self.mean = 0.0  # of the measured changes, the older ones forgotten by and by
        self.covered = 0  # requests that `retained` accounts for
        self.retained = 0.0

    def count(self) -> int:
        requests = next(self.requests) - self.reads
        self.reads += 1
        return requests

    def measure(self, change: float) -> None:
        self.measured += 1
        if change >= 0:
            self.gained += change
        else:
            self.lost -= change
            self.squares += change * change
        self.mean += (change - self.mean) / min(self.measured, _REMEMBERED)
        requests = self.count()
        self.retained += self.mean * (requests - self.covered)
        self.covered = requests

    def totals(self) -> EndpointTotals:
        requests = self.count()
        retained = self.retained + self.mean * (requests - self.covered)
        scatter = self.squares / self.measured if self.measured else 0.0
        return EndpointTotals(requests, self.measured, self.gained, self.lost, retained, scatter=scatter)


class Ledger:
    """Totals by endpoint. Safe to use from several threads."""

    def __init__(self, max_routes: int = 500, exclude_routes: Sequence[str] = ()) -> None:
        self._max_routes = max_routes
        self._exclude = [re.compile(pattern) for pattern in exclude_routes]
        self._lock = threading.RLock()
        self._rows: dict[Endpoint, _Row] = {}
        self._routes: set[str] = set()
        self._memo: dict[tuple[str, str | None], _Row] = {}
        self._methods = set(_METHODS)

    def admit(self, kind: str) -> None:
        """Let a kind of work that is no HTTP request go by its own name; sixteen may, later ones are `OTHER`."""
        if kind in self._methods:  # as it is but for the first time: without the lock
            return
        with self._lock:
            if len(self._methods) < len(_METHODS) + _MAX_KINDS:
                self._methods.add(kind)

    def count(self, method: str, route: str | None) -> Endpoint | None:
        """Record one served request; returns the labels it goes by, or None if its route is excluded."""
        row = self._memo.get((method, route)) or self._admit(method, route)
        next(row.requests)
        return row.endpoint

    def counter(self, method: str, route: str | None) -> Callable[[], object] | None:
        """What records one served request of these, for who calls it more often; None if they are not remembered."""
        row = self._memo.get((method, route))
        return None if row is None else row.requests.__next__

    def measure(self, endpoint: Endpoint, change: float) -> None:
        """Record by how many objects the heap changed over one request that was already counted."""
        with self._lock:
            self._rows[endpoint].measure(change)

    def snapshot(self) -> dict[Endpoint, EndpointTotals]:
        """A copy of all totals."""
        with self._lock:
            return {endpoint: row.totals() for endpoint, row in self._rows.items()}

    def _admit(self, method: str, asked: str | None) -> _Row:
        route = asked
        with self._lock:
            if route is not None and any(pattern.search(route) for pattern in self._exclude):
                row = _Row(None)
            else:
                if route is not None:  # lone surrogates, from a `route_of`, have no place in a metric
                    route = route.encode("utf-8", "backslashreplace").decode("utf-8")
                endpoint = Endpoint(method if method in self._methods else _OTHER_METHOD, self._bounded(route))
                row = self._rows.setdefault(endpoint, _Row(endpoint))
            # Unknown methods and the routes beyond the limit are chosen by others: they are not remembered.
            if method in self._methods and len(self._memo) < _MEMO_LIMIT:
                self._memo[method, asked] = row
            return row

    def _bounded(self, route: str | None) -> str:
        if route is None:
            return UNMATCHED
        if route in self._routes:
            return route
        if len(self._routes) >= self._max_routes:
            return OTHER_ROUTE
        self._routes.add(route)
        return route
