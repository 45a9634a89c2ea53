"""Who refers to whom among a list of objects, and a walk from objects to their holders.

Data in, data out: the objects come as an argument (`list_tracked` makes that list), and everything that leaves is
positions in it, never an object.

The rules of this file:
- `gc.get_referrers` scans the whole heap for each question, so asking it for every object is quadratic. Here every
  object is asked once for what it refers *to*, and the answers are turned around.
- Of a foreign object only `id` and `gc.get_referents` are used. Neither runs code of the application, and
  `gc.get_referents` survives tuples that are not filled yet.
- Positions are 32-bit: at a thousand million objects the list alone would be 8 GB.
"""

import gc
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, compress, repeat, tee
from operator import eq, is_, is_not
from typing import Any, Final, Literal, NamedTuple

from heap_middleware.heap.references import references

__all__ = [
    "Cut",
    "Referrers",
    "Walk",
    "holders_first_walk",
    "index_referrers",
    "list_tracked",
    "list_without_young_tuples",
    "young_tuple_sizes",
]

Cut = Literal["depth", "items"]
"""The limit that ended a walk early; `"items"` where both did, because only that one leaves objects out."""

_Choice = Callable[[Iterator[Any], Iterator[Any]], Iterator[bool]]
_YOUNG: Final = (0, 1)
_OLD: Final = 2
_GLUE: Final = (map, tuple, type(iter(())))
_NONE: Final = -1


class Referrers:
    """For each position of the list it was made from, the positions of the objects that refer to it.

    Linked lists in three flat arrays: 4 bytes an object and 8 bytes a reference, where a list of lists of `int` takes
    about 100 an object, and nothing in them that the garbage collector would have to walk.
    """

    __slots__ = ("_after", "_first", "_source", "hidden")

    def __init__(self, count: int) -> None:
        """Start an index of `count` objects among which no reference is known yet."""
        self.hidden: bytearray = bytearray(count)
        """1 where the object itself is to be passed over."""
        self._first = array("i", [_NONE]) * count
        self._after = array("i")
        self._source = array("i")

    def __len__(self) -> int:
        """Count the objects that were indexed."""
        return len(self._first)

    def references(self) -> int:
        """Count the pairs (referrer, referent); several references of one object to another count once."""
        return len(self._source)

    def is_held(self, target: int) -> bool:
        """Whether any object refers to the one at `target`."""
        return self._first[target] != _NONE

    def of(self, target: int) -> Iterator[int]:
        """Give the positions of the objects that refer to the one at `target`, ascending."""
        edge = self._first[target]
        while edge != _NONE:
            yield self._source[edge]
            edge = self._after[edge]

    def fill(self, objects: Sequence[Any], hides: Callable[[list[Any]], bool] | None) -> None:
        """Ask each object once what it refers to; see `index_referrers`."""
        first, after, sources = self._first, self._after, self._source
        position_of = dict(zip(map(id, objects), range(len(objects)), strict=True)).get
        for source in range(len(objects) - 1, -1, -1):  # backwards, because each chain gives the newest first
            referents = references(objects[source])
            if hides is not None and hides(referents):
                self.hidden[source] = 1
                continue
            for target in map(position_of, map(id, referents)):
                if target is not None:
                    newest = first[target]
                    if newest != _NONE and sources[newest] == source:
                        continue  # a list may hold the same object a million times
                    first[target] = len(sources)
                    sources.append(source)
                    after.append(newest)


def index_referrers(objects: Sequence[Any], hides: Callable[[list[Any]], bool] | None = None) -> Referrers:
    """Turn the references among `objects` around, in one pass: time and memory grow with objects and references.

    `hides` is shown what an object refers to, inside the list or not, and says whether that object is to be hidden.
    """
    index = Referrers(len(objects))
    index.fill(objects, hides)
    return index


class Walk(NamedTuple):
    """A forest, written in the order it was walked: an entry's subtree is the deeper entries right after it."""

    positions: "array[int]"
    depths: "array[int]"
    cut: Cut | None


def holders_first_walk(index: Referrers, max_depth: int, max_items: int) -> Walk:
    """Visit every object once, depth first: an object, then the objects that hold it, then the next object.

    Objects are begun and referrers are followed in the order of their positions, so the caller's order decides what
    falls to `max_items`. The depth of what no holder led to is 1; at `max_depth` nothing is followed further.
    Beyond the depth limit nothing is lost: what was not reached there starts a tree of its own.
    """
    seen = bytearray(index.hidden)
    walk = Walk(array("i"), array("i"), None)
    cut: Cut | None = None
    path: list[Iterator[int]] = [iter(range(len(index)))]  # no recursion: the application sets its limit
    while path:
        for at in path[-1]:  # goes on where it was left
            if not seen[at]:
                break
        else:
            path.pop()
            continue
        if len(path) > max_depth:
            cut = "depth"
            path.pop()
        elif len(walk.positions) >= max_items:
            cut = "items"
            break
        else:
            seen[at] = 1
            walk.positions.append(at)
            walk.depths.append(len(path))
            if index.is_held(at):
                path.append(index.of(at))
    return walk._replace(cut=cut)


def list_tracked(*, with_tuples: bool) -> list[Any]:
    """List what the garbage collector tracks, without the parts of this search.

    `tuple(generator)` lists its unfinished tuple, and when it grows it, it raises SystemError if anybody else holds a
    reference (CPython issue 101855; seen on 3.11 to 3.13 as soon as a thread switch meets a held `gc.get_objects()`).
    A tuple in the making is young, so the young tuples leave the list within one call into C, before the interpreter
    can switch threads; one that is still unfinished after two collections is not told apart. With `with_tuples`, the
    old ones are listed, and of the young those that have no empty slot.
    """
    old = gc.get_objects(generation=_OLD)
    if not with_tuples:
        old = [item for item in old if type(item) is not tuple]
    young = _drained(_sifted(map(gc.get_objects, _YOUNG), _are_no_tuples), old)
    if with_tuples:
        tuples = map(list, (_sifted(map(gc.get_objects, _YOUNG), _are_tuples),))
        young += _drained(_sifted(tuples, _are_full), old)
    old += young
    return old


def list_without_young_tuples() -> list[Any]:
    """List what the garbage collector tracks, for a census; `young_tuple_sizes` has the rest.

    The longest step that cannot be cut is `gc.get_objects()` itself.
    """
    old = gc.get_objects(generation=_OLD)
    old += _drained(_sifted(map(gc.get_objects, _YOUNG), _are_no_tuples), old)
    return old


def young_tuple_sizes() -> Counter[int]:
    """Tell how many young tuples there are of each size in bytes; none of them is held after one call into C."""
    return Counter(map(sys.getsizeof, _sifted(map(gc.get_objects, _YOUNG), _are_tuples)))


def _sifted(lists: Iterator[list[Any]], keep: _Choice) -> chain[Any]:
    """Pick from lists that are yet to be made the items `keep` selects; as the last step, empty those lists."""
    items, same, again, last = tee(lists, 4)
    selected = compress(_flat(items), keep(_flat(same), _flat(again)))
    return chain(selected, compress(map(list.clear, last), repeat(None)))


def _flat(lists: Iterator[list[Any]]) -> chain[Any]:
    return chain.from_iterable(lists)


def _are_no_tuples(items: Iterator[Any], _: Iterator[Any]) -> Iterator[bool]:
    return map(is_not, map(type, items), repeat(tuple))


def _are_tuples(items: Iterator[Any], _: Iterator[Any]) -> Iterator[bool]:
    return map(is_, map(type, items), repeat(tuple))


def _are_full(tuples: Iterator[Any], again: Iterator[Any]) -> Iterator[bool]:
    return map(eq, map(len, tuples), map(len, map(gc.get_referents, again)))


def _drained(pipeline: chain[Any], older: list[Any]) -> list[Any]:
    own = _parts(pipeline)
    found = list(pipeline)
    # They existed, too: without this they would hold themselves, and everything, until the next collection.
    own |= {id(found), id(older)}
    kept = [item for item in found if id(item) not in own]
    found.clear()
    return kept


def _parts(pipeline: chain[Any]) -> set[int]:
    """Collect the ids of the iterators a pipeline is made of: they exist while the objects are listed."""
    parts: set[int] = set()
    todo: list[Any] = [pipeline]
    while todo:
        part = todo.pop()
        if id(part) not in parts and (type(part).__module__ == "itertools" or type(part) in _GLUE):
            parts.add(id(part))
            todo += gc.get_referents(part)
    return parts
