"""Which process is meant, when process ids are used again.

A process is its id *and* the moment it started, which stays the same as long as it lives: `/proc` tells it on Linux
(clock ticks since boot, with the boot they are counted from), `ps` elsewhere. Ids mean something in one namespace of
process ids only, so each carries the name of its namespace and host.
"""

import os
import socket
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Process", "running", "service", "this_process"]

_PROC: Final = Path("/proc")
_GONE: Final = (b"Z", b"X")
"""States of a process that ended: one that its parent has not noticed yet, and one that is being taken away."""


class Process(NamedTuple):
    """A process that an id cannot be mistaken for."""

    pid: int
    started: str
    """When; "" if that could not be found out, which no running process is taken for."""
    home: str
    """The namespace in which the id is valid, and the host."""

    @property
    def tag(self) -> str:
        """The same in a few characters, for names of files."""
        return f"{self.pid}-{zlib.crc32(f'{self.started} {self.home}'.encode()):08x}"

    def replaces(self, other: "Process") -> bool:
        """Whether the other one must be gone, because its container was started anew on the same host."""
        return self.home != other.home and self.home.partition(" ")[2] == other.home.partition(" ")[2]


def running(pid: int) -> Process | None:
    """The process that runs under an id. One that ended and waits for its parent to notice does not."""
    started = _started(pid)
    return None if started is None else Process(pid, started, _home())


def this_process() -> Process:
    """The process this runs in."""
    return _process(os.getpid())


@cache  # and so inherited by what a serving process forks
def service() -> Process:
    """What is the same for all workers of a service and another after its restart.

    The parent, where it is a master: it runs the same program, as gunicorn's, uvicorn's and uWSGI's do. Else this
    process.
    """
    parent = os.getppid()
    return _process(parent if _is_same_program(parent) else os.getpid())


def _process(pid: int) -> Process:
    return running(pid) or Process(pid, "", _home())


def _started(pid: int) -> str | None:
    """When it started; None if it does not run."""
    if _has_proc():
        try:
            # The second field is the program's name in brackets, and may contain anything.
            fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if fields[0] in _GONE else f"{fields[19].decode()}@{_boot()}"
    return _asked(pid, "stat=", "lstart=")


def _is_same_program(pid: int) -> bool:
    if not _has_proc():
        return _asked(pid, "comm=") == _asked(os.getpid(), "comm=") is not None
    try:
        return os.readlink(_PROC / str(pid) / "exe") == os.readlink(_PROC / "self" / "exe")
    except PermissionError:  # a master that its workers have left for another user, or init
        return _name(str(pid)) == _name("self")
    except OSError:
        return False


def _name(pid: str) -> str:
    # Masters and workers may call themselves so: "gunicorn: master", "gunicorn: worker".
    return (_PROC / pid / "comm").read_text().partition(":")[0].strip()


def _asked(pid: int, *columns: str) -> str | None:
    command = ["ps", *(part for column in columns for part in ("-o", column)), "-p", str(pid)]
    try:
        # In one language and time zone: the answer must be the same whoever asks.
        environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC0"}
        done = subprocess.run(  # noqa: S603 - numbers and names of our own
            command, capture_output=True, text=True, timeout=5, check=False, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    answer = done.stdout.split()
    return None if not answer or answer[0].startswith("Z") else " ".join(answer[len(columns) - 1 :])


@cache
def _has_proc() -> bool:
    return sys.platform.startswith("linux") and (_PROC / "self" / "stat").exists()


@cache
def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return ""


@cache
def _home() -> str:
    try:
        namespace = os.readlink(_PROC / "self" / "ns" / "pid")
    except OSError:
        namespace = "one"
    return f"{namespace} {socket.gethostname()}"
