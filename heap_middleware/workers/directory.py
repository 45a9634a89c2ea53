"""The directory that the workers of one service share.

    owner                   the service it belongs to, held by each of its workers (hold.py)
    lock                    held while a service takes the directory, and while the dead are folded
    <group>.archive         what workers counted that are gone, and who they were
    <group>-<tag>.worker    what a worker says of itself
    <group>-<tag>.bell      a pipe through which it is asked for news (bell.py)

A tag is a process (processes.py); a group is a monitor, for a process may have several.

The rules of this file:
- Files are replaced whole, and are readable by their owner only. A worker's file is written by nobody else.
- The dead are folded into the archive under the lock: first the archive is replaced, which names them, then their files
  are removed. So who reads the files first, the archive after them, and leaves out the files of those that the archive
  names, counts everybody once, without a lock and without making anybody wait.
- One service owns the directory. While it lives, the others stay out; what it left when it is gone is swept away. It
  lives as long as its master does; where that cannot be seen, as long as one of its workers holds the owner's file.
- What is wrong with a file costs that file and no more: it is put aside, as `.bad`. What could not be read or looked at
  this time is not taken to be gone.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from heap_middleware.workers.counters import Counters, DamagedSnapshot
from heap_middleware.workers.files import UnusableFile, locked, read_whole, remove, write_whole
from heap_middleware.workers.hold import Hold, is_held
from heap_middleware.workers.processes import Process, running
from heap_middleware.workers.recollection import Recollection
from heap_middleware.workers.snapshot import Snapshot, decode, encode

__all__ = ["FORMAT_DIRECTORY", "ForeignService", "Gathered", "WorkersDirectory"]

_OURS: Final = re.compile(r"(?P<group>[0-9a-f]{8})(-(?P<tag>(?P<pid>\d{1,10})-[0-9a-f]{8}))?\.(?P<kind>[a-z]+)")
FORMAT_DIRECTORY: Final = "format-"
"""How the directory's name begins: two versions of this package, as during a reload, do not read each other's files."""
_TAKE_WAIT: Final = 2.0
_NAMES_KEPT: Final = 256
"""Names of the folded that the archive keeps. It must name somebody as long as a reader may be at work who saw his
file: that is a fraction of a second, and this is hundreds of deaths."""
_ARCHIVED_ROUTES: Final = 4
"""How many times `max_routes` the archive holds. Each worker knows so many at most, not always the same ones, and they
come and go. Beyond it a route of the dead is `__other__`, and its counter falls."""


class ForeignService(Exception):
    """Another service uses the directory, and lives; the message says which."""


class _Name(NamedTuple):
    """What the name of a file in the directory says."""

    path: Path
    group: str
    tag: str | None
    pid: int
    kind: str


@dataclass(slots=True)
class Gathered:
    """What the workers of a service know: counters of living and dead ones together, and what each living one said."""

    counters: Counters = field(default_factory=Counters)
    workers: list[Snapshot] = field(default_factory=list)


class WorkersDirectory:
    """The directory as one worker sees it. `reject` hears of each file that is no good, with the reason.

    Its methods raise OSError when the directory cannot be used, and `ForeignService`.
    """

    def __init__(
        self,
        path: str | Path,
        group: str,
        service: Process,
        process: Process,
        reject: Callable[[Path, str], None],
        *,
        max_routes: int = 500,
        running: Callable[[int], Process | None] = running,
    ) -> None:
        self._path = Path(path)
        self._group = group
        self._service = service
        self._process = process
        self._reject = reject
        self._hold = Hold(self._path / "owner")
        self._archived_routes = _ARCHIVED_ROUTES * max_routes
        self._running = running
        self._unreadable: set[Path] = set()
        # Where a volume shows others than ours, those that it shows for ours.
        self._users = {os.geteuid()} if hasattr(os, "geteuid") else None
        self._recollection = Recollection()

    def file(self, kind: str, tag: str | None = None) -> Path:
        """The file of that kind of a worker, by default of this one."""
        return self._path / f"{self._group}-{tag or self._process.tag}.{kind}"

    def publish(self, snapshot: Snapshot, news: float | None = None) -> None:
        """Write what this worker says of itself. `news` is when its census was taken, since the epoch."""
        self._take()
        path = self.file("worker")
        write_whole(path, encode(snapshot), self.file("new"), news)
        if self._users is not None:  # pragma: no branch - Windows knows no users
            self._users.add(path.lstat().st_uid)

    def published(self) -> Counters | None:
        """What this very process has published before; None if nothing."""
        self._take()
        found = self._read(self.file("worker"), self._process.tag)
        return None if found is None else found.counters

    def others(self) -> dict[str, float]:
        """The other workers' tags, and when each last took a census, in seconds since the epoch."""
        return {
            name.tag: news
            for name in self._names("worker")
            if name.group == self._group and name.tag and name.tag != self._process.tag and self._runs(name)
            if (news := self.news(name.tag)) is not None
        }

    def news(self, tag: str) -> float | None:
        """When a worker last took a census; None if its file is gone."""
        return _modified(self.file("worker", tag))

    def forget(self) -> None:
        """Hold it no longer: in a forked child it is the parent's."""
        self._hold.close()

    def gather(self, *, patient: bool = False) -> Gathered:
        """Read what everybody said.

        With `patient`, raises OSError for a file that was read before and cannot be read now: without it, counters
        would fall, which looks like a restart.
        """
        self._take()
        restored = self._restore(patient=patient)
        said = [
            (name, snapshot)
            for name in self._names("worker")
            if name.group == self._group
            and (snapshot := self._readable(name, expected=patient and self._recollection.knows(name.tag))) is not None
        ]
        archive = self._readable(
            self._archive_name(self._group), expected=patient and self._recollection.archive is not None
        )
        if restored:  # else it would be forgotten what is still to be written anew
            self._recollection.note_archive(archive)
        found = Gathered() if archive is None else Gathered(archive.counters)
        said.reverse()
        while said:
            name, snapshot = said.pop()
            if archive is None or name.tag not in archive.folded:
                alive = self._runs(name)
                found.counters.add(snapshot.counters, alive=alive)
                if alive:
                    found.workers.append(snapshot)
        if restored:
            self._recollection.note_workers(found.workers)
        return found

    def fold(self) -> None:
        """Take those who are gone into the archive, and sweep away what else they left."""
        if all(self._runs(name) for name in self._names()):
            return
        with locked(self._path / "lock") as held:
            if not held:  # somebody else is at it
                return
            gone = [name for name in self._names() if not self._runs(name)]
            for group in {name.group for name in gone if name.kind == "worker"}:
                dead = [name for name in gone if name.group == group and name.kind == "worker"]
                self._fold(group, dead)
                for name in dead:
                    self._sweep(name.path)
            for name in gone:
                if name.kind != "worker":
                    self._sweep(name.path)

    def _fold(self, group: str, gone: list[_Name]) -> None:
        """Archive the workers of these files; of `gone` those are left that may be removed."""
        path = self._archive(group)
        archive = self._read(path)
        counters, folded = (Counters(), ()) if archive is None else (archive.counters, archive.folded)
        if all(name.tag in folded for name in gone):
            return  # whoever folded them was killed before their files were removed, or cannot remove them
        for name in tuple(gone):
            try:
                snapshot = None if name.tag in folded else self._read(name.path, name.tag)
            except OSError as error:  # it stays, and is shown once it can be read
                self._note(name.path, f"it cannot be read: {error.strerror}")
                gone.remove(name)
                continue
            if snapshot is not None:
                counters.add(snapshot.counters, alive=False, max_routes=self._archived_routes)
        tags = [str(name.tag) for name in gone]
        folded = (*(tag for tag in folded if tag not in tags), *tags)[-max(_NAMES_KEPT, len(tags)) :]
        write_whole(
            path,
            encode(Snapshot(self._service, self._process, 0.0, counters, folded=folded)),
            path.with_suffix(".fold"),
        )

    def _sweep(self, path: Path) -> None:
        try:
            remove(path)
        except OSError as error:
            self._note(path, f"it cannot be removed: {error.strerror}")

    def _take(self) -> None:
        """See to it that the directory is there and this service's."""
        if self._owner() == self._service:
            self._hold.take()
            return
        self._hold.close()  # or it would be found held, by us
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.mkdir(mode=0o700, exist_ok=True)
        with locked(self._path / "lock", _TAKE_WAIT) as held:
            if not held:
                raise BlockingIOError(f"it has been locked by another process for {_TAKE_WAIT:g} s")
            self._take_over()
            self._hold.take()  # before others can look

    def _take_over(self) -> None:
        owner = self._owner()
        if owner == self._service:
            return
        if owner is not None and self._lives(owner):
            raise ForeignService(f"another service uses it: that of the process {owner.pid} on {owner.home}")
        for name in self._names():
            if not self._is_of_this_service(name):
                self._sweep(name.path)
        self._sweep(self._path / "owner.bad")
        self._sweep_other_formats()
        mine = Snapshot(self._service, self._process, 0.0, Counters())
        write_whole(self._path / "owner", encode(mine), self._path / "owner.new")

    def _restore(self, *, patient: bool) -> bool:
        """Write down again what this worker had read, if the directory has been removed since; False if not yet."""
        remembered, path = self._recollection, self._archive(self._group)
        made = _identity(self._path / "lock")  # which nothing replaces, but the removal of all
        if remembered.of not in (None, made) or (remembered.archive is not None and not os.path.lexists(path)):
            with locked(self._path / "lock", _TAKE_WAIT) as held:
                if not held and patient:
                    raise BlockingIOError(f"it has been locked by another process for {_TAKE_WAIT:g} s")
                if not held:
                    return False
                count = remembered.write_missing(path, self._read(path), self.file, _NAMES_KEPT)
            if count:
                self._reject(self._path, f"{count} files were removed; what they last said is written anew")
        remembered.of = made
        return True

    def _sweep_other_formats(self) -> None:
        """What services of other versions of this package left beside this directory, if none of them lives."""
        for other in self._path.parent.glob(f"{FORMAT_DIRECTORY}*"):
            if other != self._path and not other.is_symlink():
                with suppress(OSError):  # no directory, or somebody else's: it keeps nobody from his own
                    self._sweep_other_format(other)

    def _sweep_other_format(self, other: Path) -> None:
        if is_held(other / "owner"):
            return
        for entry in os.listdir(other):
            if _OURS.fullmatch(entry) or entry in ("owner", "owner.new", "lock"):
                self._sweep(other / entry)
        other.rmdir()

    def _owner(self) -> Process | None:
        found = self._read(self._path / "owner", any_service=True)
        return None if found is None else found.service

    def _is_of_this_service(self, name: _Name) -> bool:
        if name.kind in ("worker", "archive"):
            found = self._read(name.path, any_service=True)
            return found is not None and found.service == self._service
        return name.tag is not None and self._runs(name)

    def _lives(self, service: Process) -> bool:
        if service.home == self._service.home and service.can_be_seen:
            try:
                return self._running(service.pid) == service
            except OSError:  # who cannot be looked at is not taken for dead
                return True
        # Of another container, of the same one before it was started anew, or of another user.
        return is_held(self._path / "owner")

    def _read(self, path: Path, tag: str | None = None, *, any_service: bool = False) -> Snapshot | None:
        """A file's content; None if there is none, or none that is any good.

        Raises OSError if it could not be read this time: whoever then took it for gone would throw it away.
        """
        identity = _identity(path)
        try:
            data = read_whole(path, None if any_service else self._users)
            if data is None:
                return None
            snapshot = decode(data)
            if not any_service and snapshot.service != self._service:
                raise UnusableFile(f"it is that of another service, of the process {snapshot.service.pid}")
            if tag not in (None, snapshot.process.tag):
                raise UnusableFile(f"it is that of another process, {snapshot.process.pid}")
        except (UnusableFile, DamagedSnapshot) as error:
            if identity == _identity(path):  # else it is another file by now
                self._put_aside(path, str(error))
            return None
        return snapshot

    def _readable(self, name: _Name, *, expected: bool) -> Snapshot | None:
        """The same for who only looks: a file that cannot be read this time is left out, unless it is expected."""
        try:
            return self._read(name.path, name.tag)
        except OSError as error:
            if expected or error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            self._note(name.path, f"it cannot be read: {error.strerror}")
            return None

    def _put_aside(self, path: Path, reason: str) -> None:
        """Rename a file that is no good, so that one worker of all meets it, and that once."""
        aside = path.with_suffix(".bad")
        try:
            os.replace(path, aside)
        except FileNotFoundError:  # another worker was faster
            return
        except OSError as error:
            self._note(path, f"{reason}, and it cannot be renamed: {error.strerror}")
            return
        self._reject(aside, reason)

    def _note(self, path: Path, reason: str) -> None:
        """Report what stays as it is: once."""
        if path not in self._unreadable:
            self._unreadable = {known for known in self._unreadable if os.path.lexists(known)} | {path}
            self._reject(path, reason)

    def _archive(self, group: str) -> Path:
        return self._path / f"{group}.archive"

    def _archive_name(self, group: str) -> _Name:
        return _Name(self._archive(group), group, None, 0, "archive")

    def _runs(self, name: _Name) -> bool:
        """Whether the worker of a file runs; an archive is nobody's. Who cannot be looked at is not taken for dead."""
        if name.tag is None:
            return True
        try:
            found = self._running(name.pid)
        except OSError:
            return True
        return found is not None and found.tag == name.tag

    def _names(self, kind: str | None = None) -> Iterator[_Name]:
        for entry in sorted(os.listdir(self._path)):
            parts = _OURS.fullmatch(entry)
            if parts is not None and kind in (None, parts["kind"]):
                yield _Name(self._path / entry, parts["group"], parts["tag"], int(parts["pid"] or 0), parts["kind"])


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _modified(path: Path) -> float | None:
    try:
        return path.lstat().st_mtime
    except OSError:
        return None
