"""The graph under the dendrogram: references turned around, and the walk over them."""

import ctypes
import gc
import itertools
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_middleware.heap import referrers
from heap_middleware.heap.referrers import Walk, holders_first_walk, index_referrers, list_tracked


def graph(count, edges):
    """Lists as objects: `edges` holds pairs (holder, held)."""
    objects = [[] for _ in range(count)]
    for holder, held in edges:
        objects[holder].append(objects[held])
    return objects


def walked(count, edges, max_depth=100, max_items=1000) -> Walk:
    return holders_first_walk(index_referrers(graph(count, edges)), max_depth, max_items)


def shape(walk):
    return list(zip(walk.positions, walk.depths, strict=True))


def test_referrers_are_found():
    """For an object I get every object of my list that refers to it, in the order of the list."""
    index = index_referrers(graph(4, [(3, 0), (1, 0), (2, 1)]))
    assert [list(index.of(at)) for at in range(4)] == [[1, 3], [2], [], []]
    assert [index.is_held(at) for at in range(4)] == [True, True, False, False]
    assert len(index) == 4


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=60))
def test_agrees_with_the_slow_way(edges):
    """The fast index answers what `gc.get_referrers` answers, for any graph."""
    objects = graph(10, edges)
    index = index_referrers(objects)
    for at, held in enumerate(objects):
        slow = {id(holder) for holder in gc.get_referrers(held)} & set(map(id, objects))
        assert {id(objects[holder]) for holder in index.of(at)} == slow


def test_repeated_references_count_once():
    """A list that holds the same object a thousand times costs one entry, not a thousand."""
    index = index_referrers(graph(3, [(1, 0)] * 1000 + [(2, 0)] + [(1, 2), (1, 0)]))
    assert index.references() == 3
    assert list(index.of(0)) == [1, 2]


def test_references_out_of_the_list_are_left_out():
    """Only references among the objects I passed are kept."""
    inside = []
    index = index_referrers([inside, [inside, [], object()]])
    assert index.references() == 1


@pytest.mark.parametrize("count", [100, 1000, 10_000])
def test_each_object_is_asked_once(count, monkeypatch):
    """The search is linear: an object is asked once for its references, and the whole heap is never scanned for it."""
    asked = []
    real = gc.get_referents

    def counting(*objects):
        asked.append(len(objects))
        return real(*objects)

    def forbidden(*objects):
        raise AssertionError("scans the whole heap")

    objects = graph(count, [(at, at // 2) for at in range(count)])
    monkeypatch.setattr(referrers, "references", counting)
    monkeypatch.setattr(referrers.gc, "get_referrers", forbidden)
    index = index_referrers(objects)
    assert asked == [1] * count
    assert index.references() == count


def test_hidden_objects_neither_appear_nor_lead_on():
    """An object I hide by what it refers to is not walked, and not walked through."""
    objects = graph(3, [(1, 0), (2, 1)])
    objects[1].append("secret")
    index = index_referrers(objects, lambda referents: any(type(item) is str for item in referents))
    assert shape(holders_first_walk(index, 9, 9)) == [(0, 1), (2, 1)]


def test_walk_goes_to_holders_first():
    """Below an object come those that hold it, below them their holders, and then the next object."""
    assert shape(walked(5, [(1, 0), (2, 1), (3, 0)])) == [(0, 1), (1, 2), (2, 3), (3, 2), (4, 1)]


def test_cycles_and_diamonds_end():
    """Objects that hold each other, themselves, or one object over two ways are visited once each."""
    walk = walked(5, [(0, 0), (0, 1), (1, 0), (2, 1), (3, 1), (4, 2), (4, 3)])
    assert sorted(walk.positions) == [0, 1, 2, 3, 4]
    assert walk.cut is None


def test_depth_limit_loses_nothing():
    """Beyond the depth limit objects start a tree of their own, and I am told that chains were cut."""
    walk = walked(5, [(at + 1, at) for at in range(4)], max_depth=2)
    assert shape(walk) == [(0, 1), (1, 2), (2, 1), (3, 2), (4, 1)]
    assert walk.cut == "depth"


def test_depth_that_just_fits_is_not_cut():
    """A chain exactly as long as the limit is not reported as cut."""
    assert walked(3, [(1, 0), (2, 1)], max_depth=3).cut is None


def test_item_limit_stops():
    """Not one object more than the limit, and I am told that objects are missing."""
    walk = walked(5, [], max_items=4)
    assert shape(walk) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert walk.cut == "items"


def test_item_count_that_just_fits_is_not_cut():
    """As many objects as the limit allows is not reported as cut."""
    assert walked(5, [], max_items=5).cut is None


def test_missing_objects_are_reported_before_cut_chains():
    """Where both limits struck, I hear of the one that leaves objects out."""
    assert walked(6, [(1, 0)], max_depth=1, max_items=3).cut == "items"


def test_long_chains_need_no_recursion():
    """A linked list of 50,000 objects is walked to its end whatever the recursion limit is."""
    walk = walked(50_000, [(at + 1, at) for at in range(49_999)], max_depth=10**6, max_items=10**6)
    assert max(walk.depths) == 50_000


def test_nothing_in_no_objects():
    """An empty list is a list, too."""
    assert shape(walked(0, [])) == []


@pytest.mark.parametrize("seed", range(5))
def test_every_object_is_visited_once(seed):
    """Whatever the graph and the depth limit, each object is in the walk exactly once."""
    draw = random.Random(seed)
    edges = [(draw.randrange(200), draw.randrange(200)) for _ in range(400)]
    assert sorted(walked(200, edges, max_depth=draw.randrange(1, 8)).positions) == list(range(200))


@pytest.mark.whole_heap
@pytest.mark.parametrize("with_tuples", [False, True])
def test_a_tuple_being_built_is_not_disturbed(with_tuples):
    """My `tuple(generator)` succeeds while another thread holds a list of all objects."""
    held = []

    def items():
        for number in range(40):
            if number == 3:
                held.append(list_tracked(with_tuples=with_tuples))
            yield number

    assert len(tuple(items())) == 40
    assert len(held[0]) > 1000


def test_a_tuple_with_empty_slots_is_left_alone():
    """Tuples somebody has not filled yet are not in the list, not even where tuples are wanted."""
    make = ctypes.pythonapi.PyTuple_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_ssize_t]
    keep, filled = make(3), ([], [])
    addresses = set(map(id, list_tracked(with_tuples=True)))
    assert id(keep) not in addresses
    assert id(filled) in addresses


def test_tuples_only_where_wanted():
    """Without tuples none is in the list, everything else is."""
    marks = [([],), []]
    addresses = set(map(id, list_tracked(with_tuples=False)))
    assert [id(mark) in addresses for mark in marks] == [False, True]


@pytest.mark.parametrize("with_tuples", [False, True])
def test_the_search_does_not_list_itself(with_tuples):
    """The list holds objects of my program, none that exist only because I looked."""
    kinds = (*vars(itertools).values(), map, list, type(iter(())))
    before = gc.get_objects()
    known = set(map(id, before)) | {id(before)}
    found = list_tracked(with_tuples=with_tuples)
    new = [type(item) for item in found if id(item) not in known]
    assert [cls for cls in new if cls in kinds or cls.__module__ == "itertools"] == []


def test_nothing_is_listed_twice():
    """Every object is in the list once."""
    addresses = list(map(id, list_tracked(with_tuples=True)))
    assert len(addresses) == len(set(addresses))


def test_the_dead_stay_dead(tmp_path):
    """A search in a service that uses asyncio comes back, and its futures go on working (CPython issue 122695)."""
    code = (
        "import asyncio, gc\n"
        "from heap_middleware.heap.census import TypeFilter, take_census\n"
        "from heap_middleware.heap.dendrogram import HeapDendrogram\n"
        "from heap_middleware.heap.held import Question\n"
        "from heap_middleware.heap.holders_pure import search\n"
        "async def wait():\n"
        "    future = asyncio.get_running_loop().create_future()\n"
        "    asyncio.get_running_loop().call_soon(future.set_result, 1)\n"
        "    return await future\n"
        "for _ in range(3):\n"
        "    asyncio.run(wait())\n"
        "    search(Question('builtins.module'), None, None)\n"
        "    take_census('reachable', TypeFilter(200))\n"
        "    HeapDendrogram(max_depth=2).generate()\n"
        "print(asyncio.run(wait()))\n"
    )
    bounded = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n{code}"
    command = [sys.executable, "-c", bounded]
    quick = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(command, cwd=tmp_path, env=quick, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_a_harmful_module_is_known_by_its_namespace():
    """Of `_asyncio` CPython's own walk brings dead futures back; what its module holds is in its namespace."""
    import _asyncio

    from heap_middleware.heap.references import _harmless

    assert _harmless(_asyncio) == [vars(_asyncio)]
    assert _harmless([_asyncio]) == [_asyncio]
