"""What a search for holders takes, and how long the application stands still for it.

    python benchmarks/holders_cost.py [--objects 1000000] [--targets 100000]

A heap of a million tracked objects, in which a hundred thousand of a type are held by lists in dicts of instances.
Beside it a bare fork of the same process that ends at once, and one `gc.get_referrers` for one of the objects: which
the usual tools ask for each. Then a Flask route is served, in turn with and without searches in another thread: what
its slowest hundredth of requests takes, the forks included.
"""

import argparse
import gc
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from request_cost import flask_app, wsgi_batch
from rich.console import Console

from heap_middleware.heap.held import Question
from heap_middleware.heap.holders import HolderTree, find_holders

ROUNDS = 7
TURN = 2.0
"""Seconds of requests in turn with and without searches."""


class Target:
    """What is looked for."""


class Shelf:
    def __init__(self, content: list[Target]) -> None:
        self.by_name = {"content": content}


def filled(objects: int, targets: int) -> tuple[list[Shelf], list[list[object]]]:
    shelves = [Shelf([Target() for _ in range(100)]) for _ in range(targets // 100)]
    return shelves, [[] for _ in range(objects - targets - 4 * len(shelves))]


def timed(work: object) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


def bare_fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


@contextmanager
def searching(question: Question) -> Iterator[list[HolderTree]]:
    """Search over and over in another thread; what was found."""
    found: list[HolderTree] = []
    enough = threading.Event()

    def search() -> None:
        while not enough.is_set():
            found.append(find_holders(question))

    thread = threading.Thread(target=search)
    thread.start()
    try:
        yield found
    finally:
        enough.set()
        thread.join()


def slowest(share: float, seconds: float) -> float:
    """Serve requests that long; the quantile of what they took."""
    serve = wsgi_batch(flask_app())
    end, took = time.perf_counter() + seconds, []
    while time.perf_counter() < end:
        took.append(serve(1))
    return sorted(took)[round(len(took) * share)]


def latencies(question: Question) -> tuple[list[float], list[float], int]:
    """The 99th percentile of requests without and with searches, of each turn; and how many searches there were."""
    quiet, busy, searches = [], [], 0
    for _ in range(ROUNDS):
        quiet.append(slowest(0.99, TURN))
        with searching(question) as found:
            busy.append(slowest(0.99, TURN))
        searches += len(found)
    return quiet, busy, searches


def main() -> None:
    parser = argparse.ArgumentParser(description="What a search for holders takes.")
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--targets", type=int, default=100_000)
    arguments = parser.parse_args()
    shelves, rest = filled(arguments.objects, arguments.targets)
    gc.collect()
    question = Question("__main__.Target", max_depth=5, max_items=1 << 30)
    forks, trees, inline = [], [], []
    for _ in range(ROUNDS):
        forks.append(timed(bare_fork))
        trees.append(find_holders(question))
        inline.append(find_holders(question, fork=False))
    console = Console(width=110)
    console.print(f"{len(gc.get_objects()):,} tracked objects, {trees[0].root.objects:,} targets, depth 5")
    report(console, forks, trees, inline)
    one = timed(lambda: gc.get_referrers(shelves[0].by_name["content"][0]))
    console.print(
        f"gc.get_referrers of one target: {one * 1000:.0f} ms, of all of them {one * arguments.targets:.0f} s"
    )
    console.print("\n".join(trees[0].paths(3)))
    quiet, busy, searches = latencies(question)
    console.print(
        f"a request, p99: {statistics.median(quiet) * 1000:.2f} ms; while {searches} searches ran "
        f"{statistics.median(busy) * 1000:.2f} ms: "
        f"{statistics.median(more / less for more, less in zip(busy, quiet, strict=True)):.1f} times"
    )
    assert len(rest) > 0


def report(console: Console, forks: list[float], trees: list[HolderTree], inline: list[HolderTree]) -> None:
    fork = statistics.median(forks)
    pause = statistics.median(tree.pause for tree in trees)
    console.print(f"in a child: {statistics.median(tree.seconds for tree in trees):.2f} s")
    console.print(f"inline: {statistics.median(tree.seconds for tree in inline):.2f} s")
    console.print(
        f"application stands still {pause * 1000:.1f} ms; a bare fork and waitpid {fork * 1000:.1f} ms: "
        f"{pause / fork:.2f} times"
    )


if __name__ == "__main__":
    main()
