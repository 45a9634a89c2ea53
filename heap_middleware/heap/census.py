"""The census in pure Python: how many objects of each type are on the heap, and how many bytes they take.

The rules of this file:
- The list of all objects is dropped slice by slice, as soon as each is counted: while it lives, nothing in it can die.
- Between slices the interpreter is handed over, so that no other thread waits for a whole walk. The only step that
  cannot be cut is making the list.
- Young tuples, which another thread may still be building, are counted without being held: `list_tracked` says why.
- No lock is held here: dropping a reference can run a finalizer of the application, which may ask for a census.
- Classes are keyed by identity; `typeinfo` says why.

Two kinds. `tracked` counts what the garbage collector lists. `reachable` adds what it does not list (`str`, `bytes`,
numbers, and the tuples and dicts of such values, which CPython untracks): an untracked object that is reached over one
of its r references weighs 1/r there, so an object reached over all of them weighs 1, with no table of visited objects.
Objects that live forever (3.12 and newer give them a reference count beyond any real one) weigh almost nothing.
"""

import gc
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from heap_middleware.heap.references import references
from heap_middleware.heap.referrers import list_without_young_tuples, young_tuple_sizes
from heap_middleware.heap.typeinfo import Sizer, basic_size, can_refer, is_own_type, sizer_of, type_name

__all__ = ["OTHER", "Census", "CensusKind", "TypeFilter", "TypeRow", "take_census"]

CensusKind = Literal["tracked", "reachable"]
OTHER: Final = "__other__"

_SLICE: Final = 10_000
"""Objects counted between two hand-overs: 2 to 4 ms at the 200 to 400 ns an object takes here, so that a waiting thread
gets the interpreter well within 10 ms even on a machine of half the speed."""
_REACHABLE_SLICE: Final = 1_000
"""The same where each object's references are followed, at about 10 times the work."""
_INSANE_SIZE: Final = 1 << 48
"""No object is larger than the 256 TiB a 48-bit address space holds: a larger answer of a `__sizeof__` is nonsense."""


@dataclass(frozen=True, slots=True)
class TypeRow:
    """One type: `package.module.Type`, its objects, and their bytes. Shares of the reachable census are fractions."""

    module: str
    objects: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Census:
    """What was on the heap at one moment. `rows` are sorted by bytes, largest first; `__other__`, if any, is last."""

    rows: tuple[TypeRow, ...]
    objects: float
    bytes: float
    kind: CensusKind
    walked: int
    frozen: int
    """Objects in `gc.freeze`'s permanent generation, which `gc.get_objects()` does not list."""
    duration: float
    """Seconds from the first object to the last."""
    pause: float
    """Seconds during which no other thread could run."""
    retained: Mapping[int, tuple[TypeRow, ...]] = field(default_factory=dict)
    """What requests left alive, by the number of their endpoint; with the accelerator only."""


@dataclass(frozen=True, slots=True)
class TypeFilter:
    """Which types are counted and how many get a row of their own; patterns are searched in `module.Type`."""

    top: int = 200
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def rows(self, counted: Iterable[tuple[str, float, float]]) -> tuple[TypeRow, ...]:
        """The rows of (name, objects, bytes) triples. The sums over the rows are those over the accepted triples."""
        sums: dict[str, list[float]] = {}
        for name, objects, size in counted:
            row = sums.setdefault(name, [0, 0])  # two classes may share one name
            row[0] += objects
            row[1] += size
        kept = [TypeRow(name, *row) for name, row in sums.items() if self._accepts(name)]
        kept.sort(key=lambda row: (-row.bytes, -row.objects, row.module))
        rest = kept[self.top :]
        if rest:
            kept[self.top :] = [TypeRow(OTHER, sum(row.objects for row in rest), sum(row.bytes for row in rest))]
        return tuple(kept)

    def _accepts(self, name: str) -> bool:
        if self.include and not any(re.search(pattern, name) for pattern in self.include):
            return False
        return not any(re.search(pattern, name) for pattern in self.exclude)


class _Tally:
    """Objects and bytes of one class during a walk."""

    __slots__ = ("bytes", "cls", "objects", "size")

    def __init__(self, cls: type) -> None:
        self.cls = cls  # keeps the class alive, and so its identity from being reused, until the walk is over
        self.size: Sizer = sizer_of(cls)
        self.objects: float = 0
        self.bytes: float = 0


def take_census(
    kind: CensusKind = "tracked",
    types: TypeFilter = TypeFilter(),
    *,
    clock: Callable[[], float] = time.perf_counter,
    hand_over: Callable[[], None] = lambda: time.sleep(0),
    get_objects: Callable[[], list[Any]] = list_without_young_tuples,
    tuple_sizes: Callable[[], Mapping[int, int]] = young_tuple_sizes,
) -> Census:
    """Count every object once. `hand_over` is called between slices; it lets other threads run.

    `tuple_sizes` gives the number of tuples of each size in bytes that `get_objects` leaves out.
    """
    began = clock()
    objects = get_objects()
    pause = clock() - began
    tuples = tuple_sizes()
    walked = len(objects) + sum(tuples.values())
    tallies: dict[int, _Tally] = {id(tuple): _Tally(tuple)}
    tallies[id(tuple)].objects = sum(tuples.values())
    tallies[id(tuple)].bytes = sum(size * count for size, count in tuples.items())
    count, length = (_count_reachable, _REACHABLE_SLICE) if kind == "reachable" else (_count, _SLICE)
    while objects:
        part = objects[-length:]
        del objects[-length:]
        count(part, tallies)
        del part
        hand_over()
    rows = types.rows(
        (type_name(tally.cls), tally.objects, tally.bytes)
        for tally in tallies.values()
        if tally.objects and not is_own_type(tally.cls)
    )
    return Census(
        rows=rows,
        objects=sum(row.objects for row in rows),
        bytes=sum(row.bytes for row in rows),
        kind=kind,
        walked=walked,
        frozen=gc.get_freeze_count(),
        duration=clock() - began,
        pause=pause,
    )


def _count(objects: Sequence[Any], tallies: dict[int, _Tally]) -> None:
    for item in objects:
        cls = type(item)
        tally = tallies.get(id(cls))
        if tally is None:
            tally = tallies[id(cls)] = _Tally(cls)
        tally.objects += 1
        tally.bytes += _size(item, tally)


def _size(item: Any, tally: _Tally) -> int:
    try:
        size = tally.size(item)
    except Exception:  # a `__sizeof__` written in C may raise anything; the object is there all the same
        return basic_size(tally.cls)
    return size if size < _INSANE_SIZE else basic_size(tally.cls)


def _count_reachable(objects: Sequence[Any], tallies: dict[int, _Tally]) -> None:
    _count(objects, tallies)
    for item in objects:
        _follow(item, 1.0, tallies)


def _follow(holder: Any, weight: float, tallies: dict[int, _Tally]) -> None:
    """Add the untracked objects that `holder` refers to, each with its share, and what those refer to."""
    pending = [(holder, weight)]
    waiting: Counter[int] = Counter()  # the references that `pending` itself holds
    while pending:
        item, weight = pending.pop()
        waiting.subtract((id(item),))
        referents = _referents(item)
        times: Counter[int] = Counter()
        for start in range(0, len(referents), _SLICE):
            # By identity: `list.count` would call the application's `__eq__`. In parts, for the other threads' sake.
            times.update(map(id, referents[start : start + _SLICE]))
        while referents:
            # Popping leaves one reference of ours, `referent`, beside those the list still holds of the same object.
            referent = referents.pop()
            again = times.pop(id(referent), 0)
            if not again or gc.is_tracked(referent):
                continue
            references = sys.getrefcount(referent) - 2 - (again - 1) - waiting[id(referent)]
            share = weight * again / max(references, again)
            _add(referent, share, tallies)
            if share > 1e-6 and can_refer(type(referent)):
                pending.append((referent, share))
                waiting.update((id(referent),))


def _referents(item: Any) -> list[Any]:
    referents = references(item)
    if issubclass(type(item), dict):
        # A table of nothing but `str` keys does not show them to the garbage collector.
        keys = list(dict.keys(item))
        shown = set(map(id, referents))
        hidden = len(referents) < 2 * len(keys) if type(item) is dict else any(id(key) not in shown for key in keys)
        referents += keys if hidden else ()
    return referents


def _add(item: Any, share: float, tallies: dict[int, _Tally]) -> None:
    cls = type(item)
    tally = tallies.get(id(cls))
    if tally is None:
        tally = tallies[id(cls)] = _Tally(cls)
    tally.objects += share
    tally.bytes += share * _size(item, tally)
