"""What a search for holders is asked, and what it finds: groups of alike holders. holders.py makes a tree of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Cancelled", "Group", "Kind", "Progress", "Question"]

Progress = Callable[[int, int], None]
"""Told the level that is being walked and how many objects have been met."""
Cancelled = Callable[[], bool]
"""Asked now and then; True ends the search."""


class Kind:
    """What a group of holders is; the numbers of hr_kind in native/holders.h."""

    OBJECT, GLOBAL, MODULE, CLASS, CLASS_ATTRIBUTE, ATTRIBUTE, INSTANCE, FUNCTION, OTHERS = range(9)


class Group(NamedTuple):
    """All holders of one kind, class and name that hold objects of the same group, its parent."""

    parent: int | None
    kind: int
    objects: int
    references: int
    bytes: int
    cut: str | None
    type: str
    name: str


@dataclass(frozen=True, slots=True)
class Question:
    """Whose holders are looked for, and how far."""

    module: str | None
    """`package.module.Type` as in the census; None for whatever the endpoint retains."""
    endpoint: int = 0
    """Only what requests of the endpoint with this number left alive; 0: whoever allocated it."""
    max_depth: int = 8
    max_items: int = 200_000
    ignore_types: tuple[str, ...] = ()
    """Holders of these types are passed over; as `Type` or `package.module.Type`."""
    ignore_modules: tuple[str, ...] = ()
    """Holders of types of these modules are passed over."""
