"""The level of allocated blocks must not move by what CPython keeps for itself."""

import gc
import sys
from urllib.parse import urlsplit

import pytest

from heap_middleware.endpoints.level import Settler, full_collections

NOISE = 30  # blocks, in 500 calls


@pytest.fixture
def growth():
    """`growth(action)`: by how many blocks the settled level rises in 500 calls of the action."""
    settle = Settler()
    level = [0, 0]

    def measure(action) -> int:
        settle()
        level[0] = sys.getallocatedblocks()
        for _ in range(500):
            action()
        settle()
        level[1] = sys.getallocatedblocks()
        return level[1] - level[0]

    settle()
    return measure


def test_the_first_level_is_settled_on_a_large_heap():
    """Filling the stores may bring about a full collection, which empties them: they are filled all the same."""
    large = [[number] for number in range(50_000)]
    for _ in range(3):
        settle = Settler()
        settle()
        level = sys.getallocatedblocks()
        settle()
        assert abs(sys.getallocatedblocks() - level) <= NOISE
    assert len(large) == 50_000


def test_a_collector_that_was_switched_off_stays_off():
    """An application that collects by itself is not collected for afterwards."""
    gc.disable()
    try:
        Settler()()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_leak_shows(growth):
    """What is kept is seen to the block."""
    kept = [None] * 100_000
    places = iter(range(100_000))

    def leak():
        kept[next(places)] = object()

    assert abs(growth(leak) - 500) <= NOISE


def test_cycles_do_not_show(growth):
    """Garbage in cycles is collected first."""

    def cycle():
        ring = []
        ring.append(ring)

    assert growth(cycle) <= NOISE


@pytest.mark.parametrize("size", [2, 5, 15])
def test_tuples_of_unknown_length_do_not_show(growth, size):
    """Tuples that are made large and shrink fill a store of CPython's, and no level rises by it."""
    assert growth(lambda: tuple(number for number in range(size))) <= NOISE


def test_names_made_at_run_time_do_not_show(growth):
    """Attributes looked up by names made at run time stay in a cache of CPython's, and no level rises by it."""
    names = iter(range(10**6))
    assert growth(lambda: getattr(object, f"name {next(names)}", None)) <= NOISE


def test_split_urls_do_not_show(growth):
    """The standard library's cache of split URLs holds 128 of them, and no level rises by it."""
    numbers = iter(range(10**6))
    assert growth(lambda: urlsplit(f"/user/{next(numbers)}?a=1")) <= NOISE


def test_copies_of_dicts_do_not_show(growth):
    """The keys of copied dicts go to a store of CPython's, and no level rises by it."""
    original = {"a": 1}
    taken = [{"a": 1} for _ in range(100)]
    assert growth(lambda: dict(original)) <= NOISE
    assert len(taken) == 100


def test_the_stores_are_filled_again_after_a_full_collection(growth):
    """A full collection empties the stores; the next level is settled all the same."""
    before = full_collections()
    gc.collect()
    assert full_collections() == before + 1
    assert growth(lambda: tuple(number for number in range(5))) <= NOISE
