"""Attribution by the accelerator: what a request allocated and nobody has freed, whatever runs beside it.

The C side (native/tracker.c) knows requests and endpoint *numbers*; this file knows which endpoint has which number. A
request's context variable is set while its code runs: tasks, thread pools and greenlets inherit it, so what they
allocate is the request's, after the response, too.

One tracker serves the process, because it hooks the process's allocators: the first monitor's `sampling`,
`overhead_budget` and `max_tracked` hold for all.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals, Ledger
from heap_middleware.endpoints.windows import Level

if TYPE_CHECKING:
    from heap_middleware._native import Request

try:
    from heap_middleware import _native
except ImportError as error:
    if os.environ.get("HEAP_MIDDLEWARE_REQUIRE_NATIVE") == "1":
        raise
    missing: str | None = str(error)
else:
    missing = None

__all__ = ["TrackerRecorder", "missing"]

_log = logging.getLogger("heap_middleware")
_numbers = itertools.count(1)  # of endpoints, in all recorders; 0 is none


class TrackerRecorder:
    """Counts every request, and follows each through its context. Raises ImportError without the accelerator.

    `sampling` is "auto" (as many allocations as `budget`, a share of one core, pays for) or N: one in N.
    """

    name = "native"
    follows = True

    def __init__(
        self, ledger: Ledger, *, sampling: int | str = "auto", budget: float = 0.01, max_tracked: int = 262_144
    ) -> None:
        if missing is not None:
            raise ImportError(missing)
        self._ledger = ledger
        self._number: dict[Endpoint | None, int] = {None: 0}
        if not _native.statistics()["running"]:
            _native.start(max_tracked, sampling if isinstance(sampling, int) else 0, budget)

    @property
    def spent(self) -> float:
        """Seconds that recording has cost in this process."""
        return _native.statistics()["seconds"]

    def tracked(self) -> tuple[int, int]:
        """Live records, and one allocation in how many is recorded."""
        found = _native.statistics()
        return found["records"], found["interval"]

    def begin(self, held: MutableMapping[str, Any], level: Level) -> "Request":  # noqa: ARG002 - of the interface
        """Start to follow a request: what is allocated from here on in this context is its own."""
        request = _native.Request()
        request.enter()
        return request

    def pause(self, request: "Request") -> None:
        """Leave the context for now; the response is yet to be made."""
        request.leave()

    def iterate(self, parts: Iterable[Any], request: "Request") -> Iterator[Any]:
        """Iterate over a response, each step in the request's context: servers may do it in another thread."""
        return _native.iterate(parts, request)

    def call(self, function: Callable[[], Any], request: "Request") -> Any:
        """Call in the request's context."""
        return _native.call(function, request)

    def finish(
        self,
        window: "Request",
        held: MutableMapping[str, Any],  # noqa: ARG002 - of the interface
        level: Level,  # noqa: ARG002
        method: str,
        route: str | None,
    ) -> None:
        """Take note that the response has ended; the route template is known by now."""
        window.leave()
        endpoint = self._ledger.count(method, route)
        try:
            number = self._number[endpoint]
        except KeyError:
            number = self._number.setdefault(endpoint, next(_numbers))
        window.finish(number)

    def totals(self) -> dict[Endpoint, EndpointTotals]:
        """What is known of each endpoint, up to this moment."""
        rows = _native.snapshot()
        found = self._ledger.snapshot()
        for endpoint, totals in found.items():
            number = self._number.get(endpoint, 0)
            if 0 < number < len(rows):
                gained, lost, gained_bytes, lost_bytes, allocated, allocated_bytes = rows[number]
                found[endpoint] = replace(
                    totals,
                    measured=totals.requests,
                    gained=gained,
                    lost=lost,
                    retained_objects=gained - lost,
                    retained_bytes=gained_bytes - lost_bytes,
                    allocated_objects=allocated,
                    allocated_bytes=allocated_bytes,
                )
        return found

    def disturbing(self) -> AbstractContextManager[None]:
        """Nothing disturbs it: a scrape's own allocations are in no request's context."""
        return nullcontext()


def reset_in_child() -> None:
    """Forget the parent's requests in a forked child, and follow its own."""
    if missing is None and _native.statistics()["running"]:
        _native.reset()
