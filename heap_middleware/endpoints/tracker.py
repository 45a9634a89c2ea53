"""Attribution by the accelerator: what a request allocated and nobody has freed, whatever runs beside it.

The C side (native/tracker.c) knows requests and endpoint *numbers*; this file knows which endpoint has which number. A
request's context variable is set while its code runs: what copies its context inherits it, asyncio's and anyio's tasks
and threads above all, so what they allocate is the request's, after the response, too.

One tracker serves the process, because it hooks the process's allocators: the first monitor's `sampling`,
`overhead_budget`, `max_tracked`, `max_sites` and `app_roots` hold for all.
"""

import itertools
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from heap_middleware import accelerator
from heap_middleware.accelerator import native
from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals, Ledger
from heap_middleware.endpoints.level import let_go
from heap_middleware.endpoints.sites import Site, roots_of, rows_in_accelerator, sites_by_endpoint
from heap_middleware.endpoints.windows import Level

if TYPE_CHECKING:
    from heap_middleware._native import Request

__all__ = ["TrackerRecorder", "reset_in_child"]

_numbers = itertools.count(1)  # of endpoints, in all recorders; 0 is none


class TrackerRecorder:
    """Counts every request, and follows each through its context. Raises ImportError without the accelerator.

    `sampling` is "auto" (as many allocations as `budget`, a share of one core, pays for) or N: one in N. Of each, the
    line is noted that made it, `max_sites` lines in all; 0 notes none. The application's own files are those below
    `app_roots`, or, without any, all but Python's and those of installed packages.
    """

    name = "native"
    follows = True

    def __init__(
        self,
        ledger: Ledger,
        *,
        sampling: int | str = "auto",
        budget: float = 0.01,
        max_tracked: int = 262_144,
        max_sites: int = 2000,
        app_roots: Sequence[str] = (),
    ) -> None:
        if accelerator.missing is not None:
            raise ImportError(accelerator.missing)
        self._ledger = ledger
        self._max_sites = max_sites
        self._number: dict[Endpoint | None, int] = {None: 0}
        self._known: dict[tuple[str, str | None], tuple[Callable[[], object], int]] = {}
        self.begin: Callable[[MutableMapping[str, Any], Level], Request] = native.begin
        """What is allocated from here on in this context is the request's. Written in C, as the next."""
        self.body: Callable[[Iterable[Any], Request, Callable[[Any], object]], Iterable[Any]] = native.body
        """Leave the context; the response is made in it, whichever thread the server does that in."""
        if not native.statistics()["running"]:
            native.locate(rows_in_accelerator(max_sites), roots_of(app_roots))
            native.start(max_tracked, sampling if isinstance(sampling, int) else 0, budget)

    @property
    def spent(self) -> float:
        """Seconds that recording has cost in this process."""
        return native.statistics()["seconds"]

    def tracked(self) -> tuple[int, int]:
        """Live records, and one allocation in how many is recorded."""
        found = native.statistics()
        return found["records"], found["interval"]

    def finish(
        self,
        window: "Request",
        held: MutableMapping[str, Any],  # noqa: ARG002 - of the interface
        level: Level,  # noqa: ARG002
        method: str,
        route: str | None,
    ) -> None:
        """Take note that the response has ended; the route template is known by now."""
        number = 0
        try:
            count, number = self._known[method, route]
            count()
        except KeyError:
            number = Context().run(self._learn, method, route)  # what we note is not the request's
        finally:  # whatever went wrong, the context must not go on in its name
            window.end(number)

    def _learn(self, method: str, route: str | None) -> int:
        endpoint = self._ledger.count(method, route)
        number = self._number.get(endpoint)
        if number is None:
            number = self._number.setdefault(endpoint, next(_numbers))
        counter = self._ledger.counter(method, route)
        if counter is not None:
            self._known[method, route] = counter, number
        return number

    def totals(self) -> dict[Endpoint, EndpointTotals]:
        """What is known of each endpoint, up to this moment."""
        let_go()
        rows = native.snapshot()
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

    def sites(self) -> dict[Endpoint, tuple[Site, ...]]:
        """Which lines allocated what each endpoint retains at this moment; those that hold most are named."""
        return sites_by_endpoint(native.sites(), self.numbered(), self._max_sites)

    def numbered(self) -> dict[int, Endpoint]:
        """The endpoints by their numbers in the tracker."""
        return {number: endpoint for endpoint, number in list(self._number.items()) if endpoint is not None}

    def disturbing(self) -> AbstractContextManager[None]:
        """Nothing disturbs it: a scrape's own allocations are in no request's context."""
        return nullcontext()


def reset_in_child() -> None:
    """Forget the parent's requests in a forked child, and follow its own."""
    if accelerator.missing is None and native.statistics()["running"]:
        native.reset()
