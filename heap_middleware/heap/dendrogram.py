"""`HeapDendrogram`: the objects of the heap as a tree of who holds them.

The rules of this file:
- A finished tree holds names and numbers, never an object of the application: a tool that looks for leaks must not
  be one. While `generate()` runs, the list of objects is the only thing that keeps any alive.
- Foreign objects are touched by `type`, `id`, `gc.get_referents` and the sizers of `typeinfo`, classes are keyed by
  their identity.
- No lock is held: dropping the list may run finalizers, and they may call `generate()` again.
- An exact tuple is let go before another thread can run, unless it is known to be filled; see `list_tracked`.
"""

import gc
import sys
import traceback
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise, repeat
from struct import Struct
from typing import Any, Final

from heap_middleware.errors import SettingsError
from heap_middleware.heap.referrers import Cut, Walk, holders_first_walk, index_referrers, list_tracked
from heap_middleware.heap.typeinfo import Sizer, basic_size, is_own_type, sizer_of, type_name

__all__ = ["HeapDendrogram", "HeapNode"]

_RECORD: Final = Struct("=iqQii")  # number of the name, bytes, address, depth, index after the subtree's last node
_ROOT: Final = "root"
_LARGEST: Final = 1 << 48  # more than the 256 TiB of a 48-bit address space is nonsense, or a lie
_FAMILIES: Final = (
    ("heap_size_bytes_total", "Bytes of all objects in the dendrogram."),
    ("heap_size_bytes", "Bytes of the objects in the dendrogram, by type."),
    ("object_count", "Objects in the dendrogram, by type."),
)


class _Tree:
    """The nodes in depth-first order, the root first.

    One `bytearray` and one tuple of `str` instead of an object a node: 28 bytes each, and neither is listed by the
    garbage collector, so the tree of one dendrogram never shows up as heap in another.
    """

    __slots__ = ("cut", "names", "records")

    def __init__(self, names: tuple[str, ...] = (_ROOT,), cut: Cut | None = None) -> None:
        self.names = names
        self.cut: Cut | None = cut
        self.records = bytearray(_RECORD.pack(0, 0, 0, 0, 1))

    def __len__(self) -> int:
        return len(self.records) // _RECORD.size

    def record(self, at: int) -> tuple[int, int, int, int, int]:
        number, size, address, depth, end = _RECORD.unpack_from(self.records, at * _RECORD.size)
        return number, size, address, depth, end


class HeapNode:
    """One object of a dendrogram, or its root: a view of stored names and numbers, not of the object."""

    __slots__ = ("_at", "_tree")

    def __init__(self, tree: _Tree, at: int) -> None:
        """Made by `HeapDendrogram` only."""
        self._tree = tree
        self._at = at

    @property
    def name(self) -> str:
        """`package.module.Type` of the object, made printable; `root` for the root."""
        return self._tree.names[self._tree.record(self._at)[0]]

    @property
    def size(self) -> int:
        """Bytes of the instance itself, what it refers to not included; 0 for the root."""
        return self._tree.record(self._at)[1]

    @property
    def address(self) -> int:
        """The `id()` the object had while the tree was built; another object may live there now. 0 for the root."""
        return self._tree.record(self._at)[2]

    @property
    def depth(self) -> int:
        """How many levels below the root, which is at 0."""
        return self._tree.record(self._at)[3]

    @property
    def children(self) -> tuple["HeapNode", ...]:
        """Those objects referring to this one that were not in the tree already; for the root, where chains start."""
        *_, end = self._tree.record(self._at)
        found, at = [], self._at + 1
        while at < end:
            found.append(HeapNode(self._tree, at))
            at = self._tree.record(at)[4]
        return tuple(found)

    @property
    def referrers(self) -> tuple["HeapNode", ...]:
        """The article's name for `children`."""
        return self.children

    def __eq__(self, other: object) -> bool:
        """Whether both are the same node of the same tree."""
        if not isinstance(other, HeapNode):
            return NotImplemented
        return self._tree is other._tree and self._at == other._at

    def __hash__(self) -> int:
        return hash((id(self._tree), self._at))

    def __repr__(self) -> str:
        return f"<HeapNode {self.name} at {self.address:#x}, {self.size} bytes>"


class HeapDendrogram:
    """The heap as a tree: below the root the objects, below each object those that refer to it.

    The tool of the article this package comes from, with its arguments, its methods and its metric names. Objects
    are taken from the garbage collector, so `str`, `bytes`, numbers and what `gc.freeze()` put aside are not in it.
    The largest come first, equal sizes by name, and each object is in the tree once, where it was first met.

    Left out, and not followed through, are objects
    - whose class is named in `ignore_types`, as `Type` or as `package.module.Type`;
    - whose class was defined in a module named in `ignore_modules` (exactly: `a` does not stand for `a.b`);
    - that refer directly to an object whose class is named in `ignore_types`;
    - of this package.

    With `builtins` ignored, holders are found only where one object refers directly to the other, not through a
    list or a dict; `ignore_modules=()` shows those, too.

    `max_depth` is the number of levels below the root, `max_items` the number of objects.

    Raises `SettingsError` if a limit is not a positive `int`, or an `ignore_…` is not an iterable of `str`.
    """

    __slots__ = ("_ignore_modules", "_ignore_types", "_max_depth", "_max_items", "_tree")

    def __init__(
        self,
        max_depth: int = 5,
        max_items: int = 10000,
        ignore_types: Iterable[str] = (),
        ignore_modules: Iterable[str] = ("builtins",),
    ) -> None:
        self._max_depth = _positive("max_depth", max_depth)
        self._max_items = _positive("max_items", max_items)
        self._ignore_types = _names("ignore_types", ignore_types)
        self._ignore_modules = _names("ignore_modules", ignore_modules)
        self._tree = _Tree()

    def generate(self) -> None:
        """Build the tree anew from the heap as it is now, after a full garbage collection (`gc.collect()`).

        It is meant for a person who asks: other threads hardly run meanwhile, for about a second at 300,000 objects,
        and all objects listed stay alive until it returns. If it is interrupted, the tree is empty.
        """
        self._tree = _Tree()
        gc.collect()
        try:
            tree = _grown(self._max_depth, self._max_items, _Kinds(self._ignore_types, self._ignore_modules))
        except BaseException as error:
            # Whoever keeps the exception (a debugger, sys.last_exc) would keep the whole heap alive by our frames.
            traceback.clear_frames(error.__traceback__)
            raise
        self._tree = tree

    @property
    def root(self) -> HeapNode:
        """The root of the tree; without children before `generate()`."""
        return HeapNode(self._tree, 0)

    @property
    def truncated(self) -> Cut | None:
        """Which limit cut the tree: `None`, `"depth"` or `"items"`.

        `"depth"` means that chains were cut and go on as children of the root, with every object still in the tree;
        `"items"` that objects are missing, the smallest of them, and that every sum is too low.
        """
        return self._tree.cut

    def total_objects(self) -> int:
        """Count the objects in the tree."""
        return len(self._tree) - 1

    def descendants(self) -> Iterator[HeapNode]:
        """Iterate over all nodes below the root, depth first."""
        tree = self._tree  # a later generate() must not change what is being read
        return (HeapNode(tree, at) for at in range(1, len(tree)))

    def as_prometheus_metric(self) -> str:
        """Sum the tree up by type, in Prometheus' text format 0.0.4: sizes in bytes, the largest type first.

        Only what the tree holds is counted: see `truncated`.
        """
        rows = _sums(self._tree)
        labels = [f'{{module="{_escaped(name)}"}}' for name, _, _ in rows]
        samples = (
            [("", sum(size for _, size, _ in rows))],
            list(zip(labels, (size for _, size, _ in rows), strict=True)),
            list(zip(labels, (count for _, _, count in rows), strict=True)),
        )
        lines: list[str] = []
        for (family, text), values in zip(_FAMILIES, samples, strict=True):
            lines += (f"# HELP {family} {text}", f"# TYPE {family} gauge")
            lines += (f"{family}{label} {value}" for label, value in values)
        return "\n".join(lines) + "\n"


class _Kind:
    """What is decided once for a class instead of once for each of its instances."""

    __slots__ = ("basic", "cls", "ignored", "name", "shown", "sizer")

    def __init__(self, cls: type, ignore_types: tuple[str, ...], ignore_modules: tuple[str, ...]) -> None:
        self.cls = cls  # kept, so that no other class can get its id meanwhile
        self.name = type_name(cls)
        self.ignored = _bare_name(cls) in ignore_types or self.name in ignore_types
        self.shown = not (self.ignored or _module(cls) in ignore_modules or is_own_type(cls))
        self.sizer: Sizer = sizer_of(cls)
        self.basic = basic_size(cls)


class _Kinds:
    """The classes met during one `generate()`, by identity: a metaclass may have a `__hash__` that raises."""

    __slots__ = ("_filters", "hides", "known")

    def __init__(self, ignore_types: tuple[str, ...], ignore_modules: tuple[str, ...]) -> None:
        self._filters = ignore_types, ignore_modules
        self.known: dict[int, _Kind] = {}
        self.hides: Callable[[list[Any]], bool] | None = self._refer_to_ignored if ignore_types else None

    def of(self, cls: type) -> _Kind:
        kind = self.known.get(id(cls))
        if kind is None:
            kind = self.known[id(cls)] = _Kind(cls, *self._filters)
        return kind

    def _refer_to_ignored(self, referents: list[Any]) -> bool:
        return any(self.of(cls).ignored for cls in map(type, referents))

    def with_tuples(self) -> bool:
        return self.of(tuple).shown


class _Chosen:
    """The objects that pass the filters, largest first, with what the tree needs of each."""

    __slots__ = ("addresses", "names", "numbers", "objects", "sizes")

    def __init__(self, objects: list[Any], kinds: _Kinds) -> None:
        self.objects: list[Any] = []
        self.sizes = array("q")
        self.numbers = array("i")
        numbered: dict[str, int] = {_ROOT: 0}
        # Few classes have instances of many sizes, so sorting the groups is far cheaper than sorting the objects.
        for (minus_size, name), group in sorted(_grouped(objects, kinds).items()):
            self.objects += group
            self.sizes.extend(repeat(-minus_size, len(group)))
            self.numbers.extend(repeat(numbered.setdefault(name, len(numbered)), len(group)))
        self.names = tuple(numbered)
        self.addresses = array("Q", map(id, self.objects))


def _grouped(objects: list[Any], kinds: _Kinds) -> dict[tuple[int, str], list[Any]]:
    groups: dict[tuple[int, str], list[Any]] = {}
    known = kinds.known
    for found in objects:
        cls = type(found)
        kind = known.get(id(cls)) or kinds.of(cls)
        if kind.shown:
            try:
                size = kind.sizer(found)
            except Exception:  # a __sizeof__ borrowed from another C type does not fit
                size = kind.basic
            if size > _LARGEST:
                size = kind.basic
            groups.setdefault((-size, kind.name), []).append(found)
    return groups


def _grown(max_depth: int, max_items: int, kinds: _Kinds) -> _Tree:
    chosen = _Chosen(list_tracked(with_tuples=kinds.with_tuples()), kinds)
    index = index_referrers(chosen.objects, kinds.hides)
    chosen.objects.clear()  # from here on numbers are enough; let the application have its objects back
    walk = holders_first_walk(index, max_depth, max_items)
    return _written(walk, chosen)


def _written(walk: Walk, chosen: _Chosen) -> _Tree:
    tree = _Tree(chosen.names, walk.cut)
    ends = _subtree_ends(walk.depths)
    records = tree.records
    _RECORD.pack_into(records, 0, 0, 0, 0, 0, len(walk.positions) + 1)
    for at, depth, end in zip(walk.positions, walk.depths, ends, strict=True):
        records += _RECORD.pack(chosen.numbers[at], chosen.sizes[at], chosen.addresses[at], depth, end)
    return tree


def _subtree_ends(depths: "array[int]") -> "array[int]":
    """Give for each entry of a walk the index in the tree (whose root is 0) of the first node outside its subtree."""
    ends = array("i", range(2, len(depths) + 2))  # right for every leaf
    inner: list[int] = []
    for at, (depth, following) in enumerate(pairwise(chain(depths, (0,)))):
        if following > depth:
            inner.append(at)
        elif following < depth:
            while inner and depths[inner[-1]] >= following:
                ends[inner.pop()] = at + 2
    return ends


def _sums(tree: _Tree) -> list[tuple[str, int, int]]:
    """(name, bytes, objects) by type, most bytes first, then by name."""
    sizes, counts = [0] * len(tree.names), [0] * len(tree.names)
    for number, size, _, _, _ in _RECORD.iter_unpack(tree.records):
        sizes[number] += size
        counts[number] += 1
    counts[0] -= 1  # the root is no object, though a class may have its name
    rows = [row for row in zip(tree.names, sizes, counts, strict=True) if row[2]]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def _bare_name(cls: type) -> str:
    return str.__str__(type.__dict__["__name__"].__get__(cls))  # an exact copy: it may be of a subclass of str


def _module(cls: type) -> str | None:
    try:
        module = type.__dict__["__module__"].__get__(cls)
    except AttributeError:
        return None
    return str.__str__(module) if issubclass(type(module), str) else None


def _escaped(name: str) -> str:
    # The three escapes of a label value in text format 0.0.4, written here because this floor knows no Prometheus.
    return name.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _positive(argument: str, value: int) -> int:
    if type(value) is not int or not 0 < value <= sys.maxsize:
        raise SettingsError(f"{argument}={value!r}: must be an int from 1 to {sys.maxsize}")
    return value


def _names(argument: str, value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise SettingsError(f"{argument}={value!r}: must be an iterable of str, such as ({value!r},), not a single str")
    try:
        names = tuple(value)
    except TypeError:
        raise SettingsError(f"{argument}={value!r}: must be an iterable of str") from None
    for name in names:
        if not isinstance(name, str):
            raise SettingsError(f"{argument}={value!r}: every item must be a str, {name!r} is none")
    return tuple(map(str.__str__, names))
