"""How one worker asks another for news: a named pipe in the directory, into which a byte is written.

Asking costs three system calls and never waits; who is asked wakes up at once. Where there are no named pipes
(Windows), nobody is asked, and what is read is up to `publish_interval` old.
"""

import os
import sys
from pathlib import Path
from typing import Final

__all__ = ["Bell", "can_ring", "ring"]

can_ring: Final = sys.platform != "win32"
_MANY: Final = 1 << 16
"""More than a pipe holds."""


class Bell:
    """A pipe that others may write into; ready for reading once somebody has. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._writer = self.reader = -1
        self._path = path
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        self.reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        """What `poll` waits for."""
        self._found = os.fstat(self.reader)
        # A writer of our own, or the pipe would be ready for ever once another writer has left.
        self._writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)

    def is_there(self) -> bool:
        """Whether the others still find it."""
        try:
            return self._is_ours() and os.path.samestat(self._path.lstat(), self._found)
        except OSError:
            return False

    def ring(self) -> None:
        """Wake up whoever waits for it."""
        if self._is_ours():
            _write(self._writer)

    def has_rung(self) -> bool:
        """Whether somebody has rung since this was asked last."""
        try:
            return self._is_ours() and os.read(self.reader, _MANY) != b""
        except BlockingIOError:
            return False

    def remove(self) -> None:
        """Take it away: nobody will answer any longer."""
        if self.is_there():
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close it. The file stays: in a forked child it is the parent's."""
        for descriptor in (self.reader, self._writer):
            if descriptor >= 0 and self._leads_here(descriptor):
                os.close(descriptor)
        self.reader = self._writer = -1

    def _is_ours(self) -> bool:
        return self._leads_here(self.reader) and self._leads_here(self._writer)

    def _leads_here(self, descriptor: int) -> bool:
        """Whether it is still the pipe's: some applications close all descriptors they find, as daemons do."""
        try:
            return os.path.samestat(os.fstat(descriptor), self._found)
        except OSError:
            return False

    def __del__(self) -> None:
        self.close()


def ring(path: Path) -> bool:
    """Ask, and say whether somebody will hear it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # gone, or nobody listens any longer
        return False
    try:
        return _write(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int) -> bool:
    try:
        os.write(descriptor, b"!")
    except BlockingIOError:  # full: asked often enough
        return True
    except OSError:
        return False
    return True
