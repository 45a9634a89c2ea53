"""A comparison as a person reads it: tables for the terminal."""

from typing import Final

from rich.console import Group, RenderableType
from rich.filesize import decimal as _unsigned
from rich.table import Table
from rich.text import Text

from heap_middleware.cli.comparison import Comparison, RouteRow, TypeRow
from heap_middleware.heap.accelerated import BUFFER

__all__ = ["SORT_KEYS", "live_screen", "printed"]

SORT_KEYS: Final = {"l": "leak", "r": "retained", "b": "bytes", "n": "requests"}
"""What a key sorts by."""

_NAMED_WORKERS: Final = 4
_NAMED_TYPES: Final = 2
_FRAME: Final = 9
"""Lines of the live screen that are no rows: headings, rules, the keys."""
_DOTS: Final = "…"
_BETWEEN: Final = "  ·  "
_KEYS: Final = "sort by [b]l[/]eak [b]r[/]etained [b]b[/]ytes [b]n[/]umber of requests   [b]m[/]ark now   [b]q[/]uit"


def printed(found: Comparison, limit: int) -> RenderableType:
    """All of it, for a terminal or a file."""
    return Group(
        _heading(found, ""),
        "",
        _routes(found, limit),
        "",
        _types(found.types, limit, since_mark=found.seconds > 0),
    )


def live_screen(found: Comparison, *, address: str, sort: str, height: int, trouble: str = "") -> RenderableType:
    """As much of it as fits `height` lines. `trouble` says why it is old."""
    rows = max(2, height - _FRAME - bool(trouble))
    routes = max(1, min(len(found.routes) or 1, rows * 3 // 5))
    chosen = next(key for key, by in SORT_KEYS.items() if by == sort)
    state = Text.from_markup(_KEYS.replace(f"[b]{chosen}[/]", f"[b reverse]{chosen}[/]"), style="dim")
    return Group(
        _heading(found, address),
        *([Text(trouble, style="bold red", no_wrap=True, overflow="ellipsis")] if trouble else []),
        "",
        _routes(found, routes),
        "",
        _types(found.types, max(1, rows - routes), since_mark=found.seconds > 0),
        "",
        state,
    )


def _heading(found: Comparison, address: str) -> Text:
    interval = max((worker.interval or 0 for worker in found.workers.values()), default=0)
    what = [
        *([address] if address else []),
        f"backend {found.info.get('backend', '?')}",
        f"census {found.info.get('census', '?')}",
        *([f"one allocation in {interval:.0f} recorded"] if interval > 1 else []),
        *([f"compared with {found.seconds:.0f} s ago"] if found.seconds else []),
    ]
    text = Text(_BETWEEN.join(what), style="dim", no_wrap=True, overflow="ellipsis")
    text.append("\n" + _BETWEEN.join([_workers(found), _own_time(found)]))
    if found.faults:
        text.append(f"{_BETWEEN}{found.faults:.0f} faults, see the service's log", style="bold red")
    return text


def _own_time(found: Comparison) -> str:
    parts = [f"{part} {share:.1%}" for part, share in sorted(found.overhead_share.items(), key=lambda row: -row[1])]
    if parts:
        return f"own time {sum(found.overhead_share.values()):.1%} of a core ({', '.join(parts)})"
    return f"own time {sum(found.overhead.values()):.1f} s"


def _workers(found: Comparison) -> str:
    named = {pid: worker for pid, worker in found.workers.items() if pid}
    heap = _size(sum(worker.bytes for worker in found.workers.values()))
    if not named:
        return f"heap {heap}"
    each = [
        f"{pid} {_size(worker.bytes)}" + (f" {worker.age:.0f} s old" if (worker.age or 0) >= 1 else "")
        for pid, worker in sorted(named.items())[:_NAMED_WORKERS]
    ]
    more = f", {_DOTS}" if len(named) > _NAMED_WORKERS else ""
    return f"{len(named)} workers, heap {heap} ({', '.join(each)}{more})"


def _routes(found: Comparison, limit: int) -> RenderableType:
    if not found.routes:
        return Text(
            "No route yet: none was asked for."
            if found.info.get("backend") != "none"
            else "No routes: the service measures no requests. Set attribution=True (HEAP_MIDDLEWARE_ATTRIBUTION=1).",
            style="yellow",
        )
    knows_bytes = any(row.retained_bytes is not None for row in found.routes)
    knows_types = any(row.types for row in found.routes)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", expand=True)
    table.add_column("route", ratio=3, overflow="ellipsis", no_wrap=True, min_width=16)
    for title in ("leaks/req", "kept/req", "retained", *(["bytes"] if knows_bytes else []), "requests", "req/s"):
        table.add_column(title, justify="right", no_wrap=True)
    if knows_types:
        table.add_column("mostly", ratio=2, overflow="ellipsis", no_wrap=True)
    for row in found.routes[:limit]:
        table.add_row(*_route_cells(row, knows_bytes, knows_types), style="bold red" if _leaks(row) else None)
    if len(found.routes) > limit:
        table.add_row(f"{_DOTS} {len(found.routes) - limit} more", style="dim")
    return table


def _leaks(row: RouteRow) -> bool:
    return row.leak_objects_per_request is not None


def _route_cells(row: RouteRow, knows_bytes: bool, knows_types: bool) -> list[Text]:
    def number(value: float | None, form: str = ",.2f") -> str:
        return "" if value is None else format(value, form)

    cells = [
        f"{row.method} {row.route}",
        number(row.leak_objects_per_request),
        number(row.objects_per_request),
        number(row.retained_objects, ",.0f"),
    ]
    if knows_bytes:
        cells.append("" if row.retained_bytes is None else _size(row.retained_bytes))
    cells += [number(row.requests, ",.0f"), number(row.requests_per_second, ",.1f")]
    if knows_types:
        # A buffer belongs to one of the objects: those say more.
        types = sorted(row.types.items(), key=lambda type_: (type_[0] == BUFFER, -type_[1]))
        largest = [(module, objects) for module, objects in types if objects >= 1][:_NAMED_TYPES]
        cells.append(", ".join(f"{module} × {objects:,.0f}" for module, objects in largest))
    return [Text(_plain(cell)) for cell in cells]


def _types(rows: list[TypeRow], limit: int, *, since_mark: bool) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", expand=True)
    table.add_column("type", ratio=1, overflow="ellipsis", no_wrap=True, min_width=16)
    for title in ("grown by", "bytes", "objects", "bytes in all") if since_mark else ("objects", "bytes in all"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows[:limit]:
        grown = [f"{row.objects_grown:+,.0f}", _size(row.bytes_grown, signed=True)] if since_mark else []
        cells = [row.module, *grown, f"{row.objects:,.0f}", _size(row.bytes)]
        table.add_row(*(Text(_plain(cell)) for cell in cells))
    return table


def _size(number: float, *, signed: bool = False) -> str:
    sign = "-" if number < 0 else "+" if signed else ""
    return sign + _unsigned(int(abs(number)))


def _plain(text: str) -> str:
    """Without what would steer the terminal: names come from the service."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
