"""Objects, classes and names that hurt whoever looks at them: everything of ours looks, and nothing happens."""

import ctypes
import gc
import random
import subprocess

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from werkzeug.local import LocalProxy

from heap_middleware import HeapDendrogram

LOOKS = ("tracked", "reachable")
READ = ("__class__", "__module__", "__name__")
READ_OF_CLASSES = (*READ, "__mro__", "__base__", "__bases__", "__basicsize__", "__flags__", "__dict__", "__doc__")
CALLED = sorted(
    (
        {name for cls in (object, type, int, str, list, dict, set) for name in vars(cls) if callable(vars(cls)[name])}
        | {"__getattr__", "__bool__", "__index__", "__fspath__", "__await__", "__aiter__", "__bytes__", "__complex__"}
    )
    - {"__new__", "__init_subclass__", "__class__", "mro"}
)
"""All methods of Python's own types, and what else it looks for."""


@pytest.fixture(params=LOOKS)
def look(request, serve):
    """Everything of ours that looks at objects: a scrape, the report, a search for holders, a dendrogram."""
    service = serve(census=request.param, top_types=100_000, report_path="/heap")

    def at(*names):
        counted = {sample.labels["module"]: sample for sample in service.samples() if sample.name == "object_count"}
        assert service.ask("/heap/api/v1/heap")[0] == 200
        for name in names:
            assert service.monitor.holders(name, max_items=20_000).root.objects >= 0
        HeapDendrogram(max_items=5_000).generate()
        return {name.rpartition(".")[2]: sample.value for name, sample in counted.items()}

    return at


@pytest.fixture
def half_built(look):
    """Tuples with nothing in their places, as those that C code is about to fill, tracked by the collector."""
    new = ctypes.pythonapi.PyTuple_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_ssize_t]
    return [new(size) for size in (1, 3, 20, 21, 1000) for _ in range(20)]


def test_half_built_tuples(look, half_built):
    """Tuples that somebody has not filled yet are walked past, whoever holds them."""
    number, held = len(half_built), [{"in a dict": half_built}, *half_built]
    # Of plain numbers only: to write the tuples into a failure's message is to crash.
    counted = look("builtins.tuple", "builtins.dict")["tuple"]
    assert counted >= number
    gc.collect()  # an old one looks as if it were done
    look("builtins.tuple")
    assert sum(map(gc.is_tracked, half_built)) == number
    held.clear()


class Called(BaseException):
    """Nobody catches it by accident."""


def trap(called, names):
    """What makes each of `names` write down that it was asked for, and raise."""

    def method(name):
        def hook(*_, **__):
            called.append(name)
            raise Called(name)

        return property(hook) if name in READ_OF_CLASSES else hook

    return {name: method(name) for name in names}


def test_nothing_of_an_object_is_called(look):
    """Of my objects no special method runs, `__class__`, `__hash__` and `__sizeof__` among them."""
    called = []
    cls = type("Everything", (), trap(called, [*CALLED, *READ]))
    kept = [object.__new__(cls) for _ in range(7)]
    kept += [{"a": kept[0]}, (kept[1],)]
    called.clear()
    assert look("?.Everything")["Everything"] == 7
    assert called == []
    assert len(kept) == 9


def test_nothing_of_a_metaclass_is_called(look):
    """The metaclass of my classes lies, raises and has no hash: its classes are counted by their true names."""
    called = []
    meta = type("Meta", (type,), trap(called, [*CALLED, *READ_OF_CLASSES]))
    cls = type.__new__(meta, "Strange", (), {"__module__": "app"})
    kept = [object.__new__(cls) for _ in range(5)]
    called.clear()
    assert look("app.Strange")["Strange"] == 5
    assert called == []
    assert len(kept) == 5


def test_a_proxy_outside_its_context(look):
    """A proxy of Werkzeug's with nothing behind it is a proxy, and asked for nothing."""
    asked = []

    def find():
        asked.append(1)
        raise RuntimeError("outside of its context")

    kept = [LocalProxy(find) for _ in range(6)]
    assert look("werkzeug.local.LocalProxy")["LocalProxy"] >= 6
    assert asked == []
    assert len(kept) == 6


SIZES = {
    "raises": lambda self: 1 / 0,
    "lies": lambda self: 5_000,
    "is a float": lambda self: 1.5,
    "is no number": lambda self: float("nan"),
    "is endless": lambda self: float("inf"),
    "is negative": lambda self: -1,
    "is the least": lambda self: -(2**63),
    "is huge": lambda self: 2**62,
    "overflows": lambda self: 10**400,
    "is nothing": lambda self: None,
    "takes more": lambda self, more: 1,
    "never ends": lambda self: sized["never ends"]().__sizeof__(),
}
sized = {name: type(name, (), {"__module__": "app", "__sizeof__": method}) for name, method in SIZES.items()}


def test_sizes_that_are_none(look, serve):
    """Whatever `__sizeof__` says or raises, the object is counted with its basic size, and totals stay finite."""
    kept = [cls() for cls in sized.values() for _ in range(10)]
    census = serve(top_types=100_000).monitor.census()
    found = {row.module: row for row in census.rows}
    for name, cls in sized.items():
        row = found[f"app.{name}"]
        assert (row.objects, row.bytes) == (10, 10 * cls.__basicsize__)
    assert 0 < census.bytes < 2**40
    counted = look("app.is huge")
    assert [counted[name] for name in sized] == [10] * len(sized)
    assert len(kept) == 10 * len(sized)


ODD = ['"', "\\", "\n", "a\0b", "\ud800", "\u202e", "x" * 1_000_000, "{", "}", "# HELP", "é", " ", "\x7f", "\ufeff", ""]


def oddly_named(number):
    """Classes with names and modules of any kind."""
    chance = random.Random(5)
    any_text = ["".join(chr(chance.randrange(0x3000)) for _ in range(chance.randrange(1, 9))) for _ in range(number)]
    for name in ODD + any_text:
        made = type("T", (), {"__module__": name})
        made.__qualname__ = name
        yield made
    subclass = type("Text", (str,), {})
    for module in (property(lambda self: 1 / 0), None, 7, b"bytes", ["list"], subclass("sub.class")):
        yield type("T", (), {"__module__": module})


def test_names_that_hurt(serve):
    """Whatever my classes and modules are called, promtool and both parsers read the page, and each is counted."""
    kept = [cls() for cls in oddly_named(300)]
    service = serve(top_types=100_000)
    found = [sample for sample in service.samples() if sample.name == "object_count"]
    names = {sample.labels["module"] for sample in found}
    assert len(names) == len(found)
    assert len([name for name in names if name.rpartition(".")[0] == name.rpartition(".")[2]]) >= 250
    assert max(map(len, names)) <= 200
    status, text = service.ask("/metrics", headers=[("Accept", "application/openmetrics-text; version=1.0.0")])
    assert status == 200
    read = [one.labels.get("module") for family in parse_openmetrics(text.decode()) for one in family.samples]
    assert set(read) >= names
    done = subprocess.run(["promtool", "check", "metrics"], input=service.ask("/metrics")[1], capture_output=True)
    assert b"pars" not in done.stderr, done.stderr
    assert len(kept) == 300 + len(ODD) + 6
