"""Any order of births, publications, deaths and scrapes: nothing is counted twice, and nothing is lost."""

import errno
import itertools
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.workers import directory as module
from heap_middleware.workers import files
from heap_middleware.workers.counters import Counters
from heap_middleware.workers.directory import WorkersDirectory
from heap_middleware.workers.processes import Process
from heap_middleware.workers.snapshot import Snapshot

pytestmark = pytest.mark.one_python

MASTER = Process(1, "the master", "here")
ROUTES = [Endpoint("GET", "/a"), Endpoint("POST", "/a"), Endpoint("GET", "/b")]


class Worker:
    """A process that counts requests, and leaves as many objects behind."""

    def __init__(self, path, pid, started, processes):
        self.process = processes[pid] = Process(pid, started, "here")
        self.counted = {}
        self.published = None
        self.rejected = []
        self.directory = WorkersDirectory(
            path, "0" * 8, MASTER, self.process, lambda *why: self.rejected.append(why), running=processes.get
        )

    def publish(self):
        totals = {route: EndpointTotals(n, n, n, 0, n, n * 10.0, n, n * 10.0) for route, n in self.counted.items()}
        counters = Counters.of(totals, {("own", ""): sum(self.counted.values())})
        gauges = {"g": f'g{{pid="{self.process.pid}"}} 1.0\n'.encode()}
        self.directory.publish(Snapshot(MASTER, self.process, 0.0, counters, gauges))
        self.published = dict(self.counted)


class Service(RuleBasedStateMachine):
    """What a service of several workers does to its directory."""

    workers = Bundle("workers")

    def __init__(self):
        super().__init__()
        self.path = Path(tempfile.mkdtemp()) / "workers"
        self.processes = {1: MASTER}
        self.moments = itertools.count()
        self.living = []
        self.dead = {}
        self.last = {}

    def teardown(self):
        shutil.rmtree(self.path.parent)

    @rule(target=workers, pid=st.integers(2, 4))
    def birth(self, pid):
        """Process ids are few, so they are used again soon."""
        pid = next(number for number in itertools.count(pid) if number not in self.processes)
        worker = Worker(self.path, pid, str(next(self.moments)), self.processes)
        self.living.append(worker)
        return worker

    @rule(worker=workers, route=st.sampled_from(ROUTES), requests=st.integers(1, 3))
    def serve(self, worker, route, requests):
        worker.counted[route] = worker.counted.get(route, 0) + requests

    @rule(worker=workers)
    def publish(self, worker):
        worker.publish()

    @rule(worker=workers, step=st.sampled_from(["open", "replace"]))
    def publish_on_a_full_disk(self, worker, step):
        """It fails at whichever step, and what was published before stays."""
        published = worker.published
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files.os, step, no_room)
            with pytest.raises(OSError, match="No space"):
                worker.publish()
        assert worker.published is published

    @rule(worker=workers)
    def fold_on_a_full_disk(self, worker):
        """Whoever cannot be archived now is counted from what it left."""
        worker.publish()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files.os, "replace", no_room)
            with suppress(OSError):
                worker.directory.fold()

    @rule(worker=consumes(workers), politely=st.booleans())
    def die(self, worker, politely):
        """Politely, as `max_requests` has it, or of SIGKILL."""
        if politely:
            worker.publish()
        del self.processes[worker.process.pid]
        self.living.remove(worker)
        for route, requests in (worker.published or {}).items():
            self.dead[route] = self.dead.get(route, 0) + requests

    @rule(worker=workers)
    def fold(self, worker):
        worker.publish()
        worker.directory.fold()
        tags = {name.split("-", 1)[1].split(".")[0] for name in self.files() if name.endswith(".worker")}
        assert tags <= {other.process.tag for other in self.living}

    @rule(worker=workers)
    def fold_and_be_killed(self, worker):
        """Between the archive and the removal of those whom it names now."""
        worker.publish()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "remove", fail)
            with suppress(Killed):
                worker.directory.fold()

    @rule(worker=workers, other=workers)
    def scrape(self, worker, other):
        """While the other one folds, between the files that are read and the archive."""
        worker.publish()
        if worker is not other:
            other.publish()
            archive = worker.directory._archive
            worker.directory._archive = lambda group: (other.directory.fold(), archive(group))[1]
        found = worker.directory.gather()
        worker.directory.__dict__.pop("_archive", None)
        assert {said.process for said in found.workers} == {w.process for w in self.living if w.published is not None}
        totals = found.counters.endpoints()
        alive = self.sums(self.living)
        everybody = {route: alive.get(route, 0) + self.dead.get(route, 0) for route in {*alive, *self.dead}}
        assert {route: row.requests for route, row in totals.items()} == everybody
        assert {route: row.retained_objects for route, row in totals.items() if row.retained_objects} == alive
        assert {route: row.allocated_bytes for route, row in totals.items()} == {
            route: n * 10 for route, n in everybody.items()
        }
        assert found.counters.own.get(("own", ""), 0) == sum(everybody.values())
        assert all(everybody.get(route, 0) >= requests for route, requests in self.last.items())
        self.last = everybody

    @invariant()
    def nothing_is_wrong_with_any_file(self):
        assert [worker.rejected for worker in self.living if worker.rejected] == []

    def files(self):
        return [path.name for path in self.path.iterdir()] if self.path.exists() else []

    @staticmethod
    def sums(workers):
        found = {}
        for worker in workers:
            for route, requests in (worker.published or {}).items():
                found[route] = found.get(route, 0) + requests
        return found


class Killed(BaseException):
    pass


def fail(path):
    raise Killed


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


TestService = Service.TestCase
TestService.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
