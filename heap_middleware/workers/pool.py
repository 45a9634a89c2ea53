"""One worker among those of its service: it says what it knows, asks the others, and gathers what everybody said."""

import errno
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from heap_middleware.endpoints.ledger import Endpoint
from heap_middleware.endpoints.verdict import Evidence
from heap_middleware.workers import publisher
from heap_middleware.workers.bell import Bell, can_ring, ring
from heap_middleware.workers.counters import Counters
from heap_middleware.workers.directory import FORMAT_DIRECTORY, ForeignService, Gathered, WorkersDirectory
from heap_middleware.workers.processes import service, this_process
from heap_middleware.workers.snapshot import FORMAT, Snapshot

__all__ = ["Known", "WorkerPool"]

_log = logging.getLogger("heap_middleware")
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_POLL: Final = 0.005
_LAST_WORD: Final = 5.0
"""Seconds that the end of a process waits for a publication that is under way."""
_PASSING: Final = 60.0
"""Seconds for which scrapes fail rather than show this process alone, when reading fails that worked before."""
_ALONE: Final = "until it can, a scrape of this process may show this process alone"
_UNSEEN: Final = "until it can, the sums of all workers lack what this process counts"
_MEANWHILE: Final = {
    "read": _ALONE,
    "write": _UNSEEN,
    "make a pipe in": "other workers' scrapes show what this one last published",
    "sweep": "the files of dead workers stay, and are counted from there",
}


class Known(NamedTuple):
    """What there is to say of this process."""

    counters: Counters
    gauges: Mapping[str, bytes]
    """As lines of the exposition format, by family."""
    taken: float | None
    """When the census was taken that the gauges show, by the monotonic clock; None if there has been none."""
    evidence: Mapping[Endpoint, Evidence] = MappingProxyType({})
    details: bytes = b""
    """What the report wants to know, as JSON."""


class WorkerPool:
    """A process and its siblings. No fault of the directory's is raised: then this process answers alone.

    `group` names the monitor: the same in all workers, another for each monitor of a process. What happens in
    `disturbing` is no request's doing. `recent` is the age in seconds up to which a census is as good as new.
    """

    def __init__(
        self,
        path: str,
        group: str,
        *,
        take_census: Callable[[], object],
        describe: Callable[[], Known],
        disturbing: Callable[[], AbstractContextManager[None]],
        interval: float,
        wait: float,
        recent: float,
        max_routes: int,
        fault: Callable[[], None],
    ) -> None:
        self.path = path
        self.interval = interval
        self.rejected = 0
        """How often a file, or the directory, could not be used, each fault once until it is over."""
        self.spent = 0.0
        """Seconds spent on publications outside of scrapes."""
        self.waited = 0.0
        """Seconds spent waiting for the others."""
        self._group = group
        self._take_census = take_census
        self._describe = describe
        self._disturbing = disturbing
        self._wait = wait
        self._recent = recent
        self._max_routes = max_routes
        self._fault = fault
        self._starting = threading.RLock()
        self._publishing = threading.Lock()
        self._directory: WorkersDirectory | None = None
        self._before: Counters | None = None
        """What a monitor published that had this one's place in this process before; None: not known yet."""
        self._bell: Bell | None = None
        self._answers = 0
        """How often others asked for news."""
        self._left = False
        self._read_last = -math.inf
        self._trouble: dict[str, str] = {}

    def start(self) -> WorkersDirectory:
        """Become one of the workers: publish from now on. Only what serves requests or scrapes calls this."""
        with self._starting:
            directory = self._known()
            publisher.add(self)
            return directory

    def _known(self) -> WorkersDirectory:
        with self._starting:
            if self._directory is None:
                self._process, self._service = this_process(), service()
                self._epoch = time.time() - time.monotonic()  # once: of one census, all publications show one moment
                self._directory = WorkersDirectory(
                    Path(self.path) / f"{FORMAT_DIRECTORY}{FORMAT}",
                    self._group,
                    self._service,
                    self._process,
                    self._reject,
                    max_routes=self._max_routes,
                )
            return self._directory

    def bell(self) -> Bell | None:
        """Where the others ask for news."""
        return self._bell

    def gather(self) -> Gathered:
        """Ask the others for what is new, wait for it a moment, and read what everybody said.

        What the census raises is raised, and OSError if descriptors or memory have run out, or if for now it cannot be
        read what could be read until lately.
        """
        directory = self._started()
        asked = self._ask(directory)
        deadline = time.monotonic() + self._wait
        self._take_census()
        mine, written = self._publish(directory, self._wait)
        self._await(directory, asked, deadline)
        try:
            found = directory.gather(patient=self._may_pass())
            self._fine("read")
            self._read_last = time.monotonic()
        except (OSError, ForeignService) as error:
            # To show fewer counts now would look like a restart, and count them twice.
            if getattr(error, "errno", None) in _EXHAUSTED or (isinstance(error, OSError) and self._may_pass()):
                raise
            self._say("read", error)
            found = Gathered()
        if all(snapshot.process != self._process for snapshot in found.workers):
            # Counts that the others cannot know of, on a full disk, would go up and down with who is asked.
            if written or not (found.workers or found.counters.own):
                found.counters.add(mine.counters)
            found.workers.append(mine)
        return found

    def _may_pass(self) -> bool:
        """Whether what cannot be read could be read lately, and perhaps can again the next time."""
        return time.monotonic() - self._read_last < _PASSING

    def publish(self, *, fresh: bool) -> None:
        """Say what is known; with a new census if `fresh`, with the last one else. Raises nothing."""
        try:
            with self._disturbing():
                if fresh:
                    self._refresh()
                    self._answers += 1
                began = time.monotonic()
                self._publish(self._started(), self._wait)
                self.spent += time.monotonic() - began
        except Exception:
            self._fault()

    def flush(self) -> None:
        """Say what is known, if anything was said before. Raises nothing."""
        if self._directory is not None:
            self.publish(fresh=False)

    def _refresh(self) -> None:
        try:
            self._take_census()
        except Exception:  # what was counted is published all the same
            self._fault()

    def leave(self) -> None:
        """Say the last word, and listen no longer. Raises nothing."""
        try:
            self._publish(self._started(), _LAST_WORD)
        except Exception:
            self._fault()
        self._left = True
        if self._bell is not None:
            self._bell.remove()

    def forget(self) -> None:
        """Close what a forked child has of its parent's: nobody is to take the one for the other."""
        if self._directory is not None:
            self._directory.forget()
        if self._bell is not None:
            self._bell.close()

    def _started(self) -> WorkersDirectory:
        try:
            return self.start()
        except RuntimeError:  # no thread can be started now: what it would have published, scrapes do
            return self._known()

    def _publish(self, directory: WorkersDirectory, wait: float) -> tuple[Snapshot, bool]:
        """Say what is known; returns it, and whether the others can read it."""
        # What is read later must be written later, or counters would go down. Who waits here for himself, in a
        # finalizer or signal handler, does without.
        mine = self._publishing.acquire(timeout=max(wait, _POLL))
        try:
            known = self._describe()
            taken = time.monotonic() if known.taken is None else known.taken
            snapshot = Snapshot(
                self._service,
                self._process,
                taken,
                known.counters,
                known.gauges,
                evidence=known.evidence,
                details=known.details,
            )
            return snapshot, mine and not self._left and self._write(directory, snapshot, known.taken)
        finally:
            if mine:
                self._publishing.release()

    def _write(self, directory: WorkersDirectory, snapshot: Snapshot, taken: float | None) -> bool:
        try:
            if self._before is None:
                self._before = directory.published() or Counters()
            snapshot.counters.add(self._before, alive=False)
            # An answer moves the file's time by a microsecond, even if the last census still served: whoever asked is
            # waiting for that. What is published unasked does not.
            answered = self._answers % 1000 * 1e-6
            directory.publish(snapshot, answered + (0.0 if taken is None else taken + self._epoch))
            self._fine("write")
        except (OSError, ForeignService) as error:
            self._say("write", error)
            return False
        try:
            if can_ring and (self._bell is None or not self._bell.is_there()):
                self._bell = Bell(directory.file("bell"))
            self._fine("make a pipe in")
        except OSError as error:  # a file system without pipes: what is known arrives an interval late
            self._say("make a pipe in", error)
        try:
            directory.fold()
            self._fine("sweep")
        except OSError as error:
            self._say("sweep", error)
        return True

    def _ask(self, directory: WorkersDirectory) -> dict[str, float]:
        """Ring at those whose census is not of this moment; returns of when it is."""
        try:
            others = directory.others()
        except OSError:  # whoever writes next will say so
            return {}
        now = time.time()
        return {
            tag: news
            for tag, news in others.items()
            if not 0 <= now - news < self._recent and ring(directory.file("bell", tag))
        }

    def _await(self, directory: WorkersDirectory, asked: Mapping[str, float], deadline: float) -> None:
        """Wait until all that were asked have answered."""
        began = time.monotonic()
        while any(directory.news(tag) == before for tag, before in asked.items()) and time.monotonic() < deadline:
            time.sleep(_POLL)
        self.waited += time.monotonic() - began

    def _reject(self, path: Path, reason: str) -> None:
        self.rejected += 1
        _log.warning("heap_middleware leaves out %s: %s", path, reason)

    def _say(self, what: str, error: Exception) -> None:
        """Say once what is wrong; once again when it was fine in between."""
        reason = getattr(error, "strerror", None) or str(error)
        if reason not in self._trouble.values():  # what cannot be written to cannot be read either, as a rule
            self.rejected += 1
            _log.error("heap_middleware cannot %s workers_dir %s: %s; %s", what, self.path, error, _MEANWHILE[what])
        self._trouble[what] = reason

    def _fine(self, what: str) -> None:
        self._trouble.pop(what, None)
