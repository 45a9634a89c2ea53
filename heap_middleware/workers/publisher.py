"""The one thread of a process that publishes what its monitors know: now and then, when others ask, and at exit.

It starts with the first pool that needs it, so never in a master that only preloads, and is a daemon: it keeps no
process from ending. A forked child starts one of its own.
"""

import atexit
import logging
import select
import sys
import threading
import time
import weakref
from typing import Final, Protocol

from heap_middleware.workers.bell import Bell

__all__ = ["Publishes", "add", "forget_in_child"]

_log = logging.getLogger("heap_middleware")
_NAME: Final = "heap_middleware-publisher"
_LOOK: Final = 1.0
"""Seconds after which the thread looks for pools and pipes that are new; what that costs is some ten microseconds."""


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

    def forget(self) -> None:
        """Close what a forked child has of its parent's."""
        ...


class _Publisher:
    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._due: weakref.WeakKeyDictionary[Publishes, float] = weakref.WeakKeyDictionary()
        """When each pool is to publish next, by the monotonic clock."""

    def pools(self) -> list["weakref.ref[Publishes]"]:
        """Those that are looked after, held by nobody meanwhile."""
        with self._lock:
            return self._due.keyrefs()

    def pools_of_parent(self) -> list["weakref.ref[Publishes]"]:
        """The same in a forked child, where nobody else runs, and a thread that is none may hold the lock."""
        return self._due.keyrefs()

    def add(self, pool: Publishes) -> None:
        with self._lock:
            if pool not in self._due:
                self._due[pool] = time.monotonic()
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name=_NAME, daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        going_on = True
        while going_on:
            try:
                going_on = self._publish()
                self._sleep()
            except Exception:  # of no pool: they raise nothing. Memory ran out, or descriptors were closed under it
                _log.exception("heap_middleware's publisher failed; it goes on")
                time.sleep(_LOOK)

    def _publish(self) -> bool:
        """Publish what is asked for or due; False once nobody is left."""
        with self._lock:
            pools = self._due.keyrefs()
            if not pools:
                self._thread = None
                return False
        for reference in pools:
            pool = reference()  # held no longer than its turn takes
            if pool is None:
                continue
            bell = pool.bell()
            asked = bell is not None and bell.has_rung()
            if asked or time.monotonic() >= self._due.get(pool, 0.0):
                pool.publish(fresh=asked)
                with self._lock:
                    if pool in self._due:  # or it was let go meanwhile
                        self._due[pool] = time.monotonic() + pool.interval
            del pool
        return True

    def _sleep(self) -> None:
        with self._lock:
            seconds = min(self._due.values(), default=0.0) - time.monotonic()
        seconds = min(max(seconds, 0.0), _LOOK)
        # The bells are held while they are waited for, so that none is closed meanwhile; the pools are not.
        bells = self._bells()
        if not bells or not hasattr(select, "poll"):  # eventlet takes it away
            time.sleep(seconds)
            return
        poll = select.poll()
        for bell in bells:
            poll.register(bell.reader, select.POLLIN)
        poll.poll(seconds * 1000)

    def _bells(self) -> list[Bell]:
        found = [pool.bell() for reference in self.pools() if (pool := reference()) is not None]
        return [bell for bell in found if bell is not None and bell.is_there()]


_publisher = _Publisher()
_at_exit = False


def add(pool: Publishes) -> None:
    """Look after a pool as long as it lives. May be called again. Raises RuntimeError if no thread can be started."""
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
    for reference in _publisher.pools_of_parent():
        if (pool := reference()) is not None:
            pool.forget()
    _publisher, _at_exit = _Publisher(), False


def _last_word() -> None:
    for reference in _publisher.pools():
        if (pool := reference()) is not None:
            pool.leave()
