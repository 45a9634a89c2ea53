"""How many objects are alive that requests made, and which: by the accelerator's records, or without it by counting.

The rules of this file:
- What garbage collection would free is no leak: a level is read after a full one, which empties CPython's free lists
  as well.
- The accelerator follows requests, whichever middleware is around the application: all its endpoints count.
- Without it, all that the process allocates counts, so nothing else may run. Lines come from `tracemalloc`, under which
  a request takes ten times as long: it is on only while a leak is explained.
"""

import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Final, Protocol

from heap_middleware import accelerator
from heap_middleware.accelerator import native
from heap_middleware.endpoints.ledger import Ledger
from heap_middleware.endpoints.level import let_go
from heap_middleware.endpoints.sites import roots_of, sites_by_endpoint
from heap_middleware.endpoints.tracker import TrackerRecorder
from heap_middleware.endpoints.windows import Level
from heap_middleware.heap.accelerated import BUFFER, AcceleratedCensus
from heap_middleware.heap.census import TypeFilter, take_census
from heap_middleware.heap.holders import asked, find_holders
from heap_middleware.settings import HeapSettings

__all__ = ["Detail", "Meter", "meter", "traced_lines", "tracing", "types_now"]

_RECORDS: Final = 1 << 22
_AUTOMATIC: Final = 0
_SITES: Final = 8000
_FRAMES: Final = 12
"""Of each allocation, for `tracemalloc`: as deep as the application's own line may be below the library's."""
_EVERY_TYPE: Final = TypeFilter(top=1 << 20)
_HOLDERS: Final = 3


@dataclass(frozen=True, slots=True)
class Detail:
    """Objects alive by type, and by the line that allocated them."""

    types: Mapping[str, float] = field(default_factory=dict)
    lines: Mapping[str, float] = field(default_factory=dict)

    def since(self, before: "Detail") -> "Detail":
        """What has come since, most first."""
        return Detail(_grown(self.types, before.types), _grown(self.lines, before.lines))


def _grown(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    grown = {name: amount - before.get(name, 0.0) for name, amount in now.items()}
    return dict(sorted(((name, more) for name, more in grown.items() if more >= 1), key=lambda row: -row[1]))


class Meter(Protocol):
    """Objects are memory blocks of CPython."""

    @property
    def noise(self) -> float:
        """Objects a request that this meter takes for nothing."""
        ...

    def request(self) -> AbstractContextManager[None]:
        """What happens inside is a request."""
        ...

    def level(self) -> float:
        """Objects alive now."""
        ...

    def explaining(self) -> AbstractContextManager[object]:
        """While this is entered, `detail` knows lines."""
        ...

    def detail(self) -> Detail:
        """Which they are."""
        ...

    def holders(self, module: str) -> list[str]:
        """Who holds those of one type, as paths."""
        ...


def meter() -> AbstractContextManager[Meter]:
    """The better of the two that there is here."""
    return _tracker() if accelerator.missing is None else nullcontext(_CountingMeter())


class _TrackerMeter:
    noise = 0.0

    def __init__(self) -> None:
        self._recorder = TrackerRecorder(Ledger(), sampling=1, max_tracked=_RECORDS, max_sites=_SITES)
        self._census = AcceleratedCensus("inline")

    @contextmanager
    def request(self) -> Iterator[None]:
        window = self._recorder.begin({}, Level.RELEASE)
        try:
            yield
        finally:
            self._recorder.finish(window, {}, Level.RELEASE, "GET", "test")

    def level(self) -> float:
        gc.collect()
        let_go()
        return float(sum(gained - lost for gained, lost, *_ in native.snapshot()))

    def explaining(self) -> AbstractContextManager[object]:
        return nullcontext()

    def detail(self) -> Detail:
        gc.collect()
        let_go()
        types: Counter[str] = Counter()
        for rows in self._census.take("reachable", _EVERY_TYPE).retained.values():
            types.update({row.module: round(row.objects) for row in rows})
        lines: Counter[str] = Counter()
        found = native.sites()
        numbers = {row[0]: row[0] for row in found}
        for sites in sites_by_endpoint(found, numbers, _SITES).values():
            for site in sites:  # a line of the application has a site for each library's line below it
                lines[site.where] += round(site.objects)
        return Detail(types, lines)

    def holders(self, module: str) -> list[str]:
        rows = self._census.take("reachable", _EVERY_TYPE).retained
        counts = {number: sum(row.objects for row in found if row.module == module) for number, found in rows.items()}
        number = max(counts, key=lambda number: counts[number], default=0)
        if module == BUFFER or not number:
            return []
        return find_holders(asked(module, number, 8, 200_000, (), ()), fork=False).paths(_HOLDERS)


@contextmanager
def _tracker() -> Iterator[_TrackerMeter]:
    was_running = native.statistics()["running"]
    if was_running:
        native.stop()  # an application's own middleware may have it record one allocation in many
    try:
        yield _TrackerMeter()
    finally:
        native.stop()
        if was_running:
            usual = HeapSettings()
            native.start(usual.max_tracked, _AUTOMATIC, usual.overhead_budget)


class _CountingMeter:
    noise = 0.1  # what else the process does counts as well: an event loop and its threads, up to 0.03 a request

    @contextmanager
    def request(self) -> Iterator[None]:
        yield

    def level(self) -> float:
        gc.collect()
        let_go()
        return float(sys.getallocatedblocks())

    @contextmanager
    def explaining(self) -> Iterator[None]:
        with tracing():
            self.detail()  # the first one loads what others have
            yield

    def detail(self) -> Detail:
        gc.collect()
        return Detail(types_now(), traced_lines())

    def holders(self, module: str) -> list[str]:
        if module.startswith("builtins."):
            return []  # the process is full of them, and nobody knows which are the requests'
        return find_holders(asked(module, 0, 8, 200_000, (), ()), fork=False).paths(_HOLDERS)


def types_now() -> dict[str, float]:
    """Objects of the process by type, those that the garbage collector tracks."""
    take = take_census if accelerator.missing is not None else AcceleratedCensus("inline").take
    return {row.module: row.objects for row in take("tracked", _EVERY_TYPE).rows}


@contextmanager
def tracing() -> Iterator[None]:
    """Let `tracemalloc` note lines; one that runs already is left as it is."""
    if tracemalloc.is_tracing():
        yield
        return
    tracemalloc.start(_FRAMES)
    try:
        yield
    finally:
        tracemalloc.stop()


def traced_lines() -> dict[str, float]:
    """Blocks that `tracemalloc` has seen made and not freed, by the line of the application itself."""
    *libraries, (ours, _) = roots_of(())
    measuring = ours, tracemalloc.__file__
    foreign = "<", *(folder for folder, _ in libraries), ours
    lines: Counter[str] = Counter()
    for trace in tracemalloc.take_snapshot().traces:
        files = [(frame.filename, frame.lineno) for frame in reversed(trace.traceback)]
        line = next((line for line in files if not line[0].startswith(foreign)), None)
        if line is not None and not files[0][0].startswith(measuring):
            lines[f"{line[0]}:{line[1]}"] += 1
    return dict(lines)
