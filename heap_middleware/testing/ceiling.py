"""The mark `heap_ceiling`: what a test may leave alive.

Counted is what the whole process has more after the test than before it, in whichever thread or task it was made:
memory blocks by CPython's own count, bytes by `tracemalloc`, which makes such a test two to four times slower.
"""

import gc
import re
import sys
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pytest

from heap_middleware.endpoints.level import let_go
from heap_middleware.testing.meters import Detail, traced_lines, tracing, types_now

__all__ = ["Ceiling"]

_UNITS: Final = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", re.ASCII | re.IGNORECASE)
_SHOWN: Final = 5


class Ceiling:
    """What may be left alive, and what was."""

    def __init__(self, objects: int | None, size: int | None) -> None:
        self._objects = objects
        self._size = size
        self._left = (0, 0)
        self._grown = Detail()

    @classmethod
    def of(cls, positional: Sequence[Any], named: Mapping[str, Any]) -> "Ceiling":
        """From the mark's arguments. A wrong one fails the test with what is allowed."""
        objects, size = named.get("objects"), named.get("bytes")
        if positional or set(named) - {"objects", "bytes"} or (objects is None and size is None):
            raise pytest.UsageError("heap_ceiling takes objects=, a number, or bytes=, such as '10 MB', or both")
        if objects is not None and (type(objects) is not int or objects < 0):
            raise pytest.UsageError(f"heap_ceiling(objects={objects!r}): allowed is an integer of 0 or more")
        return cls(objects, None if size is None else _bytes(size))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around the test."""
        types = types_now()
        with tracing():
            lines = traced_lines()
            blocks, size = self._level()
            yield
            after, size_after = self._level()
            self._left = after - blocks, size_after - size
            lines_after = traced_lines() if self._reasons() else {}
        if self._reasons():
            self._grown = Detail(types_now(), lines_after).since(Detail(types, lines))

    def hold(self) -> None:
        """Fail the test if it has left more alive."""
        reasons = self._reasons()
        if reasons:
            words = [f"the test leaves {' and '.join(reasons)}"]
            for title, rows in (("of type", self._grown.types), ("made at", self._grown.lines)):
                words += [f"  {title} {name} × {amount:,.0f}" for name, amount in list(rows.items())[:_SHOWN]]
            pytest.fail("\n".join(words), pytrace=False)

    def _level(self) -> tuple[int, int]:
        gc.collect()
        let_go()
        return sys.getallocatedblocks(), tracemalloc.get_traced_memory()[0]

    def _reasons(self) -> list[str]:
        objects, size = self._left
        reasons = []
        if self._objects is not None and objects > self._objects:
            reasons.append(f"{objects:,} objects alive, where {self._objects:,} may be")
        if self._size is not None and size > self._size:
            reasons.append(f"{size:,} bytes alive, where {self._size:,} may be")
        return reasons


def _bytes(size: Any) -> int:
    if type(size) is int and size >= 0:
        return int(size)
    matched = _SIZE.fullmatch(size.strip()) if type(size) is str else None
    unit = _UNITS.get(matched[2].upper()) if matched else None
    if matched is None or unit is None:
        raise pytest.UsageError(
            f"heap_ceiling(bytes={size!r}): allowed is a number of bytes, or a text such as '10 MB'"
        )
    return round(float(matched[1]) * unit)
