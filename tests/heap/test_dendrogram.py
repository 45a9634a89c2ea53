"""`HeapDendrogram`: what its users were promised."""

import gc
import shutil
import subprocess
import sys
import weakref

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from heap_middleware.errors import SettingsError
from heap_middleware.heap import dendrogram as module
from heap_middleware.heap.dendrogram import HeapDendrogram, HeapNode
from heap_middleware.heap.typeinfo import type_name

EVERYTHING = 10**7


class Large:
    __slots__ = ("__weakref__", "a", "b", "c", "d", "e", "f", "g", "h")


class Middle:
    __slots__ = ("a", "b", "c", "d")


class Small:
    __slots__ = ("a",)


class Plain:
    pass


def generated(**arguments):
    tree = HeapDendrogram(**{"max_items": EVERYTHING, **arguments})
    tree.generate()
    return tree


def nodes_of(tree, *objects):
    by_address = {node.address: node for node in tree.descendants()}
    return [by_address.get(id(item)) for item in objects]


def chain_of_three():
    held, holder, outer = Large(), Middle(), Small()
    holder.a, outer.a = held, holder
    return held, holder, outer


def parsed(text):
    return {
        family.name: [(sample.labels.get("module"), sample.value) for sample in family.samples]
        for family in text_string_to_metric_families(text)
    }


def test_holders_are_below_what_they_hold():
    """Below an object I find the object that refers to it, and below that one its own holder."""
    objects = chain_of_three()
    tree = generated()
    node = nodes_of(tree, objects[0])[0]
    names = [type_name(type(item)) for item in objects]
    (holder,) = node.children
    (outer,) = holder.children
    assert [node.name, holder.name, outer.name] == names
    assert [node.address, holder.address, outer.address] == list(map(id, objects))
    assert [node.depth, holder.depth, outer.depth] == [1, 2, 3]
    assert outer.children == ()
    assert node in tree.root.children


def test_the_articles_names_work():
    """Code written for the article goes on working: four positional arguments, `referrers`, `None` from generate."""
    tree = HeapDendrogram(5, 10000, (), ("builtins",))
    assert tree.generate() is None
    assert tree.root.referrers == tree.root.children != ()
    assert (tree.root.name, tree.root.size, tree.root.address, tree.root.depth) == ("root", 0, 0, 0)


def test_sizes_are_those_of_the_instances():
    """A node's size is what the instance takes, not what its class takes."""
    objects = chain_of_three()
    sizes = [node.size for node in nodes_of(generated(), *objects)]
    assert sizes == [sys.getsizeof(item) for item in objects]
    assert sizes[0] < sys.getsizeof(Large)


def test_before_generate_the_tree_is_empty():
    """A dendrogram that was not generated is empty, and can be asked all the same."""
    tree = HeapDendrogram()
    assert (tree.total_objects(), list(tree.descendants()), tree.root.children, tree.truncated) == (0, [], (), None)
    assert parsed(tree.as_prometheus_metric()) == {
        "heap_size_bytes_total": [(None, 0)],
        "heap_size_bytes": [],
        "object_count": [],
    }


def test_descendants_are_all_nodes_depth_first():
    """`descendants()` goes through every node once, in the order a walk over `children` goes."""
    tree = generated(max_depth=4)

    def below(node):
        for child in node.children:
            yield child
            yield from below(child)

    nodes = list(tree.descendants())
    assert nodes == list(below(tree.root))
    assert len(nodes) == len(set(nodes)) == len({node.address for node in nodes}) == tree.total_objects()


def test_descendants_survive_a_new_generate():
    """An iteration I began is finished over the tree it began with."""
    tree = generated()
    total, nodes = tree.total_objects(), tree.descendants()
    first = next(nodes)
    HeapDendrogram.__init__(tree, max_items=1)
    tree.generate()
    assert 1 + len(list(nodes)) == total
    assert first != next(tree.descendants())


def test_nodes_say_what_they_are():
    """Printing a node in a console shows its type, address and size, and comparing it with something else is false."""
    objects = chain_of_three()
    (node,) = nodes_of(generated(), objects[2])
    assert repr(node) == f"<HeapNode {type_name(Small)} at {id(objects[2]):#x}, {sys.getsizeof(objects[2])} bytes>"
    assert node != "something else"


@pytest.mark.whole_heap
def test_item_limit_keeps_the_largest():
    """With `max_items` I get that many objects, the largest, and `truncated` says so."""
    tree = generated(max_depth=1, max_items=50)
    all_sizes = sorted((node.size for node in generated(max_depth=1).descendants()), reverse=True)
    assert tree.total_objects() == 50
    assert [node.size for node in tree.descendants()] == all_sizes[:50]
    assert tree.truncated == "items"


def test_depth_limit_cuts_chains_not_objects():
    """With `max_depth` no chain is longer, no object is lost, and `truncated` says so."""
    objects = chain_of_three()
    shallow, deep = generated(max_depth=2), generated(max_depth=EVERYTHING)
    assert max(node.depth for node in shallow.descendants()) == 2
    assert [node.depth for node in nodes_of(shallow, *objects)] == [1, 2, 1]
    assert {node.address for node in shallow.descendants()} >= set(map(id, objects))
    assert abs(shallow.total_objects() - deep.total_objects()) <= 10
    assert (shallow.truncated, deep.truncated) == ("depth", None)


def test_equal_sizes_are_ordered_by_name():
    """Two runs over the same heap list the objects in the same order: by bytes, the largest first, then by name."""
    keep = [Small(), Plain(), Small()]
    order = [(-node.size, node.name) for node in generated(max_depth=1).descendants()]
    assert order == sorted(order)
    assert len(keep) == 3


@pytest.mark.parametrize("name", ["Middle", type_name(Middle)])
def test_ignored_types_hide_instances_and_their_holders(name):
    """A class I ignore, by bare or full name, is gone, with what refers directly to it, and nothing else."""
    objects = chain_of_three()
    found = nodes_of(generated(ignore_types=[name]), *objects)
    assert [node is not None for node in found] == [True, False, False]
    assert found[0].children == ()


def test_ignored_types_count_when_untracked():
    """A class is ignored in what an object refers to even where the garbage collector does not list its instances."""
    with_bytes, without = Small(), Small()
    with_bytes.a, without.a = b"some bytes", None
    found = nodes_of(generated(ignore_types=("bytes",)), with_bytes, without)
    assert [node is not None for node in found] == [False, True]


def test_ignored_modules_are_gone():
    """Types of a module I ignore are gone; a package's name does not stand for its submodules."""
    objects = chain_of_three()
    inside = type("Inside", (), {"__module__": f"{__name__}.inner"})()
    found = nodes_of(generated(ignore_modules=["builtins", __name__]), *objects, inside)
    assert [node is not None for node in found] == [False, False, False, True]


def test_builtins_are_shown_on_request():
    """With nothing ignored I see lists, dicts and tuples as holders, too."""
    held = Large()
    holder = [held]
    outer = (holder,)
    default, full = generated(), generated(ignore_modules=(), max_depth=EVERYTHING)
    assert nodes_of(default, holder, outer) == [None, None]
    assert [node.name for node in nodes_of(full, holder, outer)] == ["builtins.list", "builtins.tuple"]


def test_own_objects_are_left_out():
    """The tool does not show itself: no object of this package is in the tree, other dendrograms included."""
    other = generated()
    kept = list(other.descendants())
    names = {node.name for node in generated(ignore_modules=()).descendants()}
    assert [name for name in names if name.startswith("heap_middleware.")] == []
    assert "builtins.dict" in names
    assert kept


@pytest.mark.parametrize("ignored", [(), ("builtins",)])
def test_objects_die_after_generate(ignored):
    """A dendrogram and its nodes keep no object of mine alive, not even until the next garbage collection."""
    item = Large()
    gone = weakref.ref(item)
    gc.disable()
    try:
        tree = generated(ignore_modules=ignored)
        nodes = [*nodes_of(tree, item), *tree.descendants()]
        assert nodes[0].name == type_name(Large)
        del item
        assert gone() is None
    finally:
        gc.enable()


def test_classes_die_after_generate():
    """A class made for one request is not kept by the tree that shows its instance."""
    cls = type("Made", (), {})
    item, gone = cls(), weakref.ref(cls)
    tree = generated()
    assert type_name(cls) in {node.name for node in tree.descendants()}
    del item, cls
    gc.collect()
    assert gone() is None


def test_an_interrupted_generate_keeps_nothing(monkeypatch):
    """Ctrl-C during generate() leaves an empty tree, and the exception keeps no object of mine alive."""
    item = Large()
    gone = weakref.ref(item)
    tree = generated()

    def interrupted(objects, hides):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "index_referrers", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        tree.generate()
    del item
    gc.collect()
    assert gone() is None
    assert caught.value.__traceback__ is not None
    assert tree.total_objects() == 0


def test_repeated_generate_is_flat():
    """Generating again and again leaves no object behind."""
    tree = HeapDendrogram(max_items=EVERYTHING, ignore_modules=(), ignore_types=("nothing",))

    def counted():
        tree.generate()
        tree.as_prometheus_metric()
        gc.collect()
        return len(gc.get_objects())

    counted()
    counts = [counted() for _ in range(6)]
    assert counts == [counts[0]] * 6


def test_work_is_proportional_to_objects(monkeypatch):
    """Twice the objects are twice the questions: each object is asked for its references at most once."""
    asked = 0
    real = gc.get_referents

    def counting(*objects):
        nonlocal asked
        asked += len(objects)
        return real(*objects)

    monkeypatch.setattr(module.gc, "get_referents", counting)
    monkeypatch.setattr("heap_middleware.heap.referrers.references", counting)
    tree = generated()
    base, small = asked, tree.total_objects()
    keep = [Small() for _ in range(5000)]
    asked = 0
    tree.generate()
    assert tree.total_objects() - small == pytest.approx(len(keep), abs=10)
    assert asked - base == pytest.approx(len(keep), abs=10)


def test_hostile_objects_are_not_touched():
    """Objects and classes that raise at every touch are counted, and none of their code runs."""
    touched = []

    def trap(name):
        def method(*arguments):
            touched.append(name)
            raise RuntimeError(name)

        return method

    special = ["eq", "hash", "bool", "repr", "len", "iter", "getattribute", "sizeof", "instancecheck", "dir"]
    traps = {f"__{name}__": trap(name) for name in special}
    meta = type("Meta", (type,), dict(traps))
    body = {**traps, "__class__": property(trap("class")), "__module__": property(trap("module"))}
    cls = type.__new__(meta, "Hostile", (), body)
    hostile = object.__new__(cls)
    address = id(hostile)
    tree = generated(ignore_types=("nothing",))
    names = [node.name for node in tree.descendants() if node.address == address]
    text = tree.as_prometheus_metric()
    assert touched == []
    assert names == ["?.Hostile"]
    assert 'object_count{module="?.Hostile"} 1' in text


def test_lying_names_are_read_from_the_type():
    """A metaclass that lies about `__name__` and `__module__` does not get its class past my filters."""
    meta = type("Liar", (type,), {"__name__": "innocent", "__module__": "builtins"})
    cls = meta("Guilty", (), {"__module__": "app"})
    item = cls()
    assert [node.name for node in nodes_of(generated(), item)] == ["app.Guilty"]
    assert nodes_of(generated(ignore_types=["Guilty"]), item) == [None]


def test_a_missing_module_is_no_module():
    """A class that has no `__module__` is shown with `?` instead."""
    namespace = {}
    exec("cls = type('Orphan', (), {})", namespace)  # Python takes the module's name from the globals, if it is there
    item = namespace["cls"]()
    assert [node.name for node in nodes_of(generated(), item)] == ["?.Orphan"]


@pytest.mark.parametrize("sizer", [lambda item: 1 << 62, lambda item: [].index(item)])
def test_sizes_that_lie_or_raise_are_replaced(sizer, monkeypatch):
    """An object whose size cannot be told, or cannot be true, counts with its type's basic size."""
    real = module.sizer_of
    monkeypatch.setattr(module, "sizer_of", lambda cls: sizer if cls is Small else real(cls))
    item = Small()
    assert [node.size for node in nodes_of(generated(), item)] == [Small.__basicsize__]


@pytest.mark.whole_heap
def test_finalizers_may_generate_again():
    """A finalizer that runs inside generate() may use the same dendrogram, and both come to their end."""
    tree = HeapDendrogram(max_items=EVERYTHING)
    seen = []

    class Dying:
        def __del__(self):
            tree.generate()
            seen.append(tree.total_objects())

    dying = Dying()
    dying.self = dying
    del dying
    tree.generate()
    assert len(seen) == 1
    assert tree.total_objects() > 100


@pytest.mark.whole_heap
def test_objects_let_go_meanwhile_may_generate_again(monkeypatch):
    """An object whose last reference is dropped by generate() itself may use the dendrogram in its finalizer."""
    tree = HeapDendrogram(max_items=EVERYTHING)
    seen, keep = [], []

    class Dying:
        def __del__(self):
            tree.generate()
            seen.append(tree.total_objects())

    real = module.index_referrers

    def letting_go(objects, hides):
        keep.clear()
        return real(objects, hides)

    keep.append(Dying())
    monkeypatch.setattr(module, "index_referrers", letting_go)
    tree.generate()
    assert len(seen) == 1
    assert tree.total_objects() > 100


def test_objects_are_let_go_before_the_walk(monkeypatch):
    """While the tree is being walked and written, objects of mine can die already."""
    keep = [Large()]
    gone, states = weakref.ref(keep[0]), []
    real = module.holders_first_walk

    def walking(*arguments):
        keep.clear()
        states.append(gone())
        return real(*arguments)

    monkeypatch.setattr(module, "holders_first_walk", walking)
    tree = generated()
    assert states == [None]
    assert type_name(Large) in {node.name for node in tree.descendants()}


def test_metric_can_be_parsed_and_adds_up():
    """What Prometheus reads are three families whose parts add up to the whole, the largest type first."""
    keep = [Plain() for _ in range(100)]
    tree = generated()
    text = tree.as_prometheus_metric()
    families = parsed(text)
    sizes, counts = families["heap_size_bytes"], families["object_count"]
    assert text.endswith("\n")
    assert list(families) == ["heap_size_bytes_total", "heap_size_bytes", "object_count"]
    assert families["heap_size_bytes_total"] == [(None, sum(size for _, size in sizes))]
    assert sum(count for _, count in counts) == tree.total_objects()
    assert dict(counts)[type_name(Plain)] == len(keep)
    assert sizes == sorted(sizes, key=lambda row: (-row[1], row[0]))
    assert [name for name, _ in sizes] == [name for name, _ in counts]


def test_types_of_one_name_share_a_series():
    """Two classes of the same name are one series with the sum of both, never a duplicate."""
    keep = [type("Twin", (), {"__module__": "app"})() for _ in range(3)]
    counts = parsed(generated().as_prometheus_metric())["object_count"]
    assert [count for name, count in counts if name == "app.Twin"] == [len(keep)]


def test_a_class_called_root_is_counted():
    """A class that is named like the root of the tree is counted right."""
    cls = type("X", (), {"__module__": "root"})
    keep = [cls(), cls()]
    assert dict(parsed(generated().as_prometheus_metric())["object_count"])["root.X"] == len(keep)


def test_promtool_accepts_the_text():
    """Prometheus' own checker can read the text, and complains of nothing but the three names of the article."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    keep = type("T", (), {"__module__": 'a"b\\c\nd', "__qualname__": "é\0\ud800"})()
    text = generated().as_prometheus_metric()
    done = subprocess.run([promtool, "check", "metrics"], input=text.encode(), capture_output=True, check=False)
    complaints = done.stderr.decode().splitlines()
    assert done.returncode in (0, 3), complaints
    assert {line.split()[0] for line in complaints} <= {"heap_size_bytes_total", "heap_size_bytes", "object_count"}
    assert keep is not None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(codec=None), max_size=30), st.text('"\\\n\r\0\ud800{},= é\u2028x', max_size=30))
def test_any_name_comes_back(package, name):
    """Whatever a class is called, quotes, newlines, NUL and lone surrogates included, its series can be read back."""
    cls = type("T", (), {"__module__": f"app.{package}", "__qualname__": name})
    keep = [cls(), cls()]
    text = generated(ignore_modules=("builtins", "typing")).as_prometheus_metric()
    assert dict(parsed(text.encode().decode())["object_count"])[type_name(cls)] >= len(keep)


@pytest.mark.parametrize("name", ["max_depth", "max_items"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "5", True, None, 1 << 70])
def test_wrong_limits_are_refused(name, value):
    """A limit that is no positive int is refused with its name, its value and what is allowed."""
    with pytest.raises(SettingsError) as caught:
        HeapDendrogram(**{name: value})
    assert str(caught.value) == f"{name}={value!r}: must be an int from 1 to {sys.maxsize}"


@pytest.mark.parametrize("name", ["ignore_types", "ignore_modules"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("Session", "='Session': must be an iterable of str, such as ('Session',), not a single str"),
        (5, "=5: must be an iterable of str"),
        (b"ab", "=b'ab': every item must be a str, 97 is none"),
        (["a", None], "=['a', None]: every item must be a str, None is none"),
        ([int], "=[<class 'int'>]: every item must be a str, <class 'int'> is none"),
    ],
)
def test_wrong_names_are_refused(name, value, said):
    """Names to ignore that are no iterable of str, a bare str above all, are refused with what is allowed."""
    with pytest.raises(SettingsError) as caught:
        HeapDendrogram(**{name: value})
    assert str(caught.value) == name + said


def test_names_may_come_from_any_iterable():
    """Names to ignore may be a set or a generator, and are read once, at construction."""
    objects = chain_of_three()
    tree = generated(ignore_types=(name for name in ["Large"]), ignore_modules={"builtins"})
    assert nodes_of(tree, *objects)[0] is None
    tree.generate()
    assert nodes_of(tree, *objects)[0] is None


def test_nodes_are_of_the_published_class():
    """What the tree hands out is `HeapNode`, so I can annotate my functions with it."""
    tree = generated(max_items=3)
    assert {type(node) for node in (tree.root, *tree.descendants())} == {HeapNode}
