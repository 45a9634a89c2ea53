"""Which lines allocated what routes retain, as the accelerator's records say.

The rules of this file:
- The application's own lines are what a reader wants: a leak through a library is found at the line that called it.
- A line is told apart by its file, number and function, never by a code object: none is kept alive.
- Bounded twice: the accelerator knows so many lines, and each route shows its largest ones. What is beyond is summed as
  `__other__`, so sums stay true.
"""

import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, TypeVar

__all__ = ["OTHER_SITE", "Line", "Root", "Site", "roots_of", "rows_in_accelerator", "sites_by_endpoint"]

OTHER_SITE: Final = "__other__"
_PER_ROUTE: Final = 20
"""Lines of a route that are shown: a leak has a handful, the rest is what every request leaves in caches."""
_ROOM: Final = 8
"""Lines the accelerator has room for, to each that is shown: most allocate what is freed at once."""
_MOST_ROWS: Final = (1 << 16) - 1  # a record has 16 bits for its line
_LIBRARY, _APPLICATION, _OURS = range(3)  # hl_kind in native/sites.h

Line = tuple[str, int, str]
"""File, line and function."""
Root = tuple[str, int]
"""A folder, with a separator at its end, and what lies below it, as a number of hl_kind in native/sites.h."""
Row = tuple[int, int, int, Line | None, Line | None]
"""As native.sites() gives them: endpoint number, objects, bytes, the innermost line, that of the application."""
_Key = TypeVar("_Key")


class Site(NamedTuple):
    """One allocating line and what of it is alive."""

    where: str
    """The innermost frame of the application itself, `file:line function`; that of `innermost` if there is none."""
    innermost: str
    """The innermost Python frame, `file:line function`: where in a library it was allocated."""
    objects: float
    bytes: float


def roots_of(app_roots: Sequence[str]) -> list[Root]:
    """Where the application's files are, if it says so, where Python's are, and where ours are."""
    libraries = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [
        *((_folder(root), _APPLICATION) for root in app_roots),
        *((_folder(root), _LIBRARY) for root in sorted(libraries) if root),
        (_folder(ours), _OURS),
    ]


def rows_in_accelerator(max_sites: int) -> int:
    """Lines the accelerator has to have room for, for `max_sites` to be shown."""
    return min(max_sites * _ROOM, _MOST_ROWS)


def sites_by_endpoint(
    rows: Iterable[Row], numbered: Mapping[int, _Key], max_sites: int
) -> dict[_Key, tuple[Site, ...]]:
    """The largest sites of each endpoint, most objects first, the rest as `__other__`; `max_sites` in all."""
    merged: dict[tuple[int, str, str], list[int]] = {}
    for number, objects, size, innermost, application in rows:
        if number in numbered:
            key = number, _text(application or innermost), _text(innermost)
            sums = merged.setdefault(key, [0, 0])  # lines of functions that are made again and again are one line
            sums[0] += objects
            sums[1] += size
    found: dict[int, list[Site]] = {}
    for at, (key, (objects, size)) in enumerate(sorted(merged.items(), key=lambda item: -item[1][0])):
        number, *lines = key
        sites = found.setdefault(number, [])
        named = at < max_sites and len(sites) < _PER_ROUTE
        where, inner = lines if named else (OTHER_SITE, OTHER_SITE)
        sites.append(Site(where, inner, objects, size))
    return {numbered[number]: _others_last(sites) for number, sites in found.items()}


def _others_last(sites: Sequence[Site]) -> tuple[Site, ...]:
    others = [site for site in sites if site.where == OTHER_SITE]
    if not others:
        return tuple(sites)
    rest = Site(OTHER_SITE, OTHER_SITE, sum(site.objects for site in others), sum(site.bytes for site in others))
    return (*(site for site in sites if site.where != OTHER_SITE), rest)


def _text(line: Line | None) -> str:
    if line is None:
        return OTHER_SITE
    file, number, function = line
    return f"{_shortened(file)}:{number} {function}"


@lru_cache(maxsize=1024)
def _shortened(file: str) -> str:
    """A path from where it was imported: `flask/app.py`, not where that lies on this machine."""
    folders = [_folder(os.path.abspath(entry)) for entry in (*sys.path, sysconfig.get_path("stdlib")) if entry != file]
    known = max((folder for folder in folders if file.startswith(folder)), key=len, default="")
    return file[len(known) :]


def _folder(path: str) -> str:
    return os.path.join(path, "")
