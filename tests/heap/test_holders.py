"""Who holds the objects of a type."""

import asyncio
import functools
import gc
import os
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_middleware import HeapMonitor, HeapSettings, SettingsError, accelerator
from heap_middleware.heap import holders
from heap_middleware.heap.held import Group, Kind, Question
from heap_middleware.heap.holders import Holder, HolderTree, find_holders, tree_of

Search = Callable[..., HolderTree]
ME = __name__


class Leaked:
    """What is looked for."""


NAME = f"{Leaked.__module__}.{Leaked.__qualname__}"


@pytest.fixture(params=["child", "inline", "pure"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the search is made."""
    if request.param == "pure":
        monkeypatch.setattr(holders, "missing", "not in this test")
    elif accelerator.missing is not None:
        assert not os.environ.get("CI")
        pytest.skip("the accelerator was not built")
    return str(request.param)


@pytest.fixture
def search(way: str) -> Search:
    """`search(name, ...)`: the tree of who holds these."""

    def run(name: str = NAME, **question: Any) -> HolderTree:
        gc.collect()
        return find_holders(Question(name, **question), fork=way == "child")

    return run


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    """A module that was imported."""
    made = types.ModuleType("shop.views")
    sys.modules["shop.views"] = made
    yield made
    del sys.modules["shop.views"]


def test_a_list_in_a_module_is_named(search, module):
    """The commonest leak: a list in a module, by the names of both."""
    module.leakable = [Leaked() for _ in range(100)]
    tree = search()
    assert tree.root.name == NAME
    assert tree.root.objects == 100
    assert tree.paths()[0] == f"module shop.views → global 'leakable' → list → {NAME} × 100"
    assert tree.cut is None
    assert tree.pid == os.getpid()


def test_class_attributes_are_named(search, module):
    """A registry on a class, by the names of both."""
    module.Registry = type("Registry", (), {"__module__": "shop.views", "entries": [Leaked()]})
    assert f"class shop.views.Registry → attribute 'entries' → list → {NAME} × 1" in search().paths()


def test_closures_are_named(search, module):
    """What a function closes over, by the function's name."""

    def make():
        kept = Leaked()
        return lambda: kept

    module.handler = make()
    (path,) = search().paths()
    assert path.startswith("module shop.views → global 'handler' → closure of ")
    assert path.endswith(f"make.<locals>.<lambda> → {NAME} × 1")


class Plain:
    pass


class Slotted:
    __slots__ = ("kept",)


class Child(Slotted):
    __slots__ = ()


@pytest.mark.accelerator
@pytest.mark.parametrize("cls", [Plain, Slotted, Child])
@pytest.mark.parametrize("fork", [True, False])
def test_instance_attributes_are_named(cls, fork, module):
    """An attribute, in a slot or not, by its name and the class of the instance."""
    module.one = cls()
    module.one.kept = Leaked()
    tree = find_holders(Question(NAME), fork=fork)
    owner = f"{cls.__module__}.{cls.__qualname__}"
    assert tree.paths() == [f"module shop.views → global 'one' → {owner} → attribute 'kept' → {NAME} × 1"]


@pytest.mark.accelerator
def test_an_attribute_is_named_when_the_instance_has_a_dict(module):
    """Also for an instance whose `__dict__` was asked for."""
    module.one = Plain()
    module.one.__dict__["kept"] = Leaked()
    module.one.__dict__["other"] = 1
    assert f" → {ME}.Plain → attribute 'kept' → {NAME} × 1".replace(ME, Plain.__module__) in search_native().paths()[0]


def search_native(**question: Any) -> HolderTree:
    return find_holders(Question(NAME, **question))


def hold_in_default(module: Any) -> None:
    def function(kept=Leaked()):
        return kept

    module.function = function


def hold_in_partial(module: Any) -> None:
    module.partial = functools.partial(print, Leaked())


def hold_in_method(module: Any) -> None:
    module.method = types.MethodType(print, Leaked())


def hold_in_generator(module: Any) -> None:
    def generate():
        kept = Leaked()
        yield kept

    module.generator = generate()
    next(module.generator)


def hold_in_set(module: Any) -> None:
    module.set = {Leaked()}


def hold_as_key(module: Any) -> None:
    module.dict = {Leaked(): 1}


@pytest.mark.parametrize(
    "hold", [hold_in_default, hold_in_partial, hold_in_method, hold_in_generator, hold_in_set, hold_as_key]
)
def test_whatever_holds_it_is_found(hold, search, module):
    """Default arguments, partials, bound methods, generators, sets and keys: all lead up to the module."""
    hold(module)
    tree = search()
    assert tree.root.objects == 1
    assert tree.paths()[0].startswith("module shop.views → global ")


@pytest.mark.anyio
async def test_a_task_that_never_ends_is_found(search, module):
    """What an unfinished task keeps leads to its coroutine."""

    async def wait():
        kept = Leaked()
        await asyncio.Event().wait()
        return kept

    module.task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    paths = search().paths()
    assert any("coroutine" in path and "global 'task'" in path for path in paths), paths
    module.task.cancel()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_alike_holders_are_one_node(search, module):
    """A thousand instances that hold one each are one line."""
    module.all = [[Leaked()] for _ in range(1000)]
    tree = search()
    assert tree.paths() == [f"module shop.views → global 'all' → list → list → {NAME} × 1000"]
    assert tree.root.holders[0].objects == 1000


def test_keys_and_values_of_the_applications_dicts_are_never_shown(search, module):
    """Whoever reads the tree learns names of code, not data."""
    module.sessions = {"hunter2-secret-key": [Leaked()], "card 4111": Leaked()}
    module.more = {"hunter2": {"hunter2": (Leaked(), "hunter2-value")}}
    text = repr(search())
    assert "hunter2" not in text
    assert "4111" not in text
    assert "sessions" in text


def test_a_walk_that_is_cut_says_by_what_and_where(search, module):
    """Depth and items: the tree says that it was cut, and the node where."""
    module.deep = [[[[[[Leaked()]]]]]]
    tree = search(max_depth=2)
    assert tree.cut == "depth"
    assert tree.levels == 2
    assert tree.root.holders[0].holders[0].cut == "depth"
    module.deep = [Leaked() for _ in range(100)]
    tree = search(max_items=50)
    assert tree.cut == "items"
    assert tree.root.cut == "items"
    assert tree.root.objects == 50


def test_a_walk_that_comes_to_its_end_is_not_cut(search, module):
    """As many levels as there are: nothing is left out, and nothing says so."""
    module.kept = Leaked()
    tree = search(max_depth=2)
    assert tree.cut is None
    assert any(path.startswith("module shop.views → global 'kept'") for path in tree.paths())


class Borrowed:
    """Has a `__sizeof__` that is for lists."""

    __sizeof__ = list.__sizeof__


def test_an_object_whose_size_cannot_be_told_is_found(search, module):
    """It counts like others."""
    module.kept = [Borrowed()]
    tree = search(f"{ME}.Borrowed")
    assert tree.root.objects == 1
    assert tree.root.bytes < 100
    assert any("global 'kept' → list" in path for path in tree.paths())


def test_cycles_end(search, module):
    """Objects that hold each other are shown once, and the walk ends."""
    one, two = Plain(), Plain()
    one.other, two.other, two.kept = two, one, Leaked()
    module.one = one
    tree = search(max_depth=30)
    assert tree.cut is None
    assert tree.root.objects == 1
    assert any("global 'one'" in path for path in tree.paths())


def test_holders_of_ignored_types_and_modules_are_passed_over(search, module):
    """What I know already is left out."""
    module.kept = [Leaked()]
    module.cache = {"a": Leaked()}
    assert not any("list" in path for path in search(ignore_types=("list",)).paths())
    assert not any("list" in path for path in search(ignore_types=("builtins.list",)).paths())
    assert search(ignore_modules=("builtins",)).paths() == []


def test_our_own_objects_and_frames_are_not_shown(search):
    """The search does not find itself."""
    kept = Leaked()
    tree = search()
    assert tree.root.objects == 1
    assert not any("heap_middleware.heap" in path for path in tree.paths())
    del kept


def test_a_type_that_nothing_is_of(search):
    """No objects, no holders, no error."""
    tree = search("no.such.Type")
    assert (tree.root.objects, tree.paths(), tree.cut) == (0, [], None)


def test_untracked_objects_are_found(search, module):
    """Strings too, which the garbage collector does not list."""

    class Text(str):
        __slots__ = ()

    Text.__qualname__ = "Text"
    module.texts = (Text("a"), [Text("b")])
    tree = search(f"{Text.__module__}.Text")
    assert tree.root.objects == 2
    assert any("global 'texts'" in path for path in tree.paths())


def test_everything_that_was_looked_at_can_die(search, module):
    """The search and its tree keep nothing of mine alive."""
    module.kept = [Leaked() for _ in range(10)]
    seen = [weakref.ref(one) for one in module.kept]
    tree = search()
    module.kept.clear()
    gc.collect()
    assert [one for one in seen if one() is not None] == []
    assert tree.root.objects == 10


class Explosive:
    """Raises from whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")

    __eq__ = __hash__ = __bool__ = __len__ = __iter__ = __repr__ = __str__ = __class_getitem__ = None  # type: ignore[assignment]


def test_no_special_method_is_called(search, module):
    """Objects that raise from everything are walked over all the same."""
    module.all = [Explosive(), Leaked()]
    object.__setattr__(module.all[0], "kept", module.all[1])
    assert search().root.objects == 1


def test_progress_is_told_and_the_search_can_be_cancelled(way, module):
    """I see how far it is, and can stop it; no process and no descriptor is left."""
    module.kept = [Leaked() for _ in range(100)]
    told: list[tuple[int, int]] = []
    before = descriptors()
    tree = find_holders(
        Question(NAME), fork=way != "inline", progress=lambda *p: told.append(p), cancelled=lambda: way != "inline"
    )
    if way != "inline":
        assert tree.cut == "cancelled"
        assert told
    assert descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_what_progress_raises_is_raised(way, module):
    """An error of mine is not swallowed."""

    def broken(level: int, items: int) -> None:
        raise LookupError("mine")

    if way == "inline":
        return  # nothing is told
    with pytest.raises(LookupError, match="mine"):
        find_holders(Question(NAME), progress=broken)


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else []


@pytest.mark.accelerator
def test_without_a_fork_it_is_walked_inline_and_said(monkeypatch, caplog, module):
    """Where no child can be made the search is made all the same."""

    def refuse(*_: Any) -> Any:
        raise OSError(12, "no memory", "fork")

    module.kept = [Leaked()]
    monkeypatch.setattr(holders.native, "holders_in_child", refuse)
    assert find_holders(Question(NAME)).root.objects == 1
    assert "holders could not be looked for in a child" in caplog.text


@pytest.mark.accelerator
@pytest.mark.parametrize(("number", "cut"), [(110, "time"), (14, "failed"), (125, "cancelled")])
def test_a_child_that_fails_is_not_made_up_for(number, cut, monkeypatch):
    """What took too long, or crashed, is not done again in the application."""

    def fail(*_: Any) -> Any:
        raise OSError(number, "x", "child")

    monkeypatch.setattr(holders.native, "holders_in_child", fail)
    tree = find_holders(Question(NAME))
    assert (tree.cut, tree.root.objects) == (cut, 0)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=60), st.sets(st.integers(0, 19)))
@pytest.mark.accelerator
def test_both_backends_agree_on_generated_heaps(edges, kept):
    """Whatever holds whatever: the accelerator and pure Python draw the same tree."""
    nodes: list[list[Any]] = [[] for _ in range(20)]
    for a, b in edges:
        nodes[a].append(nodes[b])
    for number in kept:
        nodes[number].append(Leaked())
    gc.collect()
    native = find_holders(Question(NAME, max_depth=4), fork=False)
    holders.missing, before = "not now", holders.missing
    try:
        pure = find_holders(Question(NAME, max_depth=4))
    finally:
        holders.missing = before
    assert shape(native.root, 3) == shape(pure.root, 3)
    assert native.root.objects == pure.root.objects == len(kept)


@pytest.mark.accelerator
def test_more_kinds_of_holders_than_there_is_room_for():
    """Five thousand classes, each with a holder: all are counted, the last ones under one name."""
    target = Leaked()
    kept = [type(f"Holds{number}", (), {"__slots__": ("it",)})() for number in range(5000)]
    for one in kept:
        one.it = target
    root = find_holders(Question(NAME), fork=False).root
    assert root.objects == 1
    assert sum(holder.held for holder in root.holders) >= 5000


def shape(holder: Holder, depth: int) -> Any:
    """Types and numbers down to a depth; further up the test's own machinery holds."""
    lists = [above for above in holder.holders if above.name == "list"]
    return holder.name, holder.objects, [shape(above, depth - 1) for above in lists if depth]


def group(parent: int | None, kind: int, references: int, name: str = "", objects: int = 1) -> Group:
    return Group(parent, kind, objects, references, 8, None, "x.Type", name)


def test_a_large_branch_is_summed_up():
    """A node with a hundred kinds of holders shows the twenty that hold most."""
    groups = [group(None, 0, 0), *(group(0, Kind.FUNCTION, number, f"f{number}") for number in range(100))]
    root = tree_of(groups, "x.Leaked")
    assert len(root.holders) == 21
    assert root.holders[0].name == "Type f99"
    assert root.holders[-1].name == "80 others"
    assert root.holders[-1].held == sum(range(80))


def test_names_that_are_missing_have_words():
    """A global, attribute or module whose name is none is called what it is."""
    groups = [group(None, 0, 0), *(group(0, kind, 9 - kind) for kind in range(1, 9))]
    names = [holder.name for holder in tree_of(groups, "x").holders]
    assert names == [
        "globals",
        "module ?",
        "class x.Type",
        "__dict__",
        "__dict__",
        "attribute ''",
        "Type ?",
        "others",
    ]


class TestMonitor:
    """As a user asks."""

    @pytest.fixture
    def monitor(self) -> HeapMonitor:
        return HeapMonitor(HeapSettings())

    def test_who_holds_it(self, monitor, module):
        """`monitor.holders("module.Type").paths()` is the answer."""
        module.leakable = [Leaked() for _ in range(10)]
        assert f"module shop.views → global 'leakable' → list → {NAME} × 10" in monitor.holders(NAME).paths()

    @pytest.mark.parametrize(
        ("question", "says"),
        [
            ({"module": ""}, "module=''"),
            ({"module": None}, "module=None"),
            ({"module": "a.B", "max_depth": 0}, "max_depth=0: must be an int from 1"),
            ({"module": "a.B", "max_items": "9"}, "max_items='9'"),
            ({"module": "a.B", "ignore_types": "list"}, "ignore_types='list'"),
            ({"module": "a.B", "ignore_modules": [1]}, r"ignore_modules=\[1\]"),
            ({"module": "a.B", "endpoint": ("GET", "/x")}, r"endpoint=\('GET', '/x'\) is none"),
        ],
    )
    def test_a_question_that_is_none(self, monitor, question, says):
        """A wrong argument is an error that names it, and what is allowed."""
        with pytest.raises(SettingsError, match=says):
            monitor.holders(**question)


@pytest.mark.accelerator
def test_what_a_route_retains_is_found():
    """Only the objects that requests of the endpoint left alive, by type or all."""
    holders.native.stop()  # another test's tracker, which may record less
    monitor = HeapMonitor(HeapSettings(attribution="native", sampling=1))
    recorder: Any = monitor.recorder
    elsewhere = [Leaked() for _ in range(5)]
    window = recorder.begin({}, None)
    kept = [Leaked() for _ in range(3)]
    recorder.finish(window, {}, None, "GET", "/leak")
    tree = monitor.holders(NAME, endpoint=("GET", "/leak"))
    assert tree.root.objects == len(kept)
    assert monitor.holders(endpoint=("GET", "/leak")).root.objects >= len(kept)
    assert monitor.holders(NAME).root.objects == len(kept) + len(elsewhere)
    with pytest.raises(SettingsError, match="there are GET /leak"):
        monitor.holders(NAME, endpoint=("GET", "/other"))
