"""Who holds the objects of a type: from them up to the modules, classes and functions that keep them alive.

The rules of this file:
- One pass over the heap a level, never one an object: who refers to an object of the level before is a holder.
  Each is followed once, from the first level that reaches it, so cycles end.
- Alike holders of alike objects are one node, so a tree is read, not scrolled.
- Names are those a programmer wrote: of modules, classes, attributes, globals, functions. The keys of other dicts are
  data of the application, and no value is ever shown.
- A tree holds names and numbers, never an object of the application.

The accelerator walks in a forked child, so that the application stands still for the fork alone (native/holders.c). In
pure Python other threads run between its steps, and attributes have no names.
"""

import errno
import logging
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from heap_middleware.accelerator import missing, native
from heap_middleware.errors import SettingsError
from heap_middleware.heap.held import Cancelled, Group, Kind, Progress, Question
from heap_middleware.heap.holders_pure import search
from heap_middleware.heap.typeinfo import clean

__all__ = ["Holder", "HolderTree", "asked", "find_holders", "tree_of"]

_DEADLINE: Final = 30.0
"""Seconds a search in a child may take. A million objects and five levels take under one."""
_MOST_SHOWN: Final = 20
"""Holders of one node that are shown; the rest is one node more."""
_HEAD: Final = struct.Struct("=QQQQQQ")
_PROGRESS, _RESULT = 1, 2  # HR_PROGRESS and HR_RESULT in native/holders.h
_PROGRESS_SIZE: Final = 24
_GROUP: Final = struct.Struct("=QQQQQQ")
_NAMES: Final = struct.Struct("=QQ")
_LENGTH: Final = struct.Struct("=Q")
_UNKNOWN: Final = (1 << 64) - 1
_CUTS: Final = (None, "depth", "items")
_CELL: Final = "builtins.cell"

_log = logging.getLogger("heap_middleware")


@dataclass(frozen=True, slots=True)
class Holder:
    """One node: what holds the node above it. The root of the tree is what is held."""

    name: str
    """`module app`, `global 'leakable'`, `class x.Y`, `attribute 'cache'`, `closure of f`, `function f`, or the type of
    the holders, `package.module.Type`."""
    objects: int
    """Holders that are merged into this node, all alike."""
    held: int
    """References to the objects asked for that lead through them."""
    bytes: int
    """Their own sizes, summed."""
    holders: tuple["Holder", ...] = ()
    """Who holds these, those through which most references lead first."""
    cut: str | None = None
    """Why the walk does not go on here although it may: "depth", "items" or None."""


@dataclass(frozen=True, slots=True)
class HolderTree:
    """Who holds the objects of one type, level by level."""

    root: Holder
    """The objects asked for: `name` is their type, `objects` how many there are."""
    cut: str | None
    """What ended the walk early, anywhere: "depth", "items", "time", "cancelled", "failed", or None."""
    levels: int
    """Levels walked."""
    seconds: float
    pause: float
    """Seconds the application stood still."""
    pid: int
    """The process that was looked into."""

    def paths(self, most: int = 10) -> list[str]:
        """From the last holder shown to the objects, those through which most of them are held first.

        As in `module app → global 'leakable' → list → __main__.LeakObj × 8478`.
        """
        found = sorted(_paths(self.root), key=lambda path: -path[-1].held)
        return [
            " → ".join([*(holder.name for holder in reversed(path)), f"{self.root.name} × {path[-1].held}"])
            for path in found[:most]
        ]


def _paths(holder: Holder) -> Iterator[tuple[Holder, ...]]:
    for above in holder.holders:
        if above.holders:
            yield from ((above, *rest) for rest in _paths(above))
        else:
            yield (above,)


def asked(
    module: str | None,
    endpoint: int,
    max_depth: int,
    max_items: int,
    ignore_types: Iterable[str],
    ignore_modules: Iterable[str],
) -> Question:
    """The question in these words. Raises `SettingsError` if it is none."""
    if (module is None and not endpoint) or (module is not None and (type(module) is not str or not module)):
        raise SettingsError(f"module={module!r}: must be a type as package.module.Type, or None beside an endpoint")
    for name, limit in (("max_depth", max_depth), ("max_items", max_items)):
        if type(limit) is not int or not 0 < limit < 1 << 31:
            raise SettingsError(f"{name}={limit!r}: must be an int from 1 to {(1 << 31) - 1}")
    for name, ignored in (("ignore_types", ignore_types), ("ignore_modules", ignore_modules)):
        if isinstance(ignored, str) or not all(type(one) is str for one in ignored):
            raise SettingsError(f"{name}={ignored!r}: must be an iterable of str, not a single one")
    return Question(module, endpoint, max_depth, max_items, tuple(ignore_types), tuple(ignore_modules))


def find_holders(
    question: Question,
    *,
    fork: bool = True,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> HolderTree:
    """Search the heap of this process. Raises MemoryError, and what `progress` and `cancelled` raise."""
    began = clock()
    if missing is not None:
        groups, levels, cut = search(question, progress, cancelled)
        return _tree(question, groups, levels, cut, clock() - began, 0.0)
    data, pause, cut = _searched(question, fork, progress, cancelled, clock)
    if data is None:
        return _tree(question, [], 0, cut, clock() - began, pause)
    groups, levels, cut = _decoded(data)
    return _tree(question, groups, levels, cut, clock() - began, pause)


def _searched(
    question: Question,
    fork: bool,
    progress: Progress | None,
    cancelled: Cancelled | None,
    clock: Callable[[], float],
) -> tuple[bytes | None, float, str | None]:
    words = (
        (question.module or "").encode("utf-8", "surrogatepass"),
        question.endpoint,
        question.max_depth,
        question.max_items,
        tuple(name.encode() for name in question.ignore_types),
        tuple(name.encode() for name in question.ignore_modules),
    )
    if fork:

        def watch(level: int, items: int) -> bool:
            if progress is not None:
                progress(level, items)
            return cancelled is not None and cancelled()

        try:
            return *native.holders_in_child(*words, _DEADLINE, watch), None
        except OSError as error:
            ended = {errno.ECANCELED: "cancelled", errno.ETIMEDOUT: "time", errno.EFAULT: "failed"}
            if error.errno in ended:  # to walk inline then would only make the application wait, or crash
                return None, 0.0, ended[error.errno]
            _log.warning("holders could not be looked for in a child (%s); the application waits for it", error)
    walking = clock()
    data = native.holders(*words)
    return data, clock() - walking, None


def _decoded(data: bytes) -> tuple[list[Group], int, str | None]:
    at = 0
    while _LENGTH.unpack_from(data, at)[0] == _PROGRESS:
        at += _PROGRESS_SIZE
    _result, _targets, _met, levels, cut, count = _HEAD.unpack_from(data, at)
    at += _HEAD.size
    groups = []
    for _ in range(count):
        parent, kind, objects, references, size, group_cut = _GROUP.unpack_from(data, at)
        lengths = _NAMES.unpack_from(data, at + _GROUP.size)
        at += _GROUP.size + _NAMES.size
        parts = []
        for length in lengths:
            known = length if length != _UNKNOWN else 0
            parts.append(data[at : at + known].decode("utf-8", "surrogatepass") if length != _UNKNOWN else "?")
            at += known
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        name = data[at : at + length].decode()
        at += length
        above = None if parent == _UNKNOWN else parent
        type_name = clean(".".join(parts))
        groups.append(Group(above, kind, objects, references, size, _CUTS[group_cut], type_name, name))
    return groups, levels, _CUTS[cut]


def _tree(
    question: Question, groups: Sequence[Group], levels: int, cut: str | None, seconds: float, pause: float
) -> HolderTree:
    root = tree_of(groups, question.module or "objects")
    return HolderTree(root, cut, levels, seconds, pause, os.getpid())


def tree_of(groups: Sequence[Group], name: str) -> Holder:
    """The tree of groups, of which the first is what is held."""
    if not groups:
        return Holder(name, 0, 0, 0)
    above: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        if group.parent is not None:
            above.setdefault(group.parent, []).append(number)
    built: dict[int, Holder] = {}
    for number in range(len(groups) - 1, 0, -1):  # a holder's holders come after it
        holders = [built.pop(child) for child in above.get(number, ())]
        built[number] = _node(groups[number], _shown(holders))
    first = groups[0]
    return Holder(name, first.objects, 0, first.bytes, _shown(built.values()), first.cut)


def _node(group: Group, holders: tuple[Holder, ...]) -> Holder:
    node = Holder(_label(group), group.objects, group.references, group.bytes, holders, group.cut)
    if group.kind == Kind.INSTANCE:  # an attribute without a dict of its own: show both, as where there is one
        attribute = f"attribute {group.name!r}"
        return Holder(attribute, group.objects, group.references, 0, (replace(node, name=group.type),))
    if group.type == _CELL:
        return _closure(node)
    return node


def _label(group: Group) -> str:
    match group.kind:
        case Kind.MODULE:
            return f"module {group.name or '?'}"
        case Kind.CLASS:
            return f"class {group.type}"
        case Kind.GLOBAL:
            return f"global {group.name!r}" if group.name else "globals"
        case Kind.ATTRIBUTE | Kind.CLASS_ATTRIBUTE:
            return f"attribute {group.name!r}" if group.name else "__dict__"
        case Kind.FUNCTION:
            return f"{group.type.rpartition('.')[2]} {group.name or '?'}"
        case Kind.OTHERS:
            return "others"
        case _:
            return group.type.removeprefix("builtins.")


def _closure(cell: Holder) -> Holder:
    """A cell that a tuple of a function holds is that function's closure; three nodes say no more than one."""
    tuples = [holder for holder in cell.holders if holder.name == "tuple"]
    functions = [holder for held in tuples for holder in held.holders if holder.name.startswith("function ")]
    if len(functions) != 1 or len(tuples) != len(cell.holders) or sum(len(held.holders) for held in tuples) != 1:
        return cell
    (function,) = functions
    return replace(cell, name=f"closure of {function.name.partition(' ')[2]}", holders=function.holders)


def _shown(holders: Iterable[Holder]) -> tuple[Holder, ...]:
    ordered = sorted(holders, key=lambda holder: (-holder.held, -holder.objects, holder.name))
    if len(ordered) <= _MOST_SHOWN:
        return tuple(ordered)
    rest = ordered[_MOST_SHOWN:]
    objects, held, size = map(sum, zip(*((one.objects, one.held, one.bytes) for one in rest), strict=True))
    return (*ordered[:_MOST_SHOWN], Holder(f"{len(rest)} others", objects, held, size))
