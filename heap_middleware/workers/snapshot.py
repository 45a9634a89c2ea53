"""What one process knows, as data that another can read. Checked on the way in, never trusted.

A file is a line with a checksum, a line of JSON, and behind it the gauges as lines of the exposition format. Rendering
is most of a scrape (13 us a sample here, and 32 workers with 500 routes and 200 types have 45,000 gauges), so each
worker renders its own, beside the others; whoever answers joins them, and adds up the counters.

A file that was cut or spoiled does not match its checksum. Every value in it is checked, and whatever is not as it
should be makes the whole file a `DamagedSnapshot`. The format has a version, and another version is not guessed at.
"""

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from heap_middleware.endpoints.ledger import OTHER_ROUTE, UNMATCHED, Endpoint, EndpointTotals
from heap_middleware.endpoints.verdict import Evidence
from heap_middleware.workers.processes import Process

__all__ = ["Counters", "DamagedSnapshot", "Snapshot", "decode", "encode"]

_FORMAT: Final = 2
_MAX_TEXT: Final = 10_000
_COLUMNS: Final = tuple(column.name for column in fields(EndpointTotals) if column.name != "sites")
_OPTIONAL: Final = tuple(column.name for column in fields(EndpointTotals) if column.default is None)
_NO_ROUTES: Final = {OTHER_ROUTE, UNMATCHED}
_RETAINED: Final = ("retained_objects", "retained_bytes")
"""What a process takes with it when it ends. All other columns only grow."""


class DamagedSnapshot(ValueError):
    """A file that is no snapshot of this version; the message says what is wrong with it."""


class Counters:
    """Sums over processes: the totals of each endpoint, column by column, and figures of the middleware itself."""

    def __init__(self, own: Mapping[tuple[str, str], float] | None = None) -> None:
        self.own: dict[tuple[str, str], float] = dict(own or {})
        """By metric family and part."""
        self._routes: set[str] = set()
        self._index: dict[Endpoint, int] = {}
        # One list a column, a number for each endpoint; None for a column that no process knows.
        self._columns: dict[str, list[float] | None] = {name: None if name in _OPTIONAL else [] for name in _COLUMNS}

    @classmethod
    def of(cls, totals: Mapping[Endpoint, EndpointTotals], own: Mapping[tuple[str, str], float]) -> "Counters":
        """What one process counted."""
        counters = cls(own)
        counters._index = {endpoint: number for number, endpoint in enumerate(totals)}
        for name in _COLUMNS:
            column = [getattr(row, name) for row in totals.values()]
            if name not in _OPTIONAL or any(value is not None for value in column):
                counters._columns[name] = [value or 0 for value in column]
        return counters

    def add(self, other: "Counters", *, alive: bool = True, max_routes: int | None = None) -> None:
        """Add what another process counted; of one that is not `alive` nothing is retained.

        Each process knows at most `max_routes` routes, not always the same ones: the sum knows no more either.
        """
        index = self._index
        places = []
        for endpoint in other._index:
            if endpoint not in index and not self._admits(endpoint.route, max_routes):
                endpoint = Endpoint(endpoint.method, OTHER_ROUTE)
            places.append(index.setdefault(endpoint, len(index)))
        for name, column in other._columns.items():
            mine = self._columns[name]
            if column is not None and mine is None:
                mine = self._columns[name] = []
            if mine is None:
                continue
            mine.extend([0] * (len(index) - len(mine)))
            if column is not None and (alive or name not in _RETAINED):
                for place, value in zip(places, column, strict=True):
                    mine[place] += value
        for key, amount in other.own.items():
            self.own[key] = self.own.get(key, 0) + amount

    def _admits(self, route: str, max_routes: int | None) -> bool:
        if not self._routes:
            self._routes = {endpoint.route for endpoint in self._index} - _NO_ROUTES
        if route in self._routes or route in _NO_ROUTES:
            return True
        if max_routes is not None and len(self._routes) >= max_routes:
            return False
        self._routes.add(route)
        return True

    def endpoints(self) -> dict[Endpoint, EndpointTotals]:
        """The totals by endpoint."""
        unknown = [None] * len(self._index)
        columns: list[Iterable[Any]] = [self._columns[name] or unknown for name in _COLUMNS]
        return dict(zip(self._index, map(EndpointTotals, *columns), strict=True)) if self._index else {}

    def requests(self, endpoint: Endpoint) -> float:
        """Requests of one endpoint."""
        place, column = self._index.get(endpoint), self._columns["requests"]
        return column[place] if place is not None and column is not None else 0.0

    def as_data(self) -> dict[str, Any]:
        """What `json` can write."""
        return {
            "methods": [endpoint.method for endpoint in self._index],
            "routes": [endpoint.route for endpoint in self._index],
            "columns": self._columns,
            "own": [[*key, amount] for key, amount in self.own.items()],
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "Counters":
        """Read that again. Raises `DamagedSnapshot`, ValueError, TypeError or KeyError."""
        methods, routes = _texts(data["methods"]), _texts(data["routes"])
        counters = cls({(family, part): _numbers([amount], 1)[0] for family, part, amount in data["own"]})
        _texts([text for key in counters.own for text in key])
        counters._index = {endpoint: number for number, endpoint in enumerate(map(Endpoint, methods, routes))}
        if not len(methods) == len(routes) == len(counters._index):
            raise DamagedSnapshot("endpoints that do not add up")
        for name in _COLUMNS:
            column = data["columns"][name]
            if column is not None or name not in _OPTIONAL:
                counters._columns[name] = _numbers(column, len(methods), below_zero=name in _RETAINED)
        return counters


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a process knows at one moment."""

    service: Process
    process: Process
    taken: float
    """Seconds on the monotonic clock, which all processes of a machine share."""
    counters: Counters
    gauges: Mapping[str, bytes] = field(default_factory=dict)
    """Lines of the exposition format, by family."""
    folded: tuple[str, ...] = ()
    """In an archive: the tags of those that `counters` contain."""
    evidence: Mapping[Endpoint, Evidence] = field(default_factory=dict)
    """What the process found out about the endpoints that grow."""
    details: bytes = b""
    """What only the report wants to know, as JSON: it is not parsed for a scrape."""


def encode(snapshot: Snapshot) -> bytes:
    """Write it down."""
    header = {
        "format": _FORMAT,
        "service": snapshot.service,
        "process": snapshot.process,
        "taken": snapshot.taken,
        "folded": snapshot.folded,
        **snapshot.counters.as_data(),
        "evidence": [[*endpoint, *evidence] for endpoint, evidence in snapshot.evidence.items()],
        "details": len(snapshot.details),
        "gauges": {name: len(text) for name, text in snapshot.gauges.items()},
    }
    written = json.dumps(header, separators=(",", ":")).encode()
    body = b"".join((written, b"\n", snapshot.details, *snapshot.gauges.values()))
    return b"%08x %d\n" % (zlib.crc32(body), len(body)) + body


def decode(data: bytes) -> Snapshot:
    """Read it again. Raises `DamagedSnapshot`."""
    checksum, _, body = data.partition(b"\n")
    if checksum != b"%08x %d" % (zlib.crc32(body), len(body)):
        raise DamagedSnapshot(f"{len(data)} bytes that do not match their checksum")
    header, _, rest = body.partition(b"\n")
    try:
        found = json.loads(header)
        if found["format"] != _FORMAT:
            raise DamagedSnapshot(f"it has the format {str(found['format'])[:20]}, known is {_FORMAT}")
        return Snapshot(
            service=_process(found["service"]),
            process=_process(found["process"]),
            taken=_numbers([found["taken"]], 1)[0],
            counters=Counters.from_data(found),
            gauges=_gauges(found["gauges"], rest[_size(found["details"], rest) :]),
            folded=tuple(_texts(found["folded"])),
            evidence=dict(map(_evidence, found["evidence"])),
            details=rest[: found["details"]],
        )
    except DamagedSnapshot:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedSnapshot(f"{type(error).__name__}: {str(error)[:100]}") from error


def _size(length: Any, data: bytes) -> int:
    if type(length) is not int or not 0 <= length <= len(data):
        raise DamagedSnapshot(f"a length of {length!r:.20}")
    return length


def _evidence(found: Any) -> tuple[Endpoint, Evidence]:
    method, route, *numbers = found
    _texts([method, route])
    return Endpoint(method, route), Evidence(*_numbers(numbers, len(Evidence._fields), below_zero=True))


def _gauges(lengths: Mapping[str, Any], text: bytes) -> dict[str, bytes]:
    found, start = {}, 0
    for name, length in lengths.items():
        if type(length) is not int or length < 0:
            raise DamagedSnapshot(f"a length of {length!r:.20}")
        block = found[name] = text[start : start + length]
        start += length
        # A line that is another metric's, or none, would make the whole page unreadable to Prometheus.
        if not name.isidentifier() or (b"\n" + block).count(f"\n{name}{{".encode()) != block.count(b"\n"):
            raise DamagedSnapshot(f"lines that are not those of {name[:60]!r}")
        if not block.endswith(b"\n"):
            raise DamagedSnapshot(f"half a line of {name[:60]!r}")
    if start != len(text):
        raise DamagedSnapshot(f"{len(text)} bytes of gauges, where {start} were announced")
    return found


def _process(found: Any) -> Process:
    pid, started, home = found
    _texts([started, home])
    if type(pid) is not int or not 0 < pid < 1 << 32:
        raise DamagedSnapshot("a process that is none")
    return Process(pid, started, home)


def _texts(found: Any) -> list[str]:
    if type(found) is not list or not set(map(type, found)) <= {str} or max(map(len, found), default=0) > _MAX_TEXT:
        raise DamagedSnapshot("something else where names should be")
    return found


def _numbers(found: Any, count: int, *, below_zero: bool = False) -> list[Any]:
    if type(found) is not list or len(found) != count or not set(map(type, found)) <= {int, float}:
        raise DamagedSnapshot("something else where numbers should be")
    # json reads NaN, Infinity and 1e999; of a sum, one of them makes the same.
    if not math.isfinite(math.fsum(found)) or (not below_zero and min(found, default=0) < 0):
        raise DamagedSnapshot("numbers that cannot be")
    return found
