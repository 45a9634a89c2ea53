"""Files that several processes read and write: whole or not at all, for their owner only, and no links."""

import errno
import os
import stat
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["UnusableFile", "locked", "read_whole", "remove", "write_whole"]

_MAX_BYTES: Final = 64 << 20
"""What no worker writes: 500 routes and 200 types are 200 KB, 5 MB with ten types of each route."""
_POLL: Final = 0.005
_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT: Final = getattr(os, "O_NONBLOCK", 0)  # opening a pipe without a writer would wait for one


class UnusableFile(ValueError):
    """A file that is not ours to read; the message says why."""


def write_whole(path: Path, data: bytes, scratch: Path, modified: float | None = None) -> None:
    """Write a file so that nobody sees half of it: under the name `scratch`, then renamed. Raises OSError.

    `modified`, in seconds since the epoch, is the time that the file shows as that of its last change.
    """
    if len(data) > _MAX_BYTES:
        raise OSError(errno.EFBIG, f"{len(data)} bytes are more than others would read, {_MAX_BYTES}")
    remove(scratch)  # of one that was killed while it wrote
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            while data:
                data = data[file.write(data) :]
        if modified is not None:
            os.utime(scratch, (modified, modified))
        os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            remove(scratch)
        raise


def read_whole(path: Path, users: Collection[int] | None = None) -> bytes | None:
    """The content; None if there is no such file. Raises `UnusableFile`, if not one of `users` owns it, and OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_LINK | _NO_WAIT)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnusableFile("it is a link") from error
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UnusableFile("it is no regular file")
        if users is not None and found.st_uid not in users:
            raise UnusableFile(f"it belongs to the user {found.st_uid}")
        if found.st_size > _MAX_BYTES:
            raise UnusableFile(f"it has {found.st_size} bytes, more than {_MAX_BYTES}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(found.st_size)  # a limit would make a buffer of its size
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file that may be gone already. Raises OSError."""
    path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, wait: float = 0.0) -> Iterator[bool]:
    """Hold the lock of a directory, and say whether it is held: not if others hold it for `wait` seconds.

    A process that dies gives it up. Raises OSError.
    """
    deadline = time.monotonic() + wait
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o600)
    try:
        while not (held := _lock(descriptor)) and time.monotonic() < deadline:
            time.sleep(_POLL)
        try:
            yield held
        finally:
            if held:  # a child that was forked meanwhile has the descriptor as well, and closing alone would not do
                _unlock(descriptor)
    finally:
        os.close(descriptor)


if sys.platform == "win32":

    def _lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
