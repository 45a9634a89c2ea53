"""What a census and a dendrogram cost, beside one `gc.get_objects()` and beside a search for each object's referrers.

With the accelerator: its walk, and how long the application stands still while a forked child walks.

    pip install -e . --group bench
    python benchmarks/census_cost.py [--quick]

The two heap sizes are lists kept alive on top of this script's own objects. What is compared runs in turn, and the
table shows medians of this one run.
"""

import argparse
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from heap_middleware import accelerator
from heap_middleware.heap.accelerated import AcceleratedCensus
from heap_middleware.heap.census import take_census
from heap_middleware.heap.dendrogram import HeapDendrogram

CENSUS_OBJECTS = (300_000, 2_000_000)
REACHABLE_UP_TO = 300_000
REACHABLE = (500_000, 8)
"""Lists, and the fresh strings in each."""
DENDROGRAM_OBJECTS = (3_000, 20_000, 300_000)
QUADRATIC_UP_TO = 20_000


class Held:
    """An object with a name, so that the dendrogram shows it; each holds the one before."""

    __slots__ = ("__weakref__", "before")

    def __init__(self, before: "Held | None") -> None:
        self.before = before


def held(count: int) -> list[Held]:
    made: list[Held] = []
    for at in range(count):
        # Chains of three: an object, its holder, and the holder's holder.
        made.append(Held(made[-1] if at % 3 else None))
    return made


def quadratic_dendrogram(objects: list[Any]) -> int:
    """Ask `gc.get_referrers` about every object: each question looks through the whole heap. Counts the holders."""
    known = set(map(id, objects))
    holders = 0
    for item in objects:
        holders += sum(1 for referrer in gc.get_referrers(item) if referrer is not objects and id(referrer) in known)
    return holders


def list_objects() -> None:
    gc.get_objects()


def medians(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of each variant, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            began = time.perf_counter()
            variant()
            times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(figures) for name, figures in times.items()}


def census_rows(count: int, rounds: int, reachable: bool) -> dict[str, float]:
    keep: list[list[Any]] = [[] for _ in range(count)]
    variants: dict[str, Callable[[], Any]] = {
        "gc.get_objects()": list_objects,
        'take_census("tracked")': partial(take_census, "tracked"),
    }
    if reachable:
        variants['take_census("reachable")'] = partial(take_census, "reachable")
    found = medians(variants, rounds)
    del keep
    return found


def bare_fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def accelerated_rows(keep: list[Any], rounds: int) -> dict[str, float]:
    """The walk inline and in a child, tracked and reachable; of the child also the application's pause alone."""
    inline, forked = AcceleratedCensus("inline"), AcceleratedCensus("fork")
    pauses: list[float] = []
    variants: dict[str, Callable[[], Any]] = {
        "len(gc.get_objects())": lambda: len(gc.get_objects()),
        "fork() and waitpid()": bare_fork,
        "walk, tracked": partial(inline.take, "tracked"),
        "walk, reachable": partial(inline.take, "reachable"),
        "walk in a child, reachable": lambda: pauses.append(forked.take("reachable").pause * 1e3),
    }
    found = medians(variants, rounds)
    assert len(keep) > 0
    census = inline.take("reachable")
    found["pause of that"] = statistics.median(pauses)
    found["walk, ns an object reached"] = found["walk, reachable"] * 1e6 / census.objects
    return found


def dendrogram_rows(count: int, rounds: int, quadratic: bool) -> dict[str, float]:
    keep = held(count)
    dendrogram = HeapDendrogram(max_items=count + 100_000)
    variants: dict[str, Callable[[], Any]] = {"HeapDendrogram().generate()": dendrogram.generate}
    if quadratic:
        variants["gc.get_referrers(), each object"] = partial(quadratic_dendrogram, keep)
    found = medians(variants, rounds)
    assert dendrogram.total_objects() >= count, dendrogram.total_objects()
    del keep
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What a census and a dendrogram cost.")
    parser.add_argument("--quick", action="store_true", help="one round for each figure")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else 7
    table = Table(title=f"Census and dendrogram, Python {platform.python_version()}")
    table.add_column("objects", justify="right")
    table.add_column("what", no_wrap=True)
    table.add_column("ms", justify="right")
    table.add_column("ratio to the first", justify="right")
    for count in CENSUS_OBJECTS:
        add_rows(table, count, census_rows(count, rounds, reachable=count <= REACHABLE_UP_TO))
    if accelerator.missing is None:
        lists, strings = REACHABLE
        add_rows(table, CENSUS_OBJECTS[-1], accelerated_rows([[] for _ in range(CENSUS_OBJECTS[-1])], rounds))
        nested = [[str((at, n)) for n in range(strings)] for at in range(lists)]
        add_rows(table, lists * (strings + 1), accelerated_rows(nested, rounds))
        del nested
    for count in DENDROGRAM_OBJECTS:
        quadratic = count <= QUADRATIC_UP_TO  # a minute a round at 20,000
        few = 1 if count == QUADRATIC_UP_TO else 3
        add_rows(table, count, dendrogram_rows(count, min(rounds, few) if quadratic else rounds, quadratic))
    Console().print(table)


def add_rows(table: Table, count: int, found: dict[str, float]) -> None:
    first = next(iter(found.values()))
    for name, milliseconds in found.items():
        table.add_row(f"{count:,}", name, f"{milliseconds:,.1f}", f"{milliseconds / first:,.1f}")
    table.add_section()


if __name__ == "__main__":
    main()
