"""Which process is meant, when process ids are used again.

A process is its id *and* the moment it started, which stays the same as long as it lives: `/proc` tells it on Linux
(clock ticks since boot, with the boot they are counted from), `ps` elsewhere. Ids mean something in one namespace of
process ids only, so each carries the name of its namespace and boot, or else host.

Where `/proc` shows a user nobody else's processes (`hidepid`), one that cannot be seen may live all the same: the
kernel says whether it can be signalled. A master of another user is then known by its process group, which workers
share and what supervisors start does not.
"""

import errno
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Process", "running", "service", "this_process"]

_PROC: Final = Path("/proc")
_STACK: Final = 25
"""Where in `/proc/<pid>/stat`, after the name, the address of the stack is: the kernel draws it when a program starts
(Linux 2.6 and later), and forks share it."""
_GONE: Final = (b"Z", b"X")
"""States of a process that ended: one that its parent has not noticed yet, and one that is being taken away."""
_HIDDEN: Final = "hidden"
"""When a process started that runs and is not shown."""


class _HiddenProcess(PermissionError):
    """A process that runs, and that `/proc` does not show to this user."""


class Process(NamedTuple):
    """A process that an id cannot be mistaken for."""

    pid: int
    started: str
    """When; "" if that could not be found out, which no running process is taken for."""
    home: str
    """The namespace in which the id is valid, and the boot or the host."""

    @property
    def can_be_seen(self) -> bool:
        """Whether `running` tells if it lives, to who has the same `home`."""
        return self.started not in ("", _HIDDEN)

    @property
    def tag(self) -> str:
        """The same in a few characters, for names of files."""
        return f"{self.pid}-{zlib.crc32(f'{self.started} {self.home}'.encode()):08x}"


def running(pid: int) -> Process | None:
    """The process that runs under an id. One that ended and waits for its parent to notice does not.

    Raises OSError if that cannot be found out: nobody is taken for dead then. Where it never can, as on Windows, which
    has no `ps`, what the dead leave is swept away by the next service.
    """
    started = _started(pid)
    return None if started is None else Process(pid, started, _home())


def this_process() -> Process:
    """The process this runs in. Raises OSError if it cannot be found out now when it started."""
    return _process(os.getpid())


@cache  # and so inherited by what a serving process forks
def service() -> Process:
    """What is the same for all workers of a service and another after its restart: the master, or the one process.

    Workers are made by `multiprocessing` (uvicorn's), or forked from a master that goes on in the same memory
    (gunicorn's, uWSGI's). A supervisor or a script that starts a server is not part of it. Raises OSError if that
    cannot be found out now.
    """
    pid = os.getpid()
    try:
        while (parent := _parent(pid)) is not None and (_share_memory_layout(pid, parent) or _is_spawned(pid)):
            pid = parent
    except OSError:
        if _has_proc() or _has_ps():
            raise
        # Nobody can be asked, as on Windows, which forks nothing.
        pid = os.getpid() if multiprocessing.parent_process() is None else os.getppid()
    return _process(pid)


def _process(pid: int) -> Process:
    try:
        found = running(pid)
    except _HiddenProcess:
        return Process(pid, _HIDDEN, _home())
    except OSError:
        if _has_proc() or _has_ps():  # not now, for want of a descriptor, say; later it can
            raise
        found = None
    return found or Process(pid, "", _home())


def _started(pid: int) -> str | None:
    """When it started; None if it does not run. Raises OSError if that cannot be found out now."""
    if not _has_proc():
        state, _, started = (_asked(pid, "stat=", "lstart=") or "Z").partition(" ")
        return None if state.startswith("Z") else started.strip()
    fields = _stat(pid)
    if fields is None and _is_hidden(pid):
        raise _HiddenProcess(errno.EPERM, f"/proc does not show the process {pid}, which runs")
    return None if fields is None or fields[0] in _GONE else f"{fields[19].decode()}@{_boot()}"


def _stat(pid: int) -> list[bytes] | None:
    try:
        # The second field is the program's name in brackets, and may contain anything; those after it are returned.
        return (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # the last with `hidepid=1`
        return None


def _is_hidden(pid: int) -> bool:
    """Whether a process that is not shown runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _stat(pid) is None  # else it has started since it was looked for


def _parent(pid: int) -> int | None:
    if not _has_proc():
        found = _asked(pid, "ppid=")
        return int(found) if found else None
    fields = _stat(pid)
    return None if fields is None or int(fields[1]) == 0 else int(fields[1])


def _share_memory_layout(pid: int, parent: int) -> bool:
    """Whether one was forked from the other and has run no other program since."""
    if not _has_proc():
        return _command(pid) == _command(parent)
    mine, other = _stat(pid), _stat(parent)
    if mine is None or other is None:
        return mine is not None and _is_hidden(parent) and os.getpgid(pid) == os.getpgid(parent)
    if other[_STACK] not in (b"0", b"1"):
        return mine[_STACK] == other[_STACK]
    # Not shown: a master that its workers have left for another user, or init.
    return _command(pid) == _command(parent)


def _is_spawned(pid: int) -> bool:
    """Whether `multiprocessing` started it, or started the server that forks for it: both say so in their commands."""
    if pid == os.getpid() and multiprocessing.parent_process() is not None:
        return True
    command = _command(pid)
    return b"--multiprocessing-fork" in command or b"multiprocessing.forkserver" in command


def _command(pid: int) -> bytes:
    """Its command line; of a title that it gave itself, "gunicorn: master" or "uWSGI worker 1", the first word."""
    if not _has_proc():
        return (_asked(pid, "command=") or str(pid)).partition(": ")[0].encode()
    try:
        command = (_PROC / str(pid) / "cmdline").read_bytes().rstrip(b"\0 ")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b"%d" % pid  # like no other
    return command if b"\0" in command else command.partition(b" ")[0].rstrip(b":")


def _asked(pid: int, *columns: str) -> str | None:
    command = ["ps", *(part for column in columns for part in ("-o", column)), "-p", str(pid)]
    try:
        # In one language and time zone: the answer must be the same whoever asks.
        environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC0"}
        done = subprocess.run(  # noqa: S603 - numbers and names of our own
            command, capture_output=True, text=True, timeout=5, check=False, env=environment
        )
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from error
    return done.stdout.strip() or None


@cache
def _has_proc() -> bool:
    return sys.platform.startswith("linux") and (_PROC / "self" / "stat").exists()


def _has_ps() -> bool:
    return shutil.which("ps") is not None


@cache
def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()[:8]
    except (FileNotFoundError, PermissionError):
        return ""


@cache
def _home() -> str:
    try:
        namespace = os.readlink(_PROC / "self" / "ns" / "pid")
    except OSError:
        namespace = "one"
    # A host may be renamed while it runs; where nothing else tells hosts apart, its name must.
    return f"{namespace} {_boot() or socket.gethostname()}"
