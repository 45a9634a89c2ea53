"""Sums over processes, as columns of doubles: 32 workers with 500 routes are 140,000 numbers in every scrape.

Endpoints are sorted, so workers that know the same routes have the same rows, and their columns are added whole.
"""

import math
import sys
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import fields
from operator import add
from typing import Any, Final, TypeAlias

from heap_middleware.endpoints.ledger import OTHER_ROUTE, UNMATCHED, Endpoint, EndpointTotals

__all__ = ["Counters", "DamagedSnapshot", "checked_numbers", "checked_texts"]

_MAX_TEXT: Final = 10_000
_OWN: Final = ("sites", "scatter")
"""What a process keeps to itself."""
_WIDTH: Final = array("d").itemsize
_COLUMNS: Final = tuple(column.name for column in fields(EndpointTotals) if column.name not in _OWN)
_OPTIONAL: Final = tuple(column.name for column in fields(EndpointTotals) if column.default is None)
_WHOLE: Final = ("requests", "measured")
_NO_ROUTES: Final = {OTHER_ROUTE, UNMATCHED}
_RETAINED: Final = ("retained_objects", "retained_bytes")
"""What a process takes with it when it ends. All other columns only grow."""
_Column: TypeAlias = "list[float] | array[float]"  # sums are added up as lists, in half the time; arrays take a quarter


class DamagedSnapshot(ValueError):
    """A file that is no snapshot of this version; the message says what is wrong with it."""


class Counters:
    """The totals of each endpoint, column by column, and figures of the middleware itself."""

    def __init__(self, own: Mapping[tuple[str, str], float] | None = None) -> None:
        self.own: dict[tuple[str, str], float] = dict(own or {})
        """By metric family and part."""
        # A row for each endpoint, whose two names are apart: of most workers no endpoint is ever asked for.
        self._methods: list[str] = []
        self._routes: list[str] = []
        self._columns: dict[str, _Column | None] = {  # None for a column that no process knows
            name: None if name in _OPTIONAL else [] for name in _COLUMNS
        }
        self._rows: dict[Endpoint, int] | None = {}
        """Where each endpoint is; None while nobody has asked."""
        self._known: set[str] = set()
        """The routes, as far as `max_routes` counts them; empty while nobody has asked."""

    @classmethod
    def of(cls, totals: Mapping[Endpoint, EndpointTotals], own: Mapping[tuple[str, str], float]) -> "Counters":
        """What one process counted."""
        counters = cls(own)
        ordered = sorted(totals)
        counters._take([endpoint.method for endpoint in ordered], [endpoint.route for endpoint in ordered])
        for name in _COLUMNS:
            column = [getattr(totals[endpoint], name) for endpoint in ordered]
            if name not in _OPTIONAL or any(value is not None for value in column):
                counters._columns[name] = [value or 0 for value in column]
        return counters

    def add(self, other: "Counters", *, alive: bool = True, max_routes: int | None = None) -> None:
        """Add what another process counted; of one that is not `alive` nothing is retained.

        Each process knows at most `max_routes` routes, not always the same ones: the sum knows no more either.
        """
        same = self._methods == other._methods and self._routes == other._routes
        if same:  # held once
            other._methods, other._routes = self._methods, self._routes
        rows = None if same else self._places(other, max_routes)
        count = len(self._methods)
        for name, column in other._columns.items():
            mine = self._columns[name]
            if mine is None and column is None:
                continue
            mine = [*(mine or ()), *[0] * (count - len(mine or ()))]
            if column is not None and (alive or name not in _RETAINED):
                if rows is None:
                    mine = list(map(add, mine, column))
                else:
                    for row, value in zip(rows, column, strict=True):
                        mine[row] += value
            self._columns[name] = mine
        for key, amount in other.own.items():
            self.own[key] = self.own.get(key, 0) + amount

    def _places(self, other: "Counters", max_routes: int | None) -> list[int]:
        """The row here of each of the other's endpoints, new ones included."""
        rows, places = self._index(), []
        methods, routes = list(self._methods), list(self._routes)  # others may share the lists
        for endpoint in map(Endpoint, other._methods, other._routes):
            if endpoint not in rows and not self._admits(endpoint.route, max_routes):
                endpoint = Endpoint(endpoint.method, OTHER_ROUTE)
            row = rows.setdefault(endpoint, len(methods))
            if row == len(methods):
                methods.append(endpoint.method)
                routes.append(endpoint.route)
            places.append(row)
        self._methods, self._routes = methods, routes
        return places

    def _admits(self, route: str, max_routes: int | None) -> bool:
        if not self._known:
            self._known = set(self._routes) - _NO_ROUTES
        if route in self._known or route in _NO_ROUTES:
            return True
        if max_routes is not None and len(self._known) >= max_routes:
            return False
        self._known.add(route)
        return True

    def _take(self, methods: list[str], routes: list[str]) -> None:
        self._methods, self._routes, self._rows = methods, routes, None

    def _index(self) -> dict[Endpoint, int]:
        if self._rows is None:
            endpoints = map(Endpoint, self._methods, self._routes)
            self._rows = {endpoint: row for row, endpoint in enumerate(endpoints)}
        return self._rows

    def endpoints(self) -> dict[Endpoint, EndpointTotals]:
        """The totals by endpoint."""
        columns: list[Iterable[Any]] = [self._column(name) for name in _COLUMNS]
        return dict(zip(self._index(), map(EndpointTotals, *columns), strict=True)) if self._methods else {}

    def _column(self, name: str) -> Iterable[Any]:
        column = self._columns[name]
        if column is None:
            return [None] * len(self._methods)
        return [round(value) for value in column] if name in _WHOLE else column

    def measured(self, endpoint: Endpoint) -> float:
        """Measured requests of one endpoint."""
        row, column = self._index().get(endpoint), self._columns["measured"]
        return column[row] if row is not None and column is not None else 0.0

    def as_data(self) -> dict[str, Any]:
        """The names, as `json` can write them."""
        return {
            "methods": self._methods,
            "routes": self._routes,
            "columns": [name for name, column in self._columns.items() if column is not None],
            "own": [[*key, amount] for key, amount in self.own.items()],
        }

    def as_bytes(self) -> bytes:
        """The numbers: the columns one behind the other, as doubles whose lowest byte comes first."""
        columns = (array("d", column) for column in self._columns.values() if column is not None)
        return b"".join(_swapped(column).tobytes() for column in columns)

    @classmethod
    def read(cls, names: Mapping[str, Any], numbers: memoryview) -> tuple["Counters", int]:
        """Read both again; also how many bytes of `numbers` that took.

        Raises `DamagedSnapshot`, ValueError, TypeError or KeyError.
        """
        counters = cls({(family, part): checked_numbers([amount])[0] for family, part, amount in names["own"]})
        checked_texts([text for key in counters.own for text in key])
        methods, routes = checked_texts(names["methods"]), checked_texts(names["routes"])
        if not len(methods) == len(routes) == len(set(zip(methods, routes, strict=False))):
            raise DamagedSnapshot("endpoints that do not add up")
        counters._take(methods, routes)
        present = checked_texts(names["columns"])
        if present != [name for name in _COLUMNS if name in present or name not in _OPTIONAL]:
            raise DamagedSnapshot("columns that are not those of totals")
        size = len(methods) * _WIDTH
        if len(numbers) < size * len(present):
            raise DamagedSnapshot(f"{len(numbers)} bytes, where {size * len(present)} of numbers should be")
        for place, name in enumerate(present):
            column = array("d")
            column.frombytes(numbers[place * size : (place + 1) * size])
            counters._columns[name] = checked_numbers(_swapped(column), below_zero=name in _RETAINED)
        return counters, size * len(present)


def _swapped(column: "array[float]") -> "array[float]":
    if sys.byteorder == "big":  # pragma: no cover - such a machine
        column.byteswap()
    return column


def checked_texts(found: Any) -> list[str]:
    """A list of texts, none of them huge, that can be written as UTF-8. Raises ValueError, as `DamagedSnapshot` is."""
    if type(found) is not list or not set(map(type, found)) <= {str} or max(map(len, found), default=0) > _MAX_TEXT:
        raise DamagedSnapshot("something else where names should be")
    "".join(found).encode()
    return found


def checked_numbers(found: Any, *, below_zero: bool = False) -> Any:
    """A list of numbers, or a column, that can be summed. Raises `DamagedSnapshot` or OverflowError."""
    if type(found) is not array and (type(found) is not list or not set(map(type, found)) <= {int, float}):
        raise DamagedSnapshot("something else where numbers should be")
    # json reads NaN, Infinity and 1e999; of a sum, one of them makes the same.
    if not math.isfinite(sum(found)) or (not below_zero and min(found, default=0) < 0):
        raise DamagedSnapshot("numbers that cannot be")
    return found
