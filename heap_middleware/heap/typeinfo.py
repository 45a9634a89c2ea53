"""Names and sizes of objects of types that may lie.

The one rule of this file: no code of the application runs. A class can override `__class__`, `__module__`,
`__name__`, `__hash__`, `__eq__` and `__sizeof__`, on itself and on its metaclass, and any of them may raise, block, or
call back into us (Werkzeug's `LocalProxy` does the first). So everything is read through the descriptors of `type`
itself, classes are keyed by their identity, and a `__sizeof__` is called only where it is written in C.
"""

import sys
from collections.abc import Callable
from types import MethodDescriptorType
from typing import Any, Final, cast

__all__ = [
    "MAX_NAME",
    "Sizer",
    "basic_size",
    "can_refer",
    "clean",
    "is_own_module",
    "is_own_type",
    "sizer_of",
    "type_name",
]

MAX_NAME: Final = 200
"""Longest name, in characters, that becomes a label. Prometheus sets no limit of its own by default, but class names
of a megabyte exist in the wild of dynamic ORMs; 200 holds every class of Django, SQLAlchemy and pydantic."""

Sizer = Callable[[Any], int]
"""Bytes of one instance, what it refers to not included."""

_module_of = type.__dict__["__module__"].__get__
_qualname_of = type.__dict__["__qualname__"].__get__
_mro_of = type.__dict__["__mro__"].__get__
_dict_of = type.__dict__["__dict__"].__get__
_flags_of = type.__dict__["__flags__"].__get__
_HAVE_GC: Final = 1 << 14  # Py_TPFLAGS_HAVE_GC
_basicsize_of = type.__dict__["__basicsize__"].__get__

_OWN: Final = __name__.partition(".")[0]


def type_name(cls: type) -> str:
    """`package.module.Type` of a class, printable and at most `MAX_NAME` characters long.

    A module that is missing or no string (a property, say, on a class made by hand) is written `?`.
    """
    return clean(f"{_module_name(cls)}.{_text(_qualname_of(cls))}")


def is_own_type(cls: type) -> bool:
    """Whether the class is defined in this package."""
    return is_own_module(_module_name(cls))


def is_own_module(module: str) -> bool:
    """Whether it is this package or a part of it."""
    return module == _OWN or module.startswith(_OWN + ".")


def clean(name: str) -> str:
    """A name as it may appear in a label: control characters and lone surrogates escaped, the length bounded."""
    name = name[: MAX_NAME + 1]
    if not name.isprintable():
        name = name.encode("unicode_escape").decode("ascii")
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def basic_size(cls: type) -> int:
    """The fixed part of an instance's size in bytes, as `tp_basicsize` gives it."""
    size: int = _basicsize_of(cls)
    return size


def sizer_of(cls: type) -> Sizer:
    """What measures the instances of a class without running code of the application.

    Built-in types and plain classes get `sys.getsizeof`; a class with a `__sizeof__` written in Python, which may
    raise, lie or block, gets its basic size.
    """
    sizeof = _find_sizeof(cls)
    # By its name as well: `__sizeof__ = list.clear` is written in C too.
    if type(sizeof) is MethodDescriptorType and sizeof.__name__ == "__sizeof__":
        return sys.getsizeof
    size = basic_size(cls)
    return lambda _: size


def can_refer(cls: type) -> bool:
    """Whether instances can refer to other objects in a way the garbage collector follows."""
    return bool(_flags_of(cls) & _HAVE_GC)


def _find_sizeof(cls: type) -> object:
    for base in _mro_of(cls):  # may lack `object`: a metaclass can make it up
        # Not by look-up: a key may be a subclass of `str` whose `__eq__` the look-up would call.
        for name, value in _dict_of(base).items():
            if type(name) is str and name == "__sizeof__":
                return value
    return None


def _module_name(cls: type) -> str:
    try:
        return _text(_module_of(cls))
    except Exception:  # none there; or a key of the class that is no plain `str` was compared, and raised
        return "?"


def _text(value: object) -> str:
    if type(value) is str:
        return value
    if issubclass(type(value), str):
        return str.__str__(cast(str, value))  # an exact copy: the subclass may override everything else
    return "?"
