"""What only the report shows of a process, as JSON: its history and the lines that allocated what its routes retain.

A worker publishes it beside its figures for whichever worker shows the report; a scrape does not parse it. It is
bounded: the routes that retain most, their points thinned.
"""

import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from heap_middleware.endpoints.chronicle import TypeKey
from heap_middleware.endpoints.history import HistoryView, Series
from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.endpoints.sites import OTHER_SITE, Site

__all__ = ["ENDPOINTS", "POINTS", "Details", "decode_details", "encode_details", "largest", "merged_sites"]

ENDPOINTS: Final = 20
POINTS: Final = 60
_SITES: Final = 10


@dataclass(frozen=True, slots=True)
class Details:
    """What one process has to say to the report."""

    history: HistoryView[Endpoint] = field(default_factory=lambda: HistoryView([], {}))
    types: HistoryView[TypeKey] = field(default_factory=lambda: HistoryView([], {}))
    """What the largest routes retain of each type, at each census."""
    sites: Mapping[Endpoint, Sequence[Site]] = field(default_factory=dict)


def largest(totals: Mapping[Endpoint, EndpointTotals], most: int = ENDPOINTS) -> list[Endpoint]:
    """The endpoints that retain most objects."""
    return sorted(totals, key=lambda endpoint: -totals[endpoint].retained_objects)[:most]


def encode_details(details: Details) -> bytes:
    """Write it down."""
    data = {
        "history": _history_data(details.history),
        "types": _history_data(details.types),
        "sites": [[*endpoint, [list(site) for site in sites[:_SITES]]] for endpoint, sites in details.sites.items()],
    }
    return json.dumps(data, separators=(",", ":")).encode()


def decode_details(data: bytes) -> Details:
    """Read it again; empty if it is empty, or not what `encode_details` writes."""
    if not data:
        return Details()
    try:
        found = json.loads(data)
        history, types = _history(found["history"], Endpoint), _history(found["types"], lambda *key: key)
        sites = {
            Endpoint(str(m), str(r)): [Site(str(a), str(b), float(c), float(d)) for a, b, c, d in lines]
            for m, r, lines in found["sites"]
        }
    except (ValueError, TypeError, KeyError, RecursionError):
        return Details()
    return Details(history, types, sites)


def _history_data(history: HistoryView[Any]) -> dict[str, Any]:
    return {
        "times": [round(time, 2) for time in history.times],
        "series": [
            [list(key), *([round(value, 1) for value in column] for column in series.columns())]
            for key, series in history.series.items()
        ],
    }


def _history(found: Any, key_of: Callable[..., Any]) -> HistoryView[Any]:
    times = list(array("d", found["times"]))
    series = {
        key_of(*map(str, key)): Series(*(array("d", column) for column in rest)) for key, *rest in found["series"]
    }
    if any(len(column) > len(times) for one in series.values() for column in one.columns()):
        raise ValueError("more points than times")
    return HistoryView(times, series)


def merged_sites(all_sites: Iterable[Mapping[Endpoint, Sequence[Site]]]) -> dict[Endpoint, tuple[Site, ...]]:
    """The sums over processes, most objects first, the rest last."""
    sums: dict[Endpoint, dict[tuple[str, str], list[float]]] = {}
    for by_endpoint in all_sites:
        for endpoint, sites in by_endpoint.items():
            lines = sums.setdefault(endpoint, {})
            for site in sites:
                known = lines.setdefault((site.where, site.innermost), [0.0, 0.0])
                known[0] += site.objects
                known[1] += site.bytes
    return {
        endpoint: tuple(
            sorted(
                (Site(*key, *values) for key, values in lines.items()),
                key=lambda site: (site.where == OTHER_SITE, -site.objects),
            )
        )
        for endpoint, lines in sums.items()
    }
