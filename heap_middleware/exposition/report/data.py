"""What the report shows, as data for JSON. docs/report-api.md describes it, and a test holds the two together.

Only names of types, routes, workers, globals, files and lines are in it, and numbers: never a value of the application.
"""

import gc
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from heap_middleware.endpoints.chronicle import TypeKey
from heap_middleware.endpoints.history import HistoryView, Series
from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.endpoints.suspects import Suspect
from heap_middleware.exposition.collector import HeapCollector
from heap_middleware.exposition.families import OwnFigures
from heap_middleware.heap.census import Census
from heap_middleware.heap.held import Cancelled, Progress
from heap_middleware.heap.holders import Holder, HolderTree

__all__ = ["VERSION", "Source", "heap", "holders", "overview", "report", "route"]

VERSION: Final = 1
_SPARK: Final = 60
"""Points of a sparkline."""


class Source(Protocol):
    """Where the figures come from; `HeapMonitor` is one."""

    def census(self) -> Census: ...

    def endpoints(self) -> Mapping[Endpoint, EndpointTotals]: ...

    def suspects(self) -> Sequence[Suspect]: ...

    def history(self) -> HistoryView[Endpoint]: ...

    def types_history(self) -> HistoryView[TypeKey]: ...

    def retained_by_type(self) -> Mapping[Endpoint, Mapping[str, float]]: ...

    def own_figures(self) -> OwnFigures: ...

    def collector(self) -> HeapCollector: ...

    def holders(
        self,
        module: str | None = None,
        *,
        endpoint: tuple[str, str] | None = None,
        max_depth: int = 8,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> HolderTree: ...


def overview(source: Source) -> dict[str, Any]:
    """Suspects and routes, workers, and the middleware itself."""
    suspects = {suspect.endpoint: suspect for suspect in source.suspects()}
    history = source.history()
    rows = [_route_row(*item, suspects.get(item[0]), history) for item in source.endpoints().items()]
    rows.sort(key=lambda row: (row["verdict"] is None, -row["objects_per_request"], -row["retained_objects"]))
    return {"version": VERSION, "time": time.time(), **_about(source), "routes": rows}


def _route_row(
    endpoint: Endpoint, totals: EndpointTotals, suspect: Suspect | None, history: HistoryView[Endpoint]
) -> dict[str, Any]:
    return {
        "method": endpoint.method,
        "route": endpoint.route,
        "requests": totals.requests,
        "measured_requests": totals.measured,
        "retained_objects": totals.retained_objects,
        "retained_bytes": totals.retained_bytes,
        "objects_per_request": suspect.objects_per_request if suspect is not None else totals.objects_per_request,
        "bytes_per_request": _bytes_per_request(totals, suspect),
        "verdict": None if suspect is None else _verdict(suspect),
        "spark": _spark(history.series.get(endpoint)),
    }


def _bytes_per_request(totals: EndpointTotals, suspect: Suspect | None) -> float | None:
    if suspect is not None:
        return suspect.bytes_per_request
    return totals.retained_bytes / totals.requests if totals.retained_bytes is not None and totals.requests else None


def _verdict(suspect: Suspect) -> dict[str, Any]:
    return {
        "words": str(suspect),
        "lower": suspect.lower,
        "upper": suspect.upper,
        "confidence": suspect.confidence,
        "bytes_per_day": suspect.bytes_per_day,
        "requests": suspect.requests,
        "since": suspect.since,
        "types": [{"module": module, "objects": objects} for module, objects in suspect.types],
    }


def _spark(series: Series | None) -> list[float]:
    if series is None:
        return []
    step = max(1, -(-len(series.objects) // _SPARK))
    return list(series.objects[(len(series.objects) - 1) % step :: step])


def _about(source: Source) -> dict[str, Any]:
    own = source.own_figures()
    return {
        "pid": os.getpid(),
        "about": {
            "version": own.version,
            "backend": own.backend,
            "census": own.census,
            "overhead_seconds": dict(own.overhead),
            "faults": dict(own.faults),
            "tracker": None if own.tracker is None else {"records": own.tracker[0], "interval": own.tracker[1]},
        },
        "gc": {"counts": list(gc.get_count()), "thresholds": list(gc.get_threshold()), "frozen": gc.get_freeze_count()},
        "workers": _workers(source),
    }


def _workers(source: Source) -> list[dict[str, Any]]:
    joined = source.collector().joined()
    if joined is None:
        return [{"pid": os.getpid(), "age_seconds": 0.0}]
    return [{"pid": pid, "age_seconds": age} for pid, age in joined.ages()]


def route(source: Source, endpoint: Endpoint) -> dict[str, Any] | None:
    """One route in full; None if there is none of that name."""
    totals = source.endpoints().get(endpoint)
    if totals is None:
        return None
    suspects = {suspect.endpoint: suspect for suspect in source.suspects()}
    history = source.history()
    types = source.retained_by_type().get(endpoint, {})
    return {
        "version": VERSION,
        **_route_row(endpoint, totals, suspects.get(endpoint), history),
        "allocated_objects": totals.allocated_objects,
        "allocated_bytes": totals.allocated_bytes,
        "types": [{"module": name, "objects": objects} for name, objects in _by_size(types.items())],
        "sites": [site._asdict() for site in totals.sites],
        "history": _points(history.times, history.series.get(endpoint)),
        "types_history": _types_history(source.types_history(), endpoint),
    }


def _by_size(rows: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(rows, key=lambda row: -row[1])


def _points(times: Sequence[float], series: Series | None) -> dict[str, list[float]]:
    if series is None:
        return {"times": [], "requests": [], "objects": [], "bytes": []}
    return {
        "times": list(times[len(times) - len(series.objects) :]),
        "requests": list(series.requests),
        "objects": list(series.objects),
        "bytes": list(series.bytes),
    }


def _types_history(history: HistoryView[TypeKey], endpoint: Endpoint) -> dict[str, Any]:
    length = len(history.times)
    found = {
        module: [0.0] * (length - len(series.objects)) + list(series.objects)
        for (method, template, module), series in history.series.items()
        if (method, template) == endpoint
    }
    return {"times": list(history.times), "types": found}


def heap(source: Source) -> dict[str, Any]:
    """The heap by type; with several workers, of all of them."""
    joined = source.collector().joined()
    if joined is not None:
        types, own = joined.types(), None
    else:
        own = source.census()
        types = {row.module: (row.objects, row.bytes) for row in own.rows}
    rows = [
        {"module": module, "objects": objects, "bytes": size}
        for module, (objects, size) in sorted(types.items(), key=lambda item: -item[1][1])
    ]
    return {
        "version": VERSION,
        "time": time.time(),
        "objects": sum(row["objects"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "census": None if own is None else {"seconds": own.duration, "pause": own.pause, "walked": own.walked},
        "types": rows,
    }


def holders(tree: HolderTree) -> dict[str, Any]:
    """A tree of holders."""
    return {
        "version": VERSION,
        "pid": tree.pid,
        "cut": tree.cut,
        "levels": tree.levels,
        "seconds": tree.seconds,
        "pause": tree.pause,
        "paths": tree.paths(),
        "root": _node(tree.root),
    }


def _node(holder: Holder) -> dict[str, Any]:
    return {
        "name": holder.name,
        "objects": holder.objects,
        "held": holder.held,
        "bytes": holder.bytes,
        "cut": holder.cut,
        "holders": [_node(above) for above in holder.holders],
    }


def report(source: Source) -> dict[str, Any]:
    """Everything, to keep or to send."""
    shown = overview(source)
    routes = [route(source, Endpoint(row["method"], row["route"])) for row in shown["routes"][:_SPARK]]
    return {**shown, "routes": [found for found in routes if found is not None], "heap": heap(source)}
