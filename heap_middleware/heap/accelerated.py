"""The census in C: the same figures as census.py's, from one walk that makes no list and runs no Python code.

The walk keeps the interpreter for itself, which is short (15 ns a tracked object here) but cannot be cut into slices.
On a large heap it is therefore done in a forked child, which only reads: the application stands still for the fork
alone.
"""

import gc
import logging
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal

from heap_middleware.accelerator import native
from heap_middleware.heap.census import Census, CensusKind, TypeFilter, TypeRow
from heap_middleware.heap.typeinfo import clean, is_own_module

__all__ = ["BUFFER", "AcceleratedCensus", "CensusProcess"]

CensusProcess = Literal["auto", "inline", "fork"]
BUFFER: Final = "(buffer)"
"""The type of memory that is no object: the item buffer of a list, the table of a dict."""

_LONG_PAUSE: Final = 0.01
"""Seconds a walk may keep other threads waiting before the next one is done in a child; pure Python's slices stay
within the same."""
_DEADLINE: Final = 5.0
"""Seconds a child has: a scrape waits for ten by Prometheus's default, and the walk that then serves needs some too."""
_HEAD: Final = struct.Struct("=QQQ")
_TYPE: Final = struct.Struct("=ddQQ")
_RETAINED: Final = struct.Struct("=QQQQ")
_NONE: Final = (1 << 64) - 1
_EVERYTHING: Final = TypeFilter()

_log = logging.getLogger("heap_middleware")


class AcceleratedCensus:
    """Takes censuses with the accelerator, which must be there.

    `process` is where: "inline" in the application itself, "fork" in a child, "auto" in a child once a walk inline took
    more than 10 ms. A child that cannot be made, or is not done after 5 s, is made up for inline, and logged once.
    """

    def __init__(
        self,
        process: CensusProcess = "auto",
        *,
        clock: Callable[[], float] = time.perf_counter,
        walk: Callable[..., bytes] | None = None,
        walk_in_child: Callable[[bool, float], tuple[bytes, float]] | None = None,
    ) -> None:
        self._clock = clock
        self._walk = walk or native.census
        self._walk_in_child = walk_in_child or native.census_in_child
        self._automatic = process == "auto"
        self._fork = process == "fork"
        self._told = False

    def take(
        self,
        kind: CensusKind = "tracked",
        types: TypeFilter = _EVERYTHING,
        *,
        objects: list[Any] | None = None,
    ) -> Census:
        """Count every object once; of `objects`, if given, instead of the heap. Raises MemoryError."""
        began = self._clock()
        done = self._in_child(kind) if self._fork and objects is None else None
        if done is None:
            walking = self._clock()
            data = self._walk(kind == "reachable", objects)
            done = data, self._clock() - walking
            self._fork = self._fork or (self._automatic and done[1] > _LONG_PAUSE)
        data, pause = done
        walked, counted, retained = _decoded(data)
        rows = types.rows(row for row in counted if row is not None)
        return Census(
            rows=rows,
            objects=sum(row.objects for row in rows),
            bytes=sum(row.bytes for row in rows),
            kind=kind,
            walked=walked,
            frozen=gc.get_freeze_count(),
            duration=self._clock() - began,
            pause=pause,
            retained=retained,
        )

    def _in_child(self, kind: CensusKind) -> tuple[bytes, float] | None:
        try:
            return self._walk_in_child(kind == "reachable", _DEADLINE)
        except OSError as error:
            if not self._told:
                self._told = True
                _log.warning("the census could not be taken in a child (%s); the application waits for it", error)
            return None


def _decoded(
    data: bytes,
) -> tuple[int, Sequence[tuple[str, float, float] | None], dict[int, tuple[TypeRow, ...]]]:
    """Objects walked, (name, objects, bytes) of each type, None for our own, and the types by endpoint number.

    The format is that of native/census.h.
    """
    walked, types, rows = _HEAD.unpack_from(data)
    at = _HEAD.size
    names: list[str] = []
    counted: list[tuple[str, float, float] | None] = []
    for _ in range(types):
        objects, size, *lengths = _TYPE.unpack_from(data, at)
        at += _TYPE.size
        parts = []
        for length in lengths:
            known = length if length != _NONE else 0
            parts.append(data[at : at + known].decode("utf-8", "surrogatepass") if length != _NONE else "?")
            at += known
        names.append(clean(".".join(parts)))
        counted.append(None if is_own_module(parts[0]) or not objects else (names[-1], objects, size))
    retained: dict[int, list[tuple[str, float, float]]] = {}
    for endpoint, number, objects, size in _rows(data[at:], rows):
        name = BUFFER if number == _NONE else names[number]
        retained.setdefault(endpoint, []).append((name, objects, size))
    every = TypeFilter(top=types + 1)
    return walked, counted, {endpoint: every.rows(found) for endpoint, found in retained.items()}


def _rows(data: bytes, count: int) -> Iterator[tuple[int, int, int, int]]:
    return _RETAINED.iter_unpack(data[: count * _RETAINED.size])
