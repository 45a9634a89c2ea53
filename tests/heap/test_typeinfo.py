import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heap_middleware.heap.census import TypeRow
from heap_middleware.heap.typeinfo import MAX_NAME, basic_size, clean, is_own_type, sizer_of, type_name


class Text(str):
    def __str__(self):
        raise RuntimeError("foreign code ran")


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\0b", "a\ud800b", "x" * 1_000_000])
def test_any_name_becomes_a_label(name):
    """Whatever a class is called, its label is printable, bounded and encodable."""
    cls = type("X", (), {})
    cls.__qualname__ = name
    label = type_name(cls)
    assert label.isprintable()
    assert len(label) <= MAX_NAME
    assert label.encode()


@given(st.text(st.characters()))
def test_clean_is_bounded_and_printable(name):
    """No name breaks a label."""
    assert clean(name).isprintable()
    assert len(clean(name)) <= MAX_NAME


@pytest.mark.parametrize(("module", "shown"), [(property(), "?"), (7, "?"), (Text("m"), "m")])
def test_a_module_that_is_no_string(module, shown):
    """A class whose module is no string is shown with a question mark."""
    assert type_name(type("X", (), {"__module__": module})) == f"{shown}.X"


def test_a_missing_module():
    """A class without a module is shown all the same."""
    space = {}
    exec("X = type('X', (), {})", space)  # its globals have no `__name__`
    assert type_name(space["X"]) == "?.X"


def test_own_types_are_known():
    """The package tells its own classes from mine."""
    assert is_own_type(TypeRow)
    assert not is_own_type(type("X", (), {"__module__": "heap_middleware_of_mine"}))


def sizeof(answer):
    def __sizeof__(self):
        if isinstance(answer, Exception):
            raise answer
        return answer

    return __sizeof__


@pytest.mark.parametrize("answer", [RuntimeError(), 1.5, -1, 1 << 62])
def test_a_lying_sizeof_gets_the_basic_size(answer):
    """A class that lies about its size is counted with its basic size."""
    cls = type("X", (), {"__sizeof__": sizeof(answer)})
    assert sizer_of(cls)(cls()) == basic_size(cls)


def test_honest_classes_are_measured():
    """Lists and plain classes are measured as sys.getsizeof does."""
    assert sizer_of(list)([1] * 99) == sys.getsizeof([1] * 99)


def test_a_c_method_of_another_name_is_not_called():
    """A list whose __sizeof__ is list.clear keeps its items."""
    cls = type("L", (list,), {"__sizeof__": list.clear})
    item = cls([1, 2])
    assert sizer_of(cls)(item) == basic_size(cls)
    assert len(item) == 2
