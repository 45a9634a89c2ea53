"""The census in C: the same figures as the pure one, and sizes as sys.getsizeof gives them; in a child as well."""

import array
import collections
import decimal
import errno
import gc
import io
import os
import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import types
import weakref
from fractions import Fraction
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_middleware import _native
from heap_middleware.heap.accelerated import BUFFER, AcceleratedCensus
from heap_middleware.heap.census import OTHER, TypeFilter, take_census

EVERY = TypeFilter(top=10**6)


class Slots:
    __slots__ = ("a", "b")


class Plain:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Attributes:
    def __init__(self, count):
        for n in range(count):
            setattr(self, f"a{n}", n)


class WeakAndDict:
    __slots__ = ("__dict__", "__weakref__")


class Weak:
    __slots__ = ("__weakref__",)


class MyList(list):
    pass


class MyDict(dict):
    pass


class MyStr(str):
    pass


class MyInt(int):
    pass


class MyTuple(tuple):
    __slots__ = ()


class MySet(set):
    pass


class MyBytes(bytes):
    pass


class Point(NamedTuple):
    x: int
    y: int


def generator():
    yield


BUILT_IN = [
    *(object(), Slots(), Plain(), Plain(a=1), Plain(a=1).__dict__, Attributes(3), Attributes(40), WeakAndDict()),
    *(MyList([1, 2]), MyDict(a=1), MyStr("abc"), MyStr("ä"), MyInt(5), MyInt(2**100), MyTuple((1, 2)), MyBytes(b"a")),
    *(MySet(range(100)), Point(1, 2), [], [1], [0] * 30, {}, {1: 2}, {"a": 1}, set(), {1}, set(range(99)), Weak()),
    *(dict.fromkeys(range(n)) for n in (5, 6, 100, 10_000)),
    *(dict.fromkeys(map(str, range(n))) for n in (5, 6, 100, 70_000)),
    *("", "abc", "ä" * 9, "€" * 5, "😀", b"", b"abc", bytearray(), bytearray(b"abc"), (), (1,), (1, 2, 3)),
    *(0, 1, -1, 255, 2**15, 2**30 - 1, 2**30, -(2**60), 2**1000, True, 1.5, 2j, None, ..., range(5), slice(1)),
    *(collections.deque([1, 2] * 100), collections.OrderedDict(a=1), collections.Counter("abc"), frozenset("ab")),
    *(array.array("d", [1] * 9), re.compile("a.b"), types.SimpleNamespace(a=1), decimal.Decimal("1.5"), Fraction(1, 3)),
    *(io.BytesIO(b"x" * 99), io.StringIO("x"), random.Random(1), weakref.WeakValueDictionary(), generator()),
    *(generator, generator.__code__, Slots, Plain, type, int, dict, memoryview(b"abc"), iter([]), map(str, [])),
    *(lambda: None, sys, property(), len, "".join, [].append, Exception(1), OSError(1, "x"), threading.Lock()),
]


def native(objects, kind="tracked"):
    return AcceleratedCensus("inline").take(kind, EVERY, objects=objects)


def pure(objects, kind="tracked"):
    return take_census(kind, EVERY, get_objects=lambda: list(objects), tuple_sizes=dict)


def sums(census):
    return {row.module: (row.objects, row.bytes) for row in census.rows}


@pytest.mark.parametrize("item", BUILT_IN, ids=lambda item: type(item).__name__)
def test_sizes_agree_with_getsizeof(item):
    """An object of a built-in type or a plain class has the size that sys.getsizeof gives it."""
    (row,) = native([item]).rows
    assert row.bytes == sys.getsizeof(item)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.tuples(inner, inner)
        | st.sets(st.integers())
        | st.frozensets(st.text())
        | st.builds(Plain, a=inner)
        | st.builds(lambda value: Plain(**{f"n{n}": value for n in range(8)}), inner)
        | st.builds(MyDict, st.dictionaries(st.text(), inner))
        | st.builds(MyList, st.lists(inner))
        | st.builds(collections.deque, st.lists(inner))
    ),
    max_leaves=30,
)


def heap_of(value):
    """All that is reachable from it over tracked objects, each once."""
    found, todo = {}, [value]
    while todo:
        item = todo.pop()
        if id(item) not in found and not isinstance(item, type | types.ModuleType | types.FunctionType):
            found[id(item)] = item
            todo += gc.get_referents(item)
    return list(found.values())


@settings(max_examples=300, deadline=None)
@given(values)
def test_counts_and_sizes_agree_with_the_pure_census(value):
    """On a heap made at random, both count the same objects and bytes of each type."""
    objects = heap_of(value)
    assert sums(native(objects)) == sums(pure(objects))


@settings(max_examples=100, deadline=None)
@given(st.lists(values, min_size=1))
def test_reachable_shares_agree_with_the_pure_census(made):
    """What is reached over references weighs the same in both, type by type."""
    holder = [made]
    gc.collect(1)
    gc.disable()  # a collection in between would untrack tuples
    try:
        tracked = [item for item in heap_of(holder) if gc.is_tracked(item)]
        del made
        ours, theirs = sums(native(tracked, "reachable")), sums(pure(tracked, "reachable"))
    finally:
        gc.enable()
    for name in ours.keys() | theirs.keys():
        # A few references of the other walk's own; what lives forever weighs nothing here, and next to nothing there.
        assert ours.get(name, (0, 0))[0] == pytest.approx(theirs.get(name, (0, 0))[0], abs=0.5, rel=0.2), name


def test_the_whole_heap_agrees_with_the_collector():
    """The walk finds what gc.get_objects() lists."""
    gc.collect()
    gc.disable()
    try:
        listed = len(gc.get_objects())
        walked = AcceleratedCensus("inline").take().walked
    finally:
        gc.enable()
    assert abs(walked - gc.get_freeze_count() - listed) < 50


def test_frozen_objects_are_counted():
    """Objects of gc.freeze() are on the heap like others."""
    keep = [Slots() for _ in range(100)]
    gc.freeze()
    try:
        found = sums(AcceleratedCensus("inline").take("tracked", EVERY))
    finally:
        gc.unfreeze()
    assert found[f"{__name__}.Slots"][0] >= len(keep)


def test_a_python_sizeof_is_not_called():
    """A class with a `__sizeof__` of its own gets its basic size, and that method does not run."""
    called = []

    class Loud:
        __slots__ = ()

        def __sizeof__(self):
            called.append(self)
            raise RuntimeError

    (row,) = native([Loud()]).rows
    assert row.bytes == Loud.__basicsize__
    assert called == []


@settings(deadline=None)
@given(st.text(), st.text())
def test_names_agree_with_the_pure_census(module, name):
    """However a class is called, both write its name the same way."""
    cls = type("Named", (), {"__module__": module})
    cls.__qualname__ = name
    assert [row.module for row in native([cls()]).rows] == [row.module for row in pure([cls()]).rows]


@pytest.mark.parametrize("module", [None, 5, property(lambda self: "x"), MyStr("mine")])
def test_modules_that_are_no_names(module):
    """A module that is no string is written `?`, a subclass of str as its text."""
    cls = type("Odd", (), {"__module__": module})
    assert [row.module for row in native([cls()]).rows] == [row.module for row in pure([cls()]).rows]


def test_classes_made_by_the_thousand():
    """Ten thousand classes are told apart, and none is kept alive."""
    objects = [type(f"C{n}", (), {})() for n in range(10_000)]
    assert len(native(objects).rows) == 10_000
    last = weakref.ref(type(objects[-1]))
    objects.clear()
    gc.collect()
    assert last() is None


def test_what_is_no_list_is_refused():
    """Only a list can be counted in place of the heap."""
    with pytest.raises(TypeError, match="list or None, not tuple"):
        _native.census(True, ())


def take(process, kind):
    """A census taken there and nowhere else: one in a child is not made up for."""

    def died(*_):
        pytest.fail("the child died, or was not made")

    return AcceleratedCensus(process, walk=died if process == "fork" else None).take(kind, EVERY)


def retained_types(endpoint, process="inline", kind="reachable"):
    rows = take(process, kind).retained.get(endpoint, ())
    return {row.module.rpartition(".")[2]: row.objects for row in rows}


@pytest.mark.parametrize("process", ["inline", "fork"])
def test_types_of_what_a_route_retains(tracker, serving, process):
    """Objects that requests left alive are counted by type, dicts, strings and numbers among them, buffers apart."""
    kept = [None] * 600
    for at in range(100):
        with serving(1):
            kept[at] = Slots()
            kept[100 + at] = {"number": 2**70 + at}
            kept[200 + at] = f"a string {at}"
            kept[300 + at] = bytes(5000)
            kept[400 + at] = [at, at]
            kept[500 + at] = Attributes(1)
    tracker.snapshot()
    found = retained_types(1, process)
    kinds = ("Slots", "str", "bytes", "list", "Attributes", "int", "dict")
    assert {name: found[name] for name in kinds} == dict.fromkeys(kinds, pytest.approx(100, abs=3))
    assert found[BUFFER] >= 200  # the dicts' tables and the lists' items
    retained = sum(found.values())
    gained, lost = tracker.snapshot()[1][:2]
    assert retained == pytest.approx(gained - lost, abs=10)


@pytest.mark.parametrize("process", ["inline", "fork"])
def test_what_a_route_retains_may_be_frozen(tracker, serving, retained, process):
    """gc.freeze() amid requests: what they leave is counted by type and taken off when it goes, thawed or not."""
    kept = [None] * 300
    gc.collect()
    with serving(1):
        kept[0] = Slots()
    own = retained(1)[0] - 1
    for at in range(1, 300):
        with serving(1):
            kept[at] = Slots()
            if at == 200:
                gc.freeze()

    def left():
        return retained(1)[0] - own, retained_types(1, process).get("Slots", 0)

    try:
        assert left() == (300, 300)
        kept[:50] = kept[250:] = [None] * 50  # of the frozen, and of those that came after
        assert left() == (200, 200)
    finally:
        gc.unfreeze()
    assert left() == (200, 200)
    kept[50:100] = [None] * 50
    gc.collect()
    assert left() == (150, 150)


def test_types_weigh_what_their_records_weigh(tracker):
    """Where one allocation in 16 is recorded, the types' sums are still of all objects."""
    tracker.start(262_144, 16, 0.01)
    kept = [None] * 40_000
    for at in range(len(kept)):
        request = tracker.Request()
        request.enter()
        kept[at] = Slots()
        request.leave()
        request.finish(1)
    tracker.snapshot()
    assert retained_types(1)["Slots"] == pytest.approx(len(kept), rel=0.15)


# In a child


def forked(kind="tracked"):
    return take("fork", kind)


def children():
    with open(f"/proc/self/task/{threading.get_native_id()}/children") as found:
        return found.read().split()


def test_a_census_in_a_child_is_the_same():
    """A forked census counts what an inline one counts."""
    keep = [[{"n": str(n)}] for n in range(5_000)]
    for kind in ("tracked", "reachable"):
        here, there = sums(AcceleratedCensus("inline").take(kind, EVERY)), sums(forked(kind))
        for name in (f"{__name__}.Slots", "builtins.list", "builtins.dict", "builtins.function"):
            if name in here:
                assert there[name][0] == pytest.approx(here[name][0], rel=0.01, abs=20), name
    assert len(keep) == 5_000


def test_nothing_is_left_of_a_child():
    """A hundred forked censuses leave no process, no zombie, no descriptor and no memory."""
    forked()
    before = len(os.listdir("/proc/self/fd"))
    blocks = sys.getallocatedblocks()
    for _ in range(100):
        forked()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert children() == []
    assert sys.getallocatedblocks() - blocks < 500
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_application_is_not_told_of_the_child():
    """No SIGCHLD reaches the application, and what it waits for is its own children."""
    told = []
    before = signal.signal(signal.SIGCHLD, lambda *_: told.append(1))
    try:
        for _ in range(10):
            forked()
        assert told == []
        mine = os.fork()
        if mine == 0:
            os._exit(7)
        forked()
        assert os.waitpid(-1, 0) == (mine, 7 << 8)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_the_child_runs_none_of_the_application():
    """Exit functions, fork hooks, buffers and finalizers run once, in the application."""
    script = """
        import atexit, os, sys, threading
        from heap_middleware import _native

        class Late:
            def __del__(self):
                sys.stdout.write("late ")

        atexit.register(sys.stdout.write, "atexit ")
        os.register_at_fork(before=lambda: print("before"), after_in_child=lambda: print("child"))
        threading.Thread(target=lambda: None).start()
        late = Late()
        sys.stdout.write("once ")
        for _ in range(20):
            _native.census_in_child(True, 10.0)
        del late
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("once late atexit ", "", 0)


def test_a_connection_closed_meanwhile_is_closed():
    """A socket that the application closes while a child walks reaches its peer as closed, at once."""
    here, peer = socket.socketpair()
    peer.settimeout(10)
    keep = [[str(n)] for n in range(400_000)]  # a walk of some length
    walking = threading.Thread(target=lambda: results.append(forked("reachable")))
    results = []
    walking.start()
    deadline = time.monotonic() + 10
    while not children_of_any_thread() and time.monotonic() < deadline:
        pass
    with peer:
        here.close()
        assert peer.recv(1) == b""
    walking.join()
    assert results[0].walked >= len(keep)


def children_of_any_thread():
    found = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as names:
                found += names.read().split()
        except FileNotFoundError:
            continue
    return found


def test_a_child_that_takes_too_long_is_killed():
    """At the deadline the child is gone, and the error says so."""
    keep = [[n] for n in range(400_000)]
    with pytest.raises(TimeoutError, match="deadline"):
        _native.census_in_child(True, 0.0001)
    assert children() == []
    assert len(keep) == 400_000


def test_without_a_child_the_walk_is_inline(caplog):
    """Where no child can be made, the application walks itself, and one log line says why."""

    def refused(reachable, deadline):
        raise OSError(errno.ENOMEM, "Cannot allocate memory", "fork")

    census = AcceleratedCensus("fork", walk_in_child=refused)
    for _ in range(3):
        assert census.take("tracked", EVERY).objects > 1_000
    (record,) = caplog.records
    assert "Cannot allocate memory: 'fork'" in record.getMessage()


def test_automatic_forks_after_a_long_pause():
    """`auto` walks inline until that takes more than 10 ms, and in a child from then on."""
    used = []
    seconds = [0.0]

    def walk(reachable, objects):
        used.append("inline")
        seconds[0] += 0.02 if len(used) > 1 else 0.001
        return _native.census(reachable, [])

    def walk_in_child(reachable, deadline):
        used.append("child")
        return _native.census(reachable, []), 0.001

    census = AcceleratedCensus("auto", clock=lambda: seconds[0], walk=walk, walk_in_child=walk_in_child)
    pauses = [census.take().pause for _ in range(4)]
    assert used == ["inline", "inline", "child", "child"]
    assert pauses == pytest.approx([0.001, 0.02, 0.001, 0.001])


def test_types_beyond_the_limit_are_summed():
    """The limits and filters of the pure census hold here, too."""
    census = AcceleratedCensus("inline").take("tracked", TypeFilter(top=1, exclude=("^builtins",)))
    assert [row.module for row in census.rows][1:] == [OTHER]
    assert not any(row.module.startswith("builtins") for row in census.rows)
