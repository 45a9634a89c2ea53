"""Write docs/settings.md and docs/metrics.md from the code: `python tools/make_reference.py [--check]`.

Settings come from the fields of `HeapSettings`, with what their docstrings say; metrics from `families.described`. What
is not in the code, how to read the pages, stands here.
"""

import argparse
import ast
import inspect
import sys
from dataclasses import Field, fields
from pathlib import Path

from heap_middleware import HeapSettings, settings
from heap_middleware.exposition.families import described

DOCS = Path(__file__).parent.parent / "docs"
MADE = "<!-- Written by tools/make_reference.py from the code: edit there. -->\n"

SETTINGS = """# Settings

Arguments of the middleware, or environment variables: `max_routes` is `HEAP_MIDDLEWARE_MAX_ROUTES`. An explicit
argument wins over the variable, and the variable over the default. `HeapSettings(...)` takes the same names for a
`HeapMonitor` of your own; `HeapSettings.from_environment()` reads the variables. A value that is not allowed is a
`SettingsError` when the application starts, which names the setting, the value and what is allowed; a variable that
names no setting is logged.
"""

METRICS = """# Metrics

`module` is a type, `package.module.Type`. `route` is the route's template as its framework writes it, mounts
included: never a raw path. What matched no route is `__unmatched__`, what came after the first `max_routes` is
`__other__`, and types beyond `top_types` are summed as `__other__`, so that sums stay true. The objects of a route
are CPython's memory blocks: an object, its dict and its item buffer are a block each, and strings and numbers are
counted too; `(buffer)` is a block of no object. `object_count` counts whole objects: all that can be reached with the
accelerator, those that the garbage collector tracks without.

With [several workers](deploying.md#several-workers) every gauge also has a label `pid` and is that of one living
worker, except {whole}; counters are sums over all workers, those that are gone included.

The first three names are those of the article that this package comes from. They break today's naming rules, and
`promtool check metrics` says so; queries that people wrote against them go on working.
"""

GROUPS = {
    "heap_census": "The census about itself",
    "heap_endpoint": "Routes",
    "heap_middleware": "The middleware about itself",
    "heap_tracker": "The accelerator's tracker, where it follows requests",
    "heap_worker": "Workers, with `workers_dir`",
    "": "The heap",
}
OF_ALL_WORKERS = ("heap_endpoint_leak_objects_per_request", "heap_worker_snapshot_age_seconds")
ONLY_ACCELERATOR = (
    "heap_endpoint_retained_bytes",
    "heap_endpoint_allocated_objects",
    "heap_endpoint_allocated_bytes",
    "heap_endpoint_retained_objects_by_type",
)


def settings_page() -> str:
    """Each setting, in the order of the code."""
    said = docstrings()
    parts = [SETTINGS.rstrip("\n")]
    for spec in fields(HeapSettings):
        kind = spec.metadata["kind"]
        parts.append(
            f"## `{spec.name}`\n\n{said[spec.name]}\n\n"
            f"- default: `{shown(spec)}`\n"
            f"- allowed: {kind.allowed}\n"
            f"- variable: `{settings._PREFIX}{spec.name.upper()}`"
        )
    return MADE + "\n\n".join(parts) + "\n"


def shown(spec: "Field[object]") -> str:
    """The default as it is written."""
    return '"' + spec.default + '"' if isinstance(spec.default, str) else repr(spec.default)


def docstrings() -> dict[str, str]:
    """What stands below each field, as one line."""
    (cls,) = ast.parse(inspect.getsource(HeapSettings)).body
    assert isinstance(cls, ast.ClassDef)
    found = {}
    for field, said in zip(cls.body, cls.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(said.value.value).split())
    return found


def metrics_page() -> str:
    """Each family, in groups."""
    rows: dict[str, list[str]] = {}
    for family in described(workers=True):
        group = next(title for start, title in GROUPS.items() if family.name.startswith(start))
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in family._labelnames)  # type: ignore[attr-defined]
        only = " With the accelerator only." if family.name in ONLY_ACCELERATOR else ""
        rows.setdefault(group, []).append(f"| `{name}` | {family.type} | {labels} | {family.documentation}{only} |")
    parts = [METRICS.format(whole=" and ".join(f"`{name}`" for name in OF_ALL_WORKERS)).rstrip("\n")]
    for group, lines in rows.items():
        parts.append(
            "\n".join([f"## {group}\n", "| name | type | labels | meaning |", "| --- | --- | --- | --- |", *lines])
        )
    return MADE + "\n\n".join(parts) + "\n"


PAGES = {"settings.md": settings_page, "metrics.md": metrics_page}


def main() -> int:
    """Write the pages, or say which are not what the code says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not what would be")
    check = parser.parse_args().check
    stale = []
    for name, page in PAGES.items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != page():
            stale.append(name)
            if not check:
                path.write_text(page(), encoding="utf-8")
    if check and stale:
        print(f"docs/{' and docs/'.join(stale)} are not what the code says: python tools/make_reference.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
