import gc
import sys
import threading
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heap_middleware.heap import census as module
from heap_middleware.heap.accelerated import AcceleratedCensus
from heap_middleware.heap.census import OTHER, Census, TypeFilter, take_census


@pytest.fixture(params=["pure", pytest.param("native", marks=pytest.mark.accelerator)])
def of(request):
    """`of(objects, kind="tracked")` takes a census of these objects; `of()` one of the heap."""
    every = TypeFilter(top=10**6)

    def pure(objects=None, kind="tracked"):
        if objects is None:
            return take_census(kind, every)
        return take_census(kind, every, get_objects=lambda: list(objects), tuple_sizes=dict)

    def native(objects=None, kind="tracked"):
        return AcceleratedCensus("inline").take(kind, every, objects=None if objects is None else list(objects))

    return pure if request.param == "pure" else native


def rows(census):
    return {row.module.rpartition(".")[2]: row for row in census.rows}


class Plain:
    pass


def test_counts_and_sizes_of_instances(of):
    """Each type has its objects and the sum of its instances' sizes."""
    objects = [Plain() for _ in range(5)] + [[0] * n for n in range(7)]
    found = rows(of(objects))
    assert found["Plain"].objects == 5
    assert found["Plain"].bytes == sum(map(sys.getsizeof, objects[:5]))
    assert found["list"].bytes == sum(map(sys.getsizeof, objects[5:]))


def test_the_real_heap_is_counted(of):
    """My objects are found on the heap without a list of them."""
    unique = type("Unique", (), {})
    keep = [unique() for _ in range(1234)]
    assert rows(of())["Unique"].objects == len(keep)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 99), st.integers(0, 9999))), st.integers(1, 8))
def test_other_conserves_the_sums(counted, top):
    """Types beyond top_types are summed as __other__, so totals stay true."""
    kept = TypeFilter(top=top).rows(counted)
    assert sum(row.objects for row in kept) == sum(c[1] for c in counted)
    assert sum(row.bytes for row in kept) == sum(c[2] for c in counted)
    assert len(kept) <= top + 1
    assert OTHER not in [row.module for row in kept[:-1]]


def test_filters():
    """Only the types I include are counted, without those I exclude."""
    kept = TypeFilter(include=("^a",), exclude=("z$",)).rows([("ab", 1, 1), ("az", 1, 1), ("b", 1, 1)])
    assert [row.module for row in kept] == ["ab"]


def test_hostile_classes_are_counted_and_never_called(of):
    """No special method of my classes is called by a census, however hostile they are."""
    called = []

    def hook(name):
        def method(*args, **kwargs):
            called.append(name)
            raise RuntimeError(name)

        return method

    names = (
        "__hash__",
        "__eq__",
        "__getattribute__",
        "__repr__",
        "__bool__",
        "__len__",
        "__iter__",
        "__instancecheck__",
    )
    meta = type("Meta", (type,), {name: hook(name) for name in names} | {"__name__": property(hook("__name__"))})
    space = {name: hook(name) for name in (*names, "__sizeof__")} | {"__class__": property(hook("__class__"))}
    cls = type.__new__(meta, "Hostile", (), space)
    objects = [object.__new__(cls) for _ in range(3)]
    called.clear()
    for kind in ("tracked", "reachable"):
        assert rows(of(objects, kind))["Hostile"].objects == 3
    assert called == []


def test_a_borrowed_sizeof(of):
    """An object whose `__sizeof__` is that of another type is counted with its basic size."""
    cls = type("Wrong", (), {"__sizeof__": dict.__sizeof__})
    assert rows(of([cls()]))["Wrong"].bytes == cls.__basicsize__


def test_a_sizeof_in_c_that_lies(monkeypatch):
    """An object that is said to be larger than memory is counted with its basic size."""
    monkeypatch.setattr(module, "sizer_of", lambda cls: lambda item: 1 << 60)
    (row,) = take_census(get_objects=lambda: [Plain()], tuple_sizes=dict).rows
    assert row.bytes == Plain.__basicsize__


def test_slices_hand_over_and_let_objects_die():
    """Between slices other threads run, and what was counted can die while the walk goes on."""
    items = [Plain() for _ in range(module._SLICE * 3)]
    last = weakref.ref(items[-1])
    seen = []

    def give():
        objects = items[:]
        items.clear()
        return objects

    take_census(get_objects=give, tuple_sizes=dict, hand_over=lambda: seen.append(last() is None))
    assert seen == [True, True, True]


def test_own_types_are_left_out(of):
    """The middleware does not count itself."""
    assert of([Census((), 0, 0, "tracked", 0, 0, 0, 0)]).rows == ()


def test_reachable_finds_untracked_objects(of):
    """A list of small dicts of fresh strings is found by the reachable census."""
    leak = [{"k": f"value {n} of the leak"} for n in range(1000)]
    found = rows(of([leak], "reachable"))
    assert found["str"].objects == pytest.approx(1000, rel=0.03)
    if sys.version_info < (3, 14):
        assert found["dict"].objects == pytest.approx(1000, rel=0.03)


def test_shared_objects_weigh_one(of):
    """An object that is shared by many holders is counted once."""
    shared = bytes(bytearray(50))
    holders = [[shared] for _ in range(100)]
    del shared
    assert rows(of(holders, "reachable"))["bytes"].objects == pytest.approx(1, rel=0.03)


def test_deep_nests_are_survived(of):
    """A nest of 100,000 tuples does not exhaust the stack."""
    nest = (object(),)
    for _ in range(100_000):
        gc.collect(0)  # a young collection untracks one level
        nest = (nest,)
    gc.collect(0)
    assert not gc.is_tracked(nest)
    root = [nest]
    del nest  # a reference of this frame would take its share
    assert rows(of([root], "reachable"))["tuple"].objects == pytest.approx(100_001, rel=0.01)


def young(kind):
    # The young generation holds the tuple; following all that is reachable would take minutes traced.
    return take_census(kind, get_objects=lambda: gc.get_objects(generation=0), tuple_sizes=dict)


def walked(kind):
    return AcceleratedCensus("inline").take(kind)


@pytest.mark.parametrize("kind", ["tracked", "reachable"])
@pytest.mark.parametrize("take", [young, pytest.param(walked, marks=pytest.mark.accelerator)])
def test_a_half_built_tuple_is_survived(take, kind):
    """A census in the middle of tuple(generator) neither fails nor reads what is not there."""
    results = []

    def slow():
        for n in range(5):
            if n == 3:
                results.append(take(kind))
            yield n

    assert tuple(slow()) == (0, 1, 2, 3, 4)
    assert results[0].objects > 0


def test_our_own_objects_stay_flat(of):
    """A hundred censuses leave nothing behind."""
    objects = [Plain()]
    of(objects)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(100):
        of(objects, "reachable")
    gc.collect()
    assert abs(len(gc.get_objects()) - before) < 50
    assert threading.active_count() >= 1


def known(of, objects, of_type):
    """What the reachable census counts for objects made for it alone, held by one container."""
    tracked = [objects()]
    for holder in tracked:  # grows
        tracked += [one for one in gc.get_referents(holder) if gc.is_tracked(one)]
    return rows(of(tracked, "reachable"))[of_type].objects


@pytest.mark.parametrize(
    "objects",
    [
        lambda: {f"name {n}": None for n in range(10_000)},
        lambda: {name: (name, name.encode()) for name in map("name {}".format, range(10_000))},
        lambda: [one for name in map("name {}".format, range(10_000)) for one in (name, (name,))],
        lambda: [{"path": (name,), "name": name} for name in map("name {}".format, range(10_000))],
        lambda: {n: f"name {n}" for n in range(10_000)},
    ],
    ids=["keys", "keys and values", "beside their tuple", "in dicts", "values"],
)
def test_reachable_strings_are_counted_once(of, objects):
    """Ten thousand strings are ten thousand, wherever they are held and however often."""
    assert known(of, objects, "str") == pytest.approx(10_000, rel=0.01)


def test_classes_made_by_hand_are_counted(of):
    """A class without `object` among its bases, or with keys that compare by code of their own, is counted."""

    class Meta(type):
        def mro(cls):
            return [cls]

    class Alone(metaclass=Meta):
        pass

    class Evil(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            raise RuntimeError("compared")

    class Base:
        pass

    alone = Base()
    alone.__class__ = Alone
    evil = type("Evil", (), {Evil("__sizeof__"): 1})()
    for kind in ("tracked", "reachable"):
        found = rows(of([alone, evil], kind))
        assert found["Alone"].objects == 1
        assert found["Evil"].objects == 1


def test_a_thread_that_builds_a_tuple_is_left_alone(of):
    """Tuples in the making survive a census, full for the moment or not, and are counted when they are done."""
    failed = []

    def slowly():
        for n in range(25):
            if n in (3, 10, 11):
                of()
            yield n

    def build():
        try:
            for _ in range(3):
                tuple(slowly())
        except SystemError as error:
            failed.append(error)

    builders = [threading.Thread(target=build) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert not failed
