"""A search for holders that reports how far it is, line by line, and ends when nobody listens any more.

One request from beginning to end, so that it stays in one worker: each line is a JSON object with `progress`, the last
one has `tree` or `error`. Whoever leaves closes the iterator, and that cancels the search.
"""

import json
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from heap_middleware.errors import HeapMiddlewareError
from heap_middleware.exposition.report.data import holders
from heap_middleware.heap.held import Cancelled, Progress
from heap_middleware.heap.holders import HolderTree

__all__ = ["Searches"]

_BEAT: Final = 0.2
"""Seconds between two lines: whoever leaves is noticed when the next one is sent."""

Ask = Callable[[Progress, Cancelled], HolderTree]


class Searches:
    """One at a time in this process: each walks the whole heap."""

    def __init__(self, fault: Callable[[], None]) -> None:
        self._running = threading.Lock()
        self._fault = fault

    def start(self, ask: Ask) -> Iterator[bytes] | None:
        """The lines of a search; None if one is under way."""
        if not self._running.acquire(blocking=False):
            return None
        return _Lines(ask, self._running.release, self._fault)


class _Lines:
    """The lines of a search, which begins with the first of them. It has ended when `ended` is called."""

    def __init__(self, ask: Ask, ended: Callable[[], None], fault: Callable[[], None]) -> None:
        self._ask = ask
        self._ended = ended
        self._fault = fault
        self._lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._left = threading.Event()
        self._started = self._done = False
        self._told = {"level": 0, "items": 0}

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._done or self._left.is_set():
            raise StopIteration
        if not self._started:
            # Without a reference to this: whoever drops it has left, though the search goes on.
            work = self._ask, self._lines.put, self._left.is_set, self._ended, self._fault
            threading.Thread(target=_search, args=work, name="heap_middleware-search", daemon=True).start()
            self._started = True
        try:
            line = self._lines.get(timeout=_BEAT)
        except queue.Empty:
            line = {"progress": self._told}
        self._told = line.get("progress", self._told)
        self._done = "progress" not in line
        return json.dumps(line).encode() + b"\n"

    def close(self) -> None:
        """Cancel it, if it has not ended."""
        if not self._left.is_set():
            self._left.set()
            if not self._started:
                self._ended()

    __del__ = close


def _search(
    ask: Ask,
    put: Callable[[dict[str, Any]], None],
    left: Cancelled,
    ended: Callable[[], None],
    fault: Callable[[], None],
) -> None:
    line: dict[str, Any]
    try:
        line = {"tree": holders(ask(lambda level, items: put({"progress": {"level": level, "items": items}}), left))}
    except HeapMiddlewareError as error:
        line = {"error": str(error)}
    except Exception:
        fault()
        line = {"error": "the search failed, see the log"}
    ended()
    put(line)
