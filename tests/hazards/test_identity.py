"""Nothing of the application is kept alive, and nothing of ours piles up."""

import gc
import sys
import weakref
from collections import Counter

import pytest

from heap_middleware import HeapDendrogram

CLASSES = 100_000
AT_ONCE = 5_000


def collected():
    # Twice: of cycles that hold cycles.
    gc.collect()
    gc.collect()


def ours():
    """How many objects there are of each class of the package."""
    collected()
    names = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    return {name: count for name, count in names.items() if name.startswith("heap_middleware.")}


@pytest.mark.once
def test_classes_made_per_request_die(serve):
    """A hundred thousand classes, made and dropped by requests amid scrapes, all die; there are no series of them."""
    references, alive = [], []

    def work(path):
        made = [type(f"Made{n}", (), {"method": lambda self: None}) for n in range(AT_ONCE)]
        dynamic = [eval(compile(f"lambda: {n}", f"<{n}>", "eval")) for n in range(100)]
        alive[:] = [[cls() for cls in made], dynamic]
        references.extend(map(weakref.ref, [*made, *(one.__code__ for one in dynamic)]))
        references.extend(weakref.ref(cls.method) for cls in made)
        return b"made"

    service = serve(work, top_types=50)
    for number in range(CLASSES // AT_ONCE):
        service.ask("/made")
        if number % 5 == 4:
            assert len([one for one in service.samples() if one.name == "object_count"]) <= 51
    alive.clear()
    collected()
    assert len(references) == 2 * CLASSES + CLASSES // AT_ONCE * 100
    assert sum(reference() is not None for reference in references) == 0


def test_what_was_looked_at_dies(serve):
    """After censuses, searches for holders and dendrograms, each of my objects dies with its last reference of mine."""

    class Mine:
        pass

    kept = [Mine() for _ in range(100)]
    service = serve(top_types=100_000, report_path="/heap")
    marked = kept[0]
    before = sys.getrefcount(marked), sys.getrefcount(Mine)
    for _ in range(3):
        service.ask("/")
        service.samples()
        service.ask("/heap/api/v1/report")
        service.monitor.holders(f"{Mine.__module__}.{Mine.__qualname__}")
    tree = HeapDendrogram()
    tree.generate()
    assert (sys.getrefcount(marked), sys.getrefcount(Mine)) == before
    references = [weakref.ref(one) for one in kept]
    kept.clear()
    del marked
    assert [reference() for reference in references] == [None] * 100
    assert tree.total_objects() > 0


def test_we_keep_nothing_of_a_request(serve):
    """A request's frame, code and exception die with it, whether it ended well or raised."""
    references = []

    class Mine(Exception):
        pass

    def work(path):
        def inner():
            return None

        references.append(weakref.ref(inner.__code__))
        error = Mine(path)
        references.append(weakref.ref(error))
        references.append(weakref.ref(inner))
        if path == "/raises":
            raise error
        return b"x"

    service = serve(work)
    for number in range(20):
        try:
            service.ask("/raises" if number % 2 else "/well")
        except Mine:
            service.samples()
    collected()
    # One code object is a constant of this function.
    assert sum(reference() is not None for reference in references) <= 20
    assert sum(type(reference()) is Mine for reference in references) == 0
    assert sum(callable(reference()) for reference in references) == 0


@pytest.mark.once
def test_our_own_objects_are_flat(serve):
    """After hundreds of requests and scrapes there are as many objects of ours as after the first few."""
    service = serve(report_path="/heap", history_points=16, census_process="inline")

    def rounds(number):
        for n in range(number):
            for route in range(5):
                service.ask(f"/{route}")
            service.samples()
            if n % 5 == 0:
                service.ask("/heap/api/v1/report")
        return ours()

    rounds(25)
    before, after = rounds(1), rounds(30)
    assert {
        name: (before.get(name, 0), count) for name, count in after.items() if count > before.get(name, 0) + 20
    } == {}
