"""One process of a service with workers_dir: when it publishes, what it shows, and what it does when it cannot."""

import errno
import gc
import io
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from heap_middleware import HeapMonitor, HeapSettings
from heap_middleware.accelerator import native
from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.endpoints.windows import Level
from heap_middleware.exposition.requests import PageRequest
from heap_middleware.workers import directory as directories
from heap_middleware.workers import pool, publisher
from heap_middleware.workers.counters import Counters
from heap_middleware.workers.directory import WorkersDirectory
from heap_middleware.workers.pool import WorkerPool
from heap_middleware.workers.processes import Process, running
from heap_middleware.workers.snapshot import Snapshot, decode
from heap_middleware.workers.ticker import Ticker
from heap_middleware.wsgi import HeapMetricsMiddleware

OBJECTS = ("object_count", "application.Leaked")
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


@pytest.fixture
def monitor(tmp_path):
    return HeapMonitor(settings(tmp_path / "shared"))


def settings(path, **others):
    return HeapSettings(attribution=True, workers_dir=path, workers_wait=0.1, census_min_interval=0.01, **others)


def serve(monitor, requests=1):
    for _ in range(requests):
        held, recorder = {}, monitor.recorder
        window = recorder.begin(held, Level.ARRIVAL)
        recorder.finish(window, held, Level.ARRIVAL, "GET", "/x")


def page(monitor, query="", accept=""):
    answer = monitor.respond(PageRequest("GET", "/metrics", query, accept))
    assert answer.status == 200
    return answer.body.decode()


def samples(text, parse=text_string_to_metric_families):
    return {(s.name, *sorted(s.labels.items())): s.value for family in parse(text) for s in family.samples}


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("heap_middleware")]


def files(path, kind):
    return list(path.glob(f"format-*/*.{kind}"))


def until(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nothing_happens_before_the_first_request(tmp_path, monitor):
    """A master that preloads the application has no thread and writes no file; the first request changes that."""
    path = tmp_path / "shared"
    assert not path.exists()
    before = len(threads())
    serve(monitor)
    until(lambda: len(files(path, "bell")) == 1)
    assert len(files(path, "worker")) == 1
    assert len(threads()) <= before + 1
    assert requests(page(monitor)) == 1


def test_without_attribution_the_first_request_starts_it_too(tmp_path):
    """A worker is shown once it has served something, whether or not requests are measured."""
    path = tmp_path / "shared"
    monitor = HeapMonitor(HeapSettings(workers_dir=path))
    middleware = HeapMetricsMiddleware(lambda environ, start_response: [b"ok"], monitor=monitor)
    assert middleware({"PATH_INFO": "/"}, None) == [b"ok"]
    until(lambda: files(path, "worker"))
    assert monitor.recorder is None
    assert middleware({"PATH_INFO": "/"}, None) == [b"ok"]


@pytest.fixture
def workers_of(tmp_path):
    """`workers_of(living, dead)`: a monitor that has served one request, beside others with 10 and 100 each."""

    def make(living=0, dead=0):
        monitor = HeapMonitor(settings(tmp_path / "shared", publish_interval=3600))
        serve(monitor)
        until(lambda: monitor_files(monitor, "bell"))
        pool = monitor._workers
        for process, count in [(running(os.getppid()), 10)] * living + [(Process(1, "gone", "here"), 100)] * dead:
            other = WorkersDirectory(pool._directory._path, pool._group, pool._service, process, print)
            counters = Counters.of({Endpoint("GET", "/x"): EndpointTotals(count, count)}, {("own", ""): 1.0})
            other.publish(Snapshot(pool._service, process, time.monotonic(), counters))
            other.forget()
        pool._directory.fold()
        return monitor

    return make


def monitor_files(monitor, kind):
    return files(Path(monitor.settings.workers_dir), kind)


def requests(text):
    return samples(text).get(("heap_endpoint_requests_total", ("method", "GET"), ("route", "/x")), 0)


def test_gauges_carry_the_process_id(monitor):
    """Every gauge has the label pid, no counter has it, and both text formats of the page can be read."""
    serve(monitor, 3)
    page(monitor)
    plain = list(text_string_to_metric_families(page(monitor)))
    assert len(plain) > 15
    for family in plain:
        if family.name == "heap_endpoint_leak_objects_per_request":
            assert not family.samples  # of all workers together, for a route that leaks
            continue
        assert family.samples
        assert {sample.labels.get("pid") for sample in family.samples} == (
            {str(os.getpid())} if family.type == "gauge" else {None}
        )
    # The article's gauge whose name ends in _total is none to a strict parser of OpenMetrics.
    text = page(monitor, accept=OPENMETRICS)
    strict = "".join(line + "\n" for line in text.splitlines() if "heap_size_bytes_total" not in line)
    assert {family.name for family in parse_openmetrics(strict)} == {
        family.name.removesuffix("_total") for family in plain if family.name != "heap_size_bytes_total"
    }


def test_a_filter_by_name_holds(monitor):
    """`name[]` leaves only what was asked for, gauges and counters alike."""
    serve(monitor)
    text = page(monitor, "name[]=heap_size_bytes_total&name[]=heap_worker_files_rejected_total")
    assert [name for name, *_ in samples(text)] == ["heap_size_bytes_total", "heap_worker_files_rejected_total"]


def test_a_registry_of_mine_shows_the_same(monitor):
    """The collector shows what the page shows; on the page with that registry nothing is there twice."""
    registry = CollectorRegistry()
    registry.register(monitor.collector())
    serve(monitor)
    mine = {name for name, *_ in samples(generate_latest(registry).decode())}
    assert mine == {name for name, *_ in samples(page(monitor))}
    both = HeapMonitor(settings(monitor.settings.workers_dir, registry=registry, top_types=7))
    serve(both)
    lines = page(both).splitlines()
    assert len([line for line in lines if line.startswith("# TYPE")]) == len(
        {line for line in lines if "# TYPE" in line}
    )


def test_a_directory_that_cannot_be_used_is_said_once(tmp_path, caplog):
    """The process answers for itself alone, and one line of the log says why."""
    (tmp_path / "file").touch()
    monitor = HeapMonitor(settings(tmp_path / "file" / "shared"))
    serve(monitor, 3)
    assert [requests(page(monitor)) for _ in range(3)] == [3, 3, 3]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "file/shared" in said[0]
    assert "Not a directory" in said[0]
    assert samples(page(monitor))[("heap_worker_files_rejected_total",)] == 1


def test_monitors_of_one_process_do_not_mix(monitor, tmp_path, caplog):
    """Each monitor of a process has files of its own, whether or not their settings are equal."""
    others = [HeapMonitor(monitor.settings), HeapMonitor(settings(monitor.settings.workers_dir, top_types=7))]
    for count, each in enumerate((monitor, *others), 1):
        serve(each, count)
    assert [requests(page(each)) for each in (monitor, *others)] == [1, 2, 3]
    assert len(files(tmp_path / "shared", "worker")) == 3
    assert caplog.records == []


def test_a_monitor_that_is_built_again_goes_on_counting(tmp_path):
    """A framework that builds its stack anew: what was counted is still there."""
    monitor = HeapMonitor(settings(tmp_path / "shared"))
    serve(monitor, 5)
    assert requests(page(monitor)) == 5
    del monitor
    until(lambda: gc.collect() >= 0 and not looked_after(tmp_path))
    monitor = HeapMonitor(settings(tmp_path / "shared", publish_interval=7))
    serve(monitor, 1)
    assert [requests(page(monitor)) for _ in range(2)] == [6, 6]


def test_a_damaged_file_is_counted_once(monitor, tmp_path, caplog):
    """A file that is no good is logged once and counted once, however often the page is asked for."""
    serve(monitor)
    page(monitor)
    (file,) = files(tmp_path / "shared", "worker")
    pid = os.getppid()  # of a process that lives
    file.with_name(file.name.replace(f"-{os.getpid()}-", f"-{pid}-")).write_bytes(b"nonsense")
    page(monitor)
    rejected = [samples(page(monitor))[("heap_worker_files_rejected_total",)] for _ in range(3)]
    assert rejected == [1, 1, 1]
    assert len([record for record in caplog.records if "leaves out" in record.getMessage()]) == 1


def test_a_failing_publication_is_counted_and_the_next_one_comes(tmp_path, caplog, monkeypatch):
    """A fault of ours in the background is logged once, counted, and does not end the thread."""
    monitor = HeapMonitor(settings(tmp_path / "shared", publish_interval=0.1))
    figures = monitor.own_figures

    def fail():
        raise RuntimeError("ours")

    monkeypatch.setattr(monitor, "own_figures", fail)
    serve(monitor)
    until(lambda: monitor._faults["workers"] > 1)
    monkeypatch.setattr(monitor, "own_figures", figures)
    until(lambda: files(tmp_path / "shared", "worker"))
    assert len([record for record in caplog.records if "workers" in record.getMessage()]) == 1


def test_thirty_middlewares_share_one_thread(tmp_path):
    """However many monitors a process has, one thread publishes for all, and it ends with the last."""
    monitors = [HeapMonitor(settings(tmp_path / "shared", top_types=n, publish_interval=0.1)) for n in range(1, 31)]
    for monitor in monitors:
        serve(monitor)
    until(lambda: len(files(tmp_path / "shared", "bell")) == 30)
    assert len(threads()) == 1
    monitors.clear()
    del monitor
    until(lambda: gc.collect() >= 0 and not looked_after(tmp_path))


def looked_after(path):
    pools = [reference() for reference in publisher._publisher.pools()]
    return [pool for pool in pools if isinstance(pool, WorkerPool) and str(path) in pool.path]


def test_a_thread_that_cannot_be_started_is_started_later(tmp_path, monkeypatch):
    """No more threads for a while: requests and scrapes are served, and publications begin as soon as they can."""
    monitor = HeapMonitor(settings(tmp_path / "shared", publish_interval=0.1))
    with monkeypatch.context() as patch:
        patch.setattr(publisher, "_publisher", publisher._Publisher())
        patch.setattr(threading.Thread, "start", lambda _: no_more())
        serve(monitor)
        assert requests(page(monitor)) == 1
        patch.undo()
        patch.setattr(publisher, "_publisher", publisher._Publisher())
        assert requests(page(monitor)) == 1
        serve(monitor)
        until(lambda: files(tmp_path / "shared", "bell"))
        assert len(looked_after(tmp_path)) == 1


def no_more():
    raise RuntimeError("can't start new thread")


def no_room(*arguments, **others):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.one_python
def test_the_census_of_another_worker_is_as_new_as_its_age_says(workers):
    """Whatever a worker publishes unasked, a scrape asks it for a new census, and shows none that is older."""
    service = workers(
        "gunicorn", number=3, publish_interval=0.1, census_min_interval=0.05, top_types=10_000, workers_wait=20
    )
    seen = Counter()
    for _ in range(8):
        seen += service.visit(*["/leak"] * 30)
        service.await_workers(len(seen))
        leaked = {int(key[2]): value for key, value in service.settled().items() if key[:2] == OBJECTS}
        assert leaked == seen


@contextmanager
def forked(work):
    """A child that does something and stays: its process id, and what `work` returned there, as text."""
    told, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if child == 0:  # pragma: no cover - measured in the parent
        try:
            answer = repr(work())
        except BaseException:
            out = io.StringIO()
            traceback.print_exc(file=out)
            answer = out.getvalue()
        os.write(tell, answer.encode())
        signal.pause()
    os.close(tell)
    try:
        yield child, os.read(told, 10_000).decode()
    finally:
        os.close(told)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_child_is_a_worker_of_its_own(monitor, tmp_path):
    """A child that is forked while the parent serves has a thread and a file of its own, and both are shown."""
    serve(monitor, 5)
    until(lambda: files(tmp_path / "shared", "bell"))

    def work():
        serve(monitor, 2)
        until(lambda: len(files(tmp_path / "shared", "bell")) == 2)
        return requests(page(monitor)), len(threads())

    with forked(work) as (child, answer):
        shown = samples(page(monitor))
        assert [totals.requests for totals in monitor.endpoints().values()] == [7]
    assert answer == repr((7.0, 1))
    ages = {key[1][1] for key in shown if key[0] == "heap_worker_snapshot_age_seconds"}
    assert ages == {str(os.getpid()), str(child)}
    assert requests(page(monitor)) == 7
    assert len(files(tmp_path / "shared", "worker")) == 1


CHILD_ENDS = """
import os, sys, warnings
from heap_middleware import HeapMonitor, HeapSettings
from heap_middleware.exposition.requests import PageRequest

monitor = HeapMonitor(HeapSettings(workers_dir=sys.argv[1], attribution=True, census_min_interval=0))

def serve(requests):
    for _ in range(requests):
        with monitor.request("task", "work"):
            pass

serve(5)
monitor.respond(PageRequest("GET", "/metrics"))
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
if os.fork() == 0:
    serve(2)
    sys.exit()
os.wait()
print([line for line in monitor.respond(PageRequest("GET", "/metrics")).body.decode().splitlines() if "task" in line])
"""


def test_a_child_that_ends_says_its_last_word(tmp_path):
    """What a forked child counted before its first publication was due is in the sum, and its pipe is gone."""
    command = [sys.executable, "-c", CHILD_ENDS, tmp_path / "shared"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert 'heap_endpoint_requests_total{method="task",route="work"} 7.0' in done.stdout, done.stderr
    assert files(tmp_path / "shared", "bell") == []


def test_a_last_word_that_fails_is_counted(monitor, tmp_path, monkeypatch):
    """A fault of ours at the very end: nobody is asked any longer, and the process ends as it would."""
    serve(monitor)
    until(lambda: files(tmp_path / "shared", "bell"))
    monkeypatch.setattr(monitor, "own_figures", no_more)
    monitor._workers.leave()
    assert monitor._faults["workers"] >= 1
    assert files(tmp_path / "shared", "bell") == []


class Pool:
    """Something to look after that fails."""

    interval = 0.0

    def __init__(self):
        self.turns = 0

    def bell(self):
        return None

    def publish(self, *, fresh):
        self.turns += 1
        if self.turns < 3:
            raise MemoryError

    def leave(self):
        pass


def test_the_thread_outlives_what_goes_wrong_in_it(caplog, monkeypatch):
    """Memory runs out: it is logged, and the thread goes on a moment later."""
    monkeypatch.setattr(publisher, "_LOOK", 0.01)
    failing = Pool()
    publisher.add(failing)
    until(lambda: failing.turns >= 4)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["heap_middleware's publisher failed; it goes on"] * 2


@pytest.mark.parametrize("turn", ["publish", "leave"])
def test_a_monitor_that_goes_meanwhile_is_left_out(turn, monkeypatch):
    """While one has its turn another one dies: the thread, and the end of the process, go on without it."""
    published = []

    class Last(Pool):
        def publish(self, *, fresh):
            published.append(self)

        leave = Pool.leave

    class First(Last):
        def publish(self, *, fresh):
            if turn == "publish":
                others.clear()

        def leave(self):
            others.clear()

    alone = publisher._Publisher()
    monkeypatch.setattr(publisher, "_publisher", alone)
    first, others = First(), [Last()]
    alone._due.update(dict.fromkeys([first, *others], 0.0))
    if turn == "publish":
        assert alone._publish()
    else:
        publisher._last_word()
    assert others == published == []


def test_a_look_that_fails_is_counted_and_the_next_one_comes():
    """A fault of ours in the history ends nothing."""
    faults = []
    ticker = Ticker(lambda: 1 / 0, lambda: faults.append(sys.exception()))
    for _ in range(2):
        ticker.publish(fresh=False)
    assert [type(fault) for fault in faults] == [ZeroDivisionError] * 2


def test_counts_do_not_fall_when_a_new_worker_cannot_write(monitor, monkeypatch):
    """On a full disk what a new worker counts is in nobody's sum, or each scrape would show another one."""
    serve(monitor, 5)
    assert requests(page(monitor)) == 5

    def work():
        monkeypatch.setattr(directories, "write_whole", no_room)
        serve(monitor, 2)
        return requests(page(monitor))

    with forked(work) as (_, answer):
        assert answer == repr(5.0)
        assert requests(page(monitor)) == 5


def test_what_only_i_know_is_in_no_sum(monitor, monkeypatch):
    """The same, seen from the new worker: it shows what the others counted, and its own gauges."""

    def work():
        serve(monitor, 5)
        return requests(page(monitor))

    with forked(work) as (child, answer):
        assert answer == repr(5.0)
        monkeypatch.setattr(directories, "write_whole", no_room)
        serve(monitor, 2)
        shown = samples(page(monitor))
        assert shown["heap_endpoint_requests_total", ("method", "GET"), ("route", "/x")] == 5
        ages = {key[1][1] for key in shown if key[0] == "heap_worker_snapshot_age_seconds"}
        assert ages == {str(os.getpid()), str(child)}


def test_the_dead_cannot_be_archived_on_a_full_disk(monitor, tmp_path, monkeypatch, caplog):
    """It is said once; what the living publish is shown, and the dead are counted from their own files."""
    serve(monitor, 2)
    with forked(lambda: (serve(monitor, 5), page(monitor))[0]):
        pass
    write_whole = directories.write_whole

    def full(path, *others):
        if path.suffix == ".archive":
            no_room()
        write_whole(path, *others)

    monkeypatch.setattr(directories, "write_whole", full)
    serve(monitor, 1)
    assert [requests(page(monitor)) for _ in range(3)] == [8.0] * 3
    assert [record.getMessage().partition(";")[2] for record in caplog.records] == [
        " the files of dead workers stay, and are counted from there"
    ]


@pytest.mark.one_python
def test_a_worker_that_stands_still_is_shown_as_it_was(workers):
    """A scrape does not wait for a worker that was stopped; how old its figures are is shown."""
    service = workers("gunicorn", number=2, publish_interval=3600)
    pids = set()
    while len(pids) < 2:
        pids |= set(service.visit("/clean"))
    service.await_workers(2)
    service.settled()
    stopped, running = pids
    os.kill(stopped, signal.SIGSTOP)
    try:
        time.sleep(1.1)
        with httpx.Client(base_url=service.url, timeout=5) as http:
            shown = samples(http.get("/metrics").text) if service.visit("/clean") else {}
    finally:
        os.kill(stopped, signal.SIGCONT)
    ages = {int(key[1][1]): value for key, value in shown.items() if key[0] == "heap_worker_snapshot_age_seconds"}
    assert ages[stopped] > 1 > ages[running]


@pytest.mark.accelerator
def test_types_are_those_of_all_workers(tmp_path):
    """`retained_by_type()` adds up what the requests of all workers left alive; without workers_dir, of this one."""

    class Left:
        pass

    native.stop()  # the first monitor's sampling holds for all
    left = []
    for directory in (None, tmp_path / "shared"):
        monitor = HeapMonitor(HeapSettings(attribution=True, sampling=1, workers_dir=directory, census_min_interval=0))
        window = monitor.recorder.begin({}, Level.ARRIVAL)
        left += [Left(), Left()]
        monitor.recorder.finish(window, {}, Level.ARRIVAL, "GET", "/x")
        (types,) = monitor.retained_by_type().values()
        name = f"{__name__}.test_types_are_those_of_all_workers.<locals>.Left"
        assert types[name] == 2
    native.stop()


def test_a_file_system_without_pipes_is_no_harm(tmp_path, caplog, monkeypatch):
    """Where no pipe can be made, workers publish and answer all the same, and it is said once."""

    def fail(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "mkfifo", fail)
    monitor = HeapMonitor(settings(tmp_path / "shared", publish_interval=0.1))
    serve(monitor)
    until(lambda: files(tmp_path / "shared", "worker"))
    assert [requests(page(monitor)) for _ in range(3)] == [1, 1, 1]
    monitor._workers.leave()
    assert files(tmp_path / "shared", "worker")
    assert [record.getMessage().split(";")[1] for record in caplog.records] == [
        " other workers' scrapes show what this one last published"
    ]


def test_counts_are_published_without_a_census(tmp_path, monkeypatch):
    """A census that fails in the background is a fault of ours; what was counted is published all the same."""
    path = tmp_path / "shared"
    monitor = HeapMonitor(settings(path, publish_interval=3600))
    serve(monitor)
    until(lambda: files(path, "bell"))
    monkeypatch.setattr(monitor._workers, "_take_census", no_more)
    (file,) = files(path, "worker")
    before = file.stat().st_ino
    serve(monitor, 4)
    monitor._workers._bell.ring()
    until(lambda: file.stat().st_ino != before)
    assert monitor._faults["workers"] == 1
    assert decode(file.read_bytes()).counters.measured(Endpoint("GET", "/x")) == 5


def test_a_worker_that_does_not_know_itself_yet_tries_again(tmp_path, monkeypatch):
    """Out of descriptors at the first request: it is served, and the worker joins the others once it can."""
    monitor = HeapMonitor(settings(tmp_path / "shared"))

    def exhausted():
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(pool, "this_process", exhausted)
        serve(monitor)
        assert monitor.respond(PageRequest("GET", "/metrics")).status == 503
    assert not (tmp_path / "shared").exists()
    assert requests(page(monitor)) == 1


def test_counts_do_not_fall_for_want_of_descriptors(monitor, monkeypatch):
    """A scrape that cannot read what others counted is no scrape: fewer counts would look like a restart."""
    serve(monitor)
    page(monitor)

    def exhausted(path, users=None):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(directories, "read_whole", exhausted)
        assert monitor.respond(PageRequest("GET", "/metrics")).status == 503
    assert requests(page(monitor)) == 1


@pytest.mark.parametrize("kind", ["owner", "archive", "worker"])
def test_counts_do_not_fall_where_reading_fails_for_a_while(workers_of, monkeypatch, kind):
    """A scrape fails rather than show fewer counts; if it goes on, what is sound is shown, and logged."""
    monitor = workers_of(living=1, dead=1)
    assert requests(page(monitor)) == 1 + 10 + 100
    read = directories.read_whole

    def fails(path, users=None):
        if path.name.endswith(kind) and f"-{os.getpid()}-" not in path.name:
            raise OSError(errno.EIO, "Input/output error")
        return read(path, users)

    with monkeypatch.context() as patch:
        patch.setattr(directories, "read_whole", fails)
        assert monitor.respond(PageRequest("GET", "/metrics")).status == 503
        patch.setattr(pool, "_PASSING", 0.0)
        assert requests(page(monitor)) == {"owner": 1, "archive": 11, "worker": 101}[kind]
    assert requests(page(monitor)) == 111


def test_new_workers_on_a_full_disk_show_the_dead_alone(workers_of, monkeypatch):
    """What each of them counts nobody else could know: the sums would go up and down with who is asked."""
    monitor = workers_of(dead=1)
    page(monitor)
    for path in monitor_files(monitor, "worker"):
        path.unlink()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(directories, "write_whole", full)
        assert requests(page(monitor)) == 100
    assert requests(page(monitor)) == 101


def test_a_worker_says_what_it_counted_when_it_is_told_to(tmp_path):
    """`flush` is for a process that ends without a word; one that has served nothing is no worker yet."""
    monitor = HeapMonitor(settings(tmp_path / "shared", publish_interval=3600))
    monitor.flush()
    assert not (tmp_path / "shared").exists()
    serve(monitor)
    until(lambda: files(tmp_path / "shared", "bell"))
    serve(monitor, 4)
    monitor.flush()
    (file,) = files(tmp_path / "shared", "worker")
    assert decode(file.read_bytes()).counters.measured(Endpoint("GET", "/x")) == 5


def test_a_forked_child_closes_what_it_has_of_its_parents(monitor, tmp_path):
    """Or it would hold the directory for a service that is gone."""
    serve(monitor)
    until(lambda: files(tmp_path / "shared", "bell"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        held = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        os._exit(sum(path.startswith(str(tmp_path)) for path in held))
    assert os.waitpid(pid, 0)[1] == 0


def test_a_child_of_who_never_published_has_nothing_to_close(tmp_path, monkeypatch):
    """Neither of one that has served nothing, nor of one that has no pipe, nor of a monitor that is gone."""
    unstarted = HeapMonitor(settings(tmp_path / "unstarted"))
    unstarted._workers.forget()
    assert not (tmp_path / "unstarted").exists()
    started = HeapMonitor(settings(tmp_path / "started"))
    started._workers.start()
    started._workers._bell = None
    started._workers.forget()
    monkeypatch.setattr(publisher._publisher, "pools_of_parent", lambda: [lambda: None])
    monkeypatch.setattr(publisher, "_publisher", publisher._publisher)
    publisher.forget_in_child()
    serve(started)
    assert requests(page(started)) == 1
