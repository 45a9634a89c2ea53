"""The one thread of a process that publishes what its monitors know: now and then, when others ask, and at exit.

It starts with the first pool that needs it, so never in a master that only preloads, and is a daemon: it keeps no
process from ending. A forked child starts one of its own.
"""

import atexit
import select
import sys
import threading
import time
import weakref
from typing import Final, Protocol

from heap_middleware.workers.bell import Bell

__all__ = ["Publishes", "add", "forget_in_child"]

_NAME: Final = "heap_middleware-publisher"


class Publishes(Protocol):
    """What the thread looks after; `WorkerPool` is one. None of its methods raises."""

    interval: float
    """Seconds between two publications that nobody asked for."""

    def bell(self) -> Bell | None:
        """Where others ask for news; None where that cannot be had now."""
        ...

    def publish(self, *, fresh: bool) -> object:
        """Write down what is known, after a new census if `fresh`."""
        ...

    def leave(self) -> None:
        """Say the last word: the process ends."""
        ...


class _Publisher:
    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self.due: weakref.WeakKeyDictionary[Publishes, float] = weakref.WeakKeyDictionary()
        """When each pool is to publish next, by the monotonic clock."""

    def add(self, pool: Publishes) -> None:
        with self._lock:
            self.due[pool] = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=_NAME, daemon=True)
                self._thread.start()
                return
        for other in list(self.due):
            if (bell := other.bell()) is not None:
                bell.ring()  # wakes the thread, which does not know of the new one

    def _run(self) -> None:
        while (seconds := self._publish()) is not None:
            self._sleep(seconds)

    def _publish(self) -> float | None:
        """Publish what is asked for or due; returns how long nothing else will be, None if nobody is left."""
        with self._lock:
            pools = self.due.keyrefs()
            if not pools:
                self._thread = None
                return None
        for reference in pools:
            pool = reference()  # held no longer than its turn takes
            if pool is None:
                continue
            bell = pool.bell()
            asked = bell is not None and bell.has_rung()
            if asked or time.monotonic() >= self.due.get(pool, 0.0):
                pool.publish(fresh=asked)
                self.due[pool] = time.monotonic() + pool.interval
            del pool
        return min(self.due.values(), default=0.0) - time.monotonic()

    def _sleep(self, seconds: float) -> None:
        # The bells are held while they are waited for, so that none is closed meanwhile; the pools are not.
        bells = [bell for pool in list(self.due) if (bell := pool.bell()) is not None]
        if not bells:
            time.sleep(max(0.0, seconds))
            return
        poll = select.poll()
        for bell in bells:
            poll.register(bell.reader, select.POLLIN)
        poll.poll(max(0.0, seconds) * 1000)


_publisher = _Publisher()
_at_exit = False


def add(pool: Publishes) -> None:
    """Look after a pool as long as it lives."""
    global _at_exit
    if not _at_exit:
        _at_exit = True
        atexit.register(_last_word)
        # Where children of `multiprocessing` are forked, they end without calling what `atexit` holds.
        multiprocessing = sys.modules.get("multiprocessing.util")
        if multiprocessing is not None:
            multiprocessing.Finalize(None, _last_word, exitpriority=0)
    _publisher.add(pool)


def forget_in_child() -> None:
    """A forked child looks after its own."""
    global _publisher, _at_exit
    for pool in list(_publisher.due):
        if (bell := pool.bell()) is not None:
            bell.close()
    _publisher, _at_exit = _Publisher(), False


def _last_word() -> None:
    for pool in list(_publisher.due):
        pool.leave()
