"""The search for holders in pure Python, see holders.py, whose rules hold here too.

Of a foreign object only `id`, `type` and `gc.get_referents` are used, and a module's or class's own namespace. The list
of all objects is the one thing that keeps any alive, and it is dropped when the search ends.
"""

import gc
from collections.abc import Callable, Iterator
from types import FrameType, FunctionType, ModuleType
from typing import Any, Final

from heap_middleware.heap.held import Cancelled, Group, Kind, Progress, Question
from heap_middleware.heap.references import references
from heap_middleware.heap.referrers import list_tracked
from heap_middleware.heap.typeinfo import is_own_type, sizer_of, type_name

__all__ = ["search"]

_STEP: Final = 20_000
"""Objects between two questions whether to go on."""
_NEW: Final = (-1, 0, 0)
_NESTED: Final = 4  # untracked containers in each other that are searched, as in native/holders.c
_namespace_of_module: Callable[[ModuleType], dict[str, Any]] = vars(ModuleType)["__dict__"].__get__
_namespace_of_class = type.__dict__["__dict__"].__get__


def search(
    question: Question, progress: Progress | None, cancelled: Cancelled | None
) -> tuple[list[Group], int, str | None]:
    """The groups of holders, how many levels were walked, and what cut the walk."""
    walk = _Walk(question, progress, cancelled)
    try:
        walk.run()
        return walk.groups(), walk.level, walk.cut
    finally:
        walk.objects.clear()


class _Row:
    """A group that grows."""

    __slots__ = ("bytes", "cut", "key", "objects", "references")

    def __init__(self, key: tuple[int | None, int, str, str]) -> None:
        self.key = key
        self.objects = self.references = self.bytes = 0
        self.cut: str | None = None


class _Walk:
    def __init__(self, question: Question, progress: Progress | None, cancelled: Cancelled | None) -> None:
        self.question = question
        self.level = 0
        self.cut: str | None = None
        self._progress = progress
        self._cancelled = cancelled
        self.objects: list[Any] = list_tracked(with_tuples=True)
        self._rows = [_Row((None, Kind.OBJECT, question.module or "objects", ""))]
        self._number: dict[tuple[int | None, int, str, str], int] = {}
        self._met: dict[int, tuple[int, int, int]] = {}  # by id: group, level and weight
        self._owners: dict[int, tuple[int, bool]] = {}  # of namespaces, by their id: of whom, and whether of a module
        self._types: dict[int, tuple[type, str, bool]] = {}  # kept, so that no other class gets the id
        self._ours = {id(self.objects), id(self.__dict__), id(self._rows), id(self._met), id(self._owners)}

    def run(self) -> None:
        """Find what is asked for, then its holders, level by level."""
        self._find_targets()
        before = first = 0
        while len(self._met) > before and self.level < self.question.max_depth and self.cut != "cancelled":
            before, first = len(self._met), len(self._rows)
            self._walk_level()
            self.level += 1
        if len(self._met) > before and self.cut != "cancelled":
            self._cut_depth(first)

    def groups(self) -> list[Group]:
        """What was found, parents first."""
        return [
            Group(row.key[0], row.key[1], row.objects, row.references, row.bytes, row.cut, row.key[2], row.key[3])
            for row in self._rows
        ]

    def _going_on(self) -> Iterator[Any]:
        """All objects; asks now and then whether to go on."""
        for at, item in enumerate(self.objects):
            if at % _STEP == 0:
                if self._progress is not None:
                    self._progress(self.level, len(self._met))
                if self._cancelled is not None and self._cancelled():
                    self.cut = "cancelled"
                    return
            yield item

    def _type_of(self, item: Any) -> tuple[type, str, bool]:
        cls = type(item)
        known = self._types.get(id(cls))
        if known is None:
            name = type_name(cls)
            module, _, bare = name.rpartition(".")
            asked = self.question
            passed_over = (
                cls is FrameType
                or is_own_type(cls)
                or bare in asked.ignore_types
                or name in asked.ignore_types
                or module in asked.ignore_modules
            )
            known = self._types[id(cls)] = (cls, name, passed_over)
        return known

    def _find_targets(self) -> None:
        for item in self._going_on():
            self._note_namespace(item)
            self._take_target(item)
            self._reach_targets(references(item), _NESTED)

    def _reach_targets(self, referents: list[Any], nested: int) -> None:
        for referent in referents:
            if gc.is_tracked(referent):
                continue
            self._take_target(referent)
            if nested and type(referent) in (tuple, dict):
                self._reach_targets(gc.get_referents(referent), nested - 1)

    def _take_target(self, item: Any) -> None:
        if self._type_of(item)[1] != self.question.module or id(item) in self._met or id(item) in self._ours:
            return
        self._meet(item, 0, 0, 1)

    def _meet(self, item: Any, number: int, level: int, weight: int) -> bool:
        row = self._rows[number]
        if len(self._met) >= self.question.max_items:
            row.cut = self.cut = "items"
            return False
        self._met[id(item)] = number, level, weight
        row.objects += 1
        try:
            row.bytes += sizer_of(type(item))(item)
        except Exception:  # a `__sizeof__` written in C may raise anything
            row.bytes += 0
        return True

    def _note_namespace(self, item: Any) -> None:
        cls = type(item)
        if issubclass(cls, ModuleType):
            self._owners[id(_namespace_of_module(item))] = id(item), True
        elif issubclass(cls, type):
            for namespace in gc.get_referents(_namespace_of_class(item)):  # the one behind the proxy
                self._owners.setdefault(id(namespace), (id(item), False))

    def _walk_level(self) -> None:
        wanted = {key for key, (_, level, _) in self._met.items() if level == self.level}
        for item in self._going_on():
            if id(item) in self._ours or self._met.get(id(item), _NEW)[0] == 0:
                continue  # those asked for hold each other as a rule: that says nothing
            hits = [id(referent) for referent in references(item) if id(referent) in wanted]
            hits = [hit for hit in hits if self._owners.get(hit, (id(item), False))[0] == id(item)]
            if hits and not self._type_of(item)[2]:
                self._take_holder(item, hits)

    def _take_holder(self, item: Any, hits: list[int]) -> None:
        heaviest = max(hits, key=lambda hit: self._met[hit][2])
        parent = self._met[heaviest][0]
        kind, type_text, name = self._describe(item, heaviest)
        key = parent, kind, type_text, name
        number = self._number.get(key)
        if number is None:
            number = self._number[key] = len(self._rows)
            self._rows.append(_Row(key))
        end = kind in (Kind.MODULE, Kind.CLASS)
        weight = sum(self._met[hit][2] for hit in hits if self._met[hit][0] == parent)
        if id(item) in self._met:  # it is named here, too; its own holders are shown where it was met
            self._rows[number].objects += 1
            self._rows[number].references += weight
        elif self._meet(item, number, -1 if end else self.level + 1, weight):
            self._rows[number].references += weight

    def _describe(self, item: Any, held: int) -> tuple[int, str, str]:
        cls, type_text, _ = self._type_of(item)
        if issubclass(cls, ModuleType):
            return Kind.MODULE, type_text, _plain(_namespace_of_module(item).get("__name__"))
        if issubclass(cls, type):
            return Kind.CLASS, type_name(item), ""
        if cls is FunctionType:
            return Kind.FUNCTION, type_text, _plain(item.__qualname__)
        if id(item) in self._owners:
            _, of_module = self._owners[id(item)]
            names = (key for key, value in list(dict.items(item)) if id(value) == held)
            return Kind.GLOBAL if of_module else Kind.CLASS_ATTRIBUTE, type_text, _plain(next(names, None))
        return Kind.OBJECT, type_text, ""

    def _cut_depth(self, first: int) -> None:
        for row in self._rows[first:]:
            if row.key[1] not in (Kind.MODULE, Kind.CLASS) and row.cut is None:
                row.cut = "depth"
                self.cut = self.cut or "depth"


def _plain(name: object) -> str:
    return name if type(name) is str and len(name) <= 64 and name.replace(".", "_").isprintable() else ""
