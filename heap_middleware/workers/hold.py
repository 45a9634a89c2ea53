"""A file that a process holds as long as it lives: whoever finds it held, from wherever, knows that somebody lives.

It is a shared lock. A process that dies gives it up, however it dies, and a machine that is started anew has none: so
it tells of processes that cannot be looked at, those of another container or of another user. Where there are no such
locks (Windows), nothing is ever held.
"""

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

if sys.platform != "win32":  # pragma: no branch - Windows
    import fcntl

__all__ = ["Hold", "is_held"]

_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
_LONG: Final = 0.1
"""Seconds; what is done under the lock takes some microseconds."""


class Hold:
    """What one process holds. A forked child closes it, which leaves it to the parent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._changing = threading.Lock()

    def take(self) -> None:
        """Hold the file that is there now, if any. Raises OSError."""
        if not _locks_are_there or not self._changing.acquire(blocking=False):  # another thread is at it
            return
        try:
            if not self._is_the_file():
                self._close()
                self._open()
        finally:
            self._changing.release()

    def close(self) -> None:
        """Hold it no longer."""
        if not self._changing.acquire(timeout=_LONG):
            return  # in a forked child, a thread that is none may have it
        try:
            self._close()
        finally:
            self._changing.release()

    def _open(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDWR | _NO_LINK)
        except FileNotFoundError:  # it is made anew before the next time
            return
        self._descriptor, self._found = descriptor, os.fstat(descriptor)
        if not _lock(descriptor, alone=False):  # somebody asks just now; the next time then
            self._close()

    def _close(self) -> None:
        if self._is_ours():
            os.close(self._descriptor)
        self._descriptor = -1

    def _is_the_file(self) -> bool:
        try:
            return self._is_ours() and os.path.samestat(self._path.lstat(), self._found)
        except FileNotFoundError:
            return False

    def _is_ours(self) -> bool:
        """Whether the descriptor is still ours: some applications close all they find, as daemons do."""
        try:
            return self._descriptor >= 0 and os.path.samestat(os.fstat(self._descriptor), self._found)
        except OSError:
            return False

    def __del__(self) -> None:
        self._close()


def is_held(path: Path) -> bool:
    """Whether somebody holds it. Raises OSError."""
    if not _locks_are_there:  # pragma: no cover - Windows
        return False
    try:
        descriptor = os.open(path, os.O_RDWR | _NO_LINK)
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor, alone=True)
    finally:
        os.close(descriptor)


_locks_are_there: Final = sys.platform != "win32"


def _lock(descriptor: int, *, alone: bool) -> bool:
    if sys.platform != "win32":  # pragma: no branch - Windows
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return True
    return False
