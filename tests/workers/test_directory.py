"""What can be wrong with the directory and with the files in it; what is sound is used all the same."""

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.workers import directory as module
from heap_middleware.workers import files
from heap_middleware.workers.counters import Counters
from heap_middleware.workers.directory import ForeignService, WorkersDirectory
from heap_middleware.workers.hold import Hold, is_held
from heap_middleware.workers.processes import Process
from heap_middleware.workers.snapshot import Snapshot

pytestmark = pytest.mark.one_python

MASTER = Process(1, "noon", "space here")
GROUP = "0123abcd"
ROUTE = Endpoint("GET", "/")


class Host:
    """Processes that run, and the directory as each of them sees it."""

    def __init__(self, path):
        self.path = path
        self.running = {1: MASTER}
        self.rejected = []

    def worker(self, pid, service=MASTER, started="later", **options):
        process = self.running[pid] = Process(pid, started, service.home)
        return WorkersDirectory(
            self.path,
            GROUP,
            service,
            process,
            lambda path, why: self.rejected.append((path.name.partition("-")[2], why)),
            running=self.running.get,
            **options,
        )

    def publish(self, pid, requests=1, **options):
        directory = self.worker(pid, **options)
        counters = Counters.of({ROUTE: EndpointTotals(requests, requests)}, {})
        service = options.get("service", MASTER)
        directory.publish(Snapshot(service, self.running[pid], 0.0, counters))
        return directory

    def requests(self, directory):
        found = directory.gather().counters.endpoints()
        return found[ROUTE].requests if found else 0


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path / "made" / "on the way")


def damage(path, content):
    path.write_bytes(content)


def sparse(path):
    path.unlink()
    with path.open("wb") as file:
        file.truncate(65 << 20)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def folder(path):
    path.unlink()
    path.mkdir()


def of_somebody_else(path):
    os.chown(path, 12345, 12345)


def copy_of_the_third(path):
    (third,) = path.parent.glob(f"{GROUP}-3-*.worker")
    path.write_bytes(third.read_bytes())


HARM = {
    "empty": lambda path: damage(path, b""),
    "cut": lambda path: damage(path, path.read_bytes()[:-5]),
    "noise": lambda path: damage(path, b"\xff" * 1000),
    "huge": sparse,
    "pipe": pipe,
    "link": link,
    "folder": folder,
    "of another process": copy_of_the_third,
    "of another user": of_somebody_else,
}


def file_of(host, pid, kind="worker"):
    (path,) = host.path.glob(f"{GROUP}-{pid}-*.{kind}")
    return path


def test_each_worker_keeps_what_it_counted(host):
    """Beside the sum it is known how many requests each living worker served: verdicts weigh what it says by that."""
    first = host.publish(2, 3)
    host.publish(3, 40)
    found = first.gather()
    assert found.counters.measured(ROUTE) == 43
    assert sorted(said.counters.measured(ROUTE) for said in found.workers) == [3, 40]
    assert {said.counters.measured(Endpoint("GET", "/unknown")) for said in found.workers} == {0}


@pytest.mark.parametrize("harm", HARM)
def test_a_file_that_is_no_good_costs_only_itself(host, harm):
    """One worker's file is spoiled: the others are shown, and it is reported once, by one of them."""
    if harm == "of another user" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    mine = host.publish(4, 100)
    host.publish(2, 10)
    host.publish(3, 1)
    spoiled = file_of(host, 2)
    HARM[harm](spoiled)
    descriptors = os.listdir("/proc/self/fd")
    for directory in (mine, host.worker(3), mine):
        assert host.requests(directory) == 101
    assert [name for name, _ in host.rejected] == [spoiled.with_suffix(".bad").name.partition("-")[2]]
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


def test_a_spoiled_file_is_good_again_once_it_is_written_anew(host):
    """The worker itself writes its file again, and counts again."""
    mine = host.publish(4, 100)
    spoiled = host.publish(2, 10)
    damage(file_of(host, 2), b"")
    assert host.requests(mine) == 100
    host.publish(2, 11)
    assert host.requests(mine) == 111
    damage(file_of(host, 2), b"!")
    assert host.requests(mine) == 100
    assert len(host.rejected) == 2
    assert spoiled.file("bad").read_bytes() == b"!"  # to be looked at


def test_spoiled_files_of_the_dead_are_swept_away(host):
    """So are their pipes, and what they were writing when they died."""
    mine = host.publish(4, 100)
    dead = host.publish(2, 10)
    damage(file_of(host, 2), b"")
    os.mkfifo(dead.file("bell"))
    dead.file("new").write_bytes(b"half a fi")
    (host.path / "a file of somebody's").touch()
    del host.running[2]
    mine.fold()
    assert host.requests(mine) == 100
    mine.fold()  # the file that was put aside stays till then
    assert sorted(path.suffix for path in host.path.iterdir()) == ["", "", "", ".archive", ".worker"]
    assert len(host.rejected) == 1


def test_a_spoiled_archive_costs_the_dead(host):
    """What the dead counted is lost with the archive, the living are shown, and the next dead are archived again."""
    mine = host.publish(4, 100)
    host.publish(2, 10)
    del host.running[2]
    mine.fold()
    assert host.requests(mine) == 110
    damage(host.path / f"{GROUP}.archive", b"nonsense")
    assert host.requests(mine) == 100
    host.publish(3, 1)
    del host.running[3]
    mine.fold()
    assert host.requests(mine) == 101
    assert len(host.rejected) == 1


def test_files_are_for_their_owner_only(host):
    """Nobody else can read what is in the directory."""
    mine = host.publish(2)
    host.publish(3)
    del host.running[3]
    mine.fold()
    assert {oct(path.stat().st_mode & 0o777) for path in host.path.iterdir()} == {"0o600"}
    assert host.path.stat().st_mode & 0o777 == 0o700


def test_a_full_disk_costs_what_is_new(host):
    """What could not be written is missing, what was there stays, the dead are shown though they cannot be archived."""
    mine = host.publish(2, 10)
    host.publish(3, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError):
            host.publish(2, 20)
        del host.running[3]
        with pytest.raises(OSError):
            mine.fold()
        assert host.requests(mine) == 11
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(host.path.glob("*.new")) == list(host.path.glob("*.fold")) == []
    mine.fold()
    assert host.requests(host.publish(2, 20)) == 21


def test_what_nobody_would_read_is_not_written(tmp_path, monkeypatch):
    """A worker that has more to say than others would read says nothing new; what it said stays."""
    path = tmp_path / "worker"
    files.write_whole(path, b"before", tmp_path / "new")
    monkeypatch.setattr(files, "_MAX_BYTES", 100)
    with pytest.raises(OSError, match="101 bytes are more than others would read, 100"):
        files.write_whole(path, b"x" * 101, tmp_path / "new")
    assert files.read_whole(path) == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_dead_worker_that_cannot_be_read_is_archived_later(host, monkeypatch):
    """Its file stays till then, and is complained of once; the other dead are archived."""
    mine = host.publish(2, 1)
    host.publish(3, 10)
    host.publish(4, 100)
    sound, read_whole = file_of(host, 4), files.read_whole

    def fail(path, users=None):
        if path == sound:
            raise OSError(errno.EIO, "Input/output error")
        return read_whole(path)

    del host.running[3], host.running[4]
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_whole", fail)
        for _ in range(3):
            mine.fold()
        assert host.requests(mine) == 11
    assert [why for _, why in host.rejected] == ["it cannot be read: Input/output error"]
    assert host.requests(mine) == 111
    mine.fold()
    assert host.requests(mine) == 111
    assert [path.name for path in host.path.glob("*.worker")] == [mine.file("worker").name]


def test_a_directory_that_vanishes_is_made_again(host):
    """Whoever writes next makes it; nobody fails."""
    mine = host.publish(2, 10)
    for path in host.path.iterdir():
        path.unlink()
    host.path.rmdir()
    with pytest.raises(FileNotFoundError):
        mine.others()
    assert host.requests(mine) == 0
    assert host.requests(host.publish(3, 1)) == 1


@pytest.fixture
def emptied(host):
    """A directory of three workers and one that is dead, with one of which has read all, after it was removed."""
    mine, sibling = host.publish(2, 10), host.publish(4, 20)
    host.publish(5, 40)
    host.publish(3, 7)
    del host.running[3]
    mine.fold()
    assert host.requests(mine) == 77
    for path in host.path.iterdir():
        path.unlink()
    host.path.rmdir()
    return mine, sibling


def say(host, directory, pid, requests):
    directory.publish(Snapshot(MASTER, host.running[pid], 0.0, Counters.of({ROUTE: EndpointTotals(requests)}, {})))


@pytest.mark.parametrize("first", ["who has read it", "a sibling"])
def test_counts_outlive_the_directory(host, emptied, first):
    """Who has read what is missing writes it anew, and says so, whoever makes the directory; nobody counts twice."""
    mine, sibling = emptied
    del host.running[5]  # before it could say it again
    if first == "a sibling":
        say(host, sibling, 4, 21)
    say(host, mine, 2, 11)
    assert host.requests(mine) == (79 if first == "a sibling" else 78)
    assert [why for _, why in host.rejected] == [
        f"{2 if first == 'a sibling' else 3} files were removed; what they last said is written anew"
    ]
    say(host, sibling, 4, 22)
    mine.fold()
    assert host.requests(mine) == host.requests(sibling) == 80
    assert len(host.rejected) == 1
    assert {path.suffix for path in host.path.iterdir()} == {"", ".archive", ".worker"}


def test_what_a_sibling_says_that_very_moment_stays(host, emptied, monkeypatch):
    """It is newer than what another remembers."""
    mine, sibling = emptied
    say(host, mine, 2, 11)
    link = os.link

    def late(scratch, path):
        if f"-{host.running[4].tag}" in path.name:
            say(host, sibling, 4, 21)
        link(scratch, path)

    monkeypatch.setattr(os, "link", late)
    assert host.requests(mine) == 79


def test_an_archive_that_was_begun_anew_gets_what_was_in_the_one_before(host, emptied):
    """A worker died and was archived before anybody who remembers was asked."""
    mine, sibling = emptied
    say(host, sibling, 4, 21)
    host.publish(6, 3)
    del host.running[6], host.running[5]
    sibling.fold()
    say(host, mine, 2, 11)
    assert host.requests(mine) == host.requests(sibling) == 11 + 21 + 3 + 40 + 7
    assert host.requests(mine) == 82


def test_an_archive_alone_that_is_removed_is_written_anew(host):
    """By a worker that has read it."""
    mine = host.publish(2, 10)
    host.publish(3, 7)
    del host.running[3]
    mine.fold()
    assert host.requests(mine) == 17
    next(host.path.glob("*.archive")).unlink()
    assert host.requests(mine) == 17
    assert len(host.rejected) == 1


def test_a_scrape_fails_where_it_could_not_be_written_anew(host, emptied, monkeypatch):
    """While others have the lock: it is tried again the next time, and fewer counts are not shown meanwhile."""
    mine, sibling = emptied
    say(host, mine, 2, 11)
    monkeypatch.setattr(module, "_TAKE_WAIT", 0.05)
    with (host.path / "lock").open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            mine.gather(patient=True)
    assert mine.gather(patient=True).counters.endpoints()[ROUTE].requests == 78
    # The siblings have all of it by now: there is nothing left to write.
    host.requests(sibling)
    assert len(host.rejected) == 1


def test_who_remembers_nothing_of_value_writes_nothing(host):
    """A removed directory, and all who were read have said it again: nothing is written, nothing is told."""
    mine, sibling = host.publish(2, 10), host.publish(4, 20)
    assert host.requests(mine) == 30
    for path in host.path.iterdir():
        path.unlink()
    say(host, sibling, 4, 21)
    say(host, mine, 2, 11)
    assert host.requests(mine) == 32
    assert host.rejected == []


def test_the_archive_has_meanwhile_what_is_remembered_of_a_sibling(host):
    """It said its last word into the directory that was made anew, and was archived there."""
    mine, sibling = host.publish(2, 10), host.publish(4, 20)
    assert host.requests(mine) == 30
    for path in host.path.iterdir():
        path.unlink()
    say(host, sibling, 4, 21)
    other = host.publish(5, 1)
    del host.running[4]
    other.fold()
    say(host, mine, 2, 11)
    assert host.requests(mine) == 33
    assert host.rejected == []


def test_root_does_not_take_it_from_another_user(host):
    """A shell of root's with the service's environment stays out, as any other service does."""
    host.publish(2, 10)
    owner = host.path / "owner"
    os.chown(owner, 12345, 12345)
    other = Process(9, "noon", MASTER.home)
    host.running[9] = other
    with pytest.raises(ForeignService):
        host.publish(9, 1, service=other)
    assert owner.stat().st_uid == 12345
    assert host.rejected == []


def test_a_volume_may_show_another_user(host, monkeypatch):
    """As network drives do: what it shows for ours is ours."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    mine = host.publish(2, 10)
    host.publish(3, 7)
    assert host.requests(mine) == 17
    assert host.rejected == []


def test_files_of_other_versions_are_swept_away_once_nobody_holds_them(tmp_path):
    """During a reload both live, each in its own directory; a fresh service leaves nothing of the old one."""
    new, old = Host(tmp_path / "format-9"), Host(tmp_path / "format-8")
    living = old.publish(2, 10)
    (tmp_path / "format-theirs").mkdir()
    (tmp_path / "format-theirs" / "file").touch()
    (tmp_path / "format-file").touch()
    (tmp_path / "format-link").symlink_to(old.path)
    assert new.requests(new.publish(3, 1)) == 1
    assert old.requests(living) == 10
    del living
    for path in new.path.iterdir():
        path.unlink()
    assert new.requests(new.publish(4, 1)) == 1
    kept = ["format-9", "format-file", "format-link", "format-theirs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    assert (tmp_path / "format-theirs" / "file").exists()


def test_threads_hold_it_once(host):
    """Whoever scrapes looks whether it is held: no descriptor is lost or closed twice."""
    mine = host.publish(2, 10)
    before, raised = len(os.listdir("/proc/self/fd")), []

    def scrape():
        try:
            for _ in range(100):
                mine.gather()
        except OSError as error:
            raised.append(error)

    threads = [threading.Thread(target=scrape) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        (host.path / "owner").unlink(missing_ok=True)
    assert raised == []
    mine.gather()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_what_was_removed_is_written_anew_later(host, emptied, monkeypatch):
    """Somebody stands still with the lock in hand: the scrape shows what is there, the next one all of it."""
    mine, _ = emptied
    say(host, mine, 2, 11)
    monkeypatch.setattr(module, "_TAKE_WAIT", 0.05)
    with (host.path / "lock").open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert host.requests(mine) == 11
    assert host.requests(mine) == 78


def test_another_owner_file_alone_changes_nothing(host):
    """It was damaged, say: the dead that were archived since are not counted again from memory."""
    mine = host.publish(2, 10)
    host.publish(3, 7)
    assert host.requests(mine) == 17
    del host.running[3]
    other = host.publish(4)
    other.fold()
    for death in range(300):  # more than the archive keeps the names of
        host.publish(5, 0, started=str(death))
        del host.running[5]
        other.fold()
    (host.path / "owner").unlink()
    assert host.requests(mine) == 18
    assert host.rejected == []


def test_an_owner_that_cannot_be_looked_at_stays_the_owner(host):
    """Not seen is not dead: another service does not take the directory from it."""
    host.publish(2, 10)

    def hidden(pid):
        raise PermissionError

    other = Process(9, "noon", MASTER.home)
    with pytest.raises(ForeignService):
        WorkersDirectory(host.path, GROUP, other, other, print, running=hidden).gather()


def test_a_lost_owner_file_costs_nothing(host):
    """The files of a service stay its own."""
    mine = host.publish(2, 10)
    host.publish(3, 1)
    del host.running[3]
    mine.fold()
    (host.path / "owner").unlink()
    assert host.requests(mine) == 11


def test_another_service_stays_out(host):
    """As long as the first lives, the second is told so; then it sweeps away what the first left."""
    host.publish(2, 10)
    other = host.running[5] = Process(5, "noon", MASTER.home)
    for use in (lambda: host.publish(6, service=other), host.worker(6, service=other).gather):
        with pytest.raises(ForeignService, match="the process 1 on space here"):
            use()
    living, dead = file_of(host, 2).with_suffix(".bell"), host.path / f"{GROUP}-7-00000000.bell"
    for path in (living, dead):
        os.mkfifo(path)
    del host.running[1]
    assert host.requests(host.publish(6, 1, service=other)) == 1
    assert list(host.path.glob(f"{GROUP}-[27]-*")) == [living]


def test_two_workers_that_start_at_the_same_moment(host, monkeypatch):
    """One of them makes the directory the service's; the other finds that it is, and both are counted."""
    locked = module.locked

    def late(path, wait):
        monkeypatch.undo()
        host.publish(3, 1)
        return locked(path, wait)

    monkeypatch.setattr(module, "locked", late)
    assert host.requests(host.publish(2, 10)) == 11


def test_what_an_old_worker_writes_late_is_not_counted(host):
    """A worker of the service before, which looked whose the directory is just before that changed."""
    old = host.publish(2, 10)
    path = old.file("worker")
    content = path.read_bytes()
    del host.running[1]
    other = host.running[5] = Process(5, "noon", MASTER.home)
    mine = host.publish(6, 1, service=other)
    path.write_bytes(content)
    assert host.requests(mine) == 1
    assert [why for _, why in host.rejected] == ["it is that of another service, of the process 1"]
    with pytest.raises(ForeignService):
        host.publish(2, 11)
    del host.running[2]
    mine.fold()
    assert not path.exists()


@pytest.mark.parametrize("home", ["space there", "another here"])
def test_a_service_in_another_container_stays_out_while_the_first_lives(host, home):
    """Whether that lives cannot be seen: it does, as long as one of its workers holds the directory."""
    old = host.publish(2, 10)
    far = Process(1, "noon", home)
    host.running = {1: far}
    for _ in range(2):
        with pytest.raises(ForeignService):
            host.publish(2, 1, service=far)
    del old
    mine = host.publish(2, 1, service=far)
    assert host.requests(mine) == 1
    with pytest.raises(ForeignService):
        host.publish(3, 1)


def test_a_master_that_is_hidden_lives_as_long_as_its_workers(host):
    """Its process id says nothing then: whoever else has it."""
    hidden = MASTER._replace(started="hidden")
    old = host.publish(2, 10, service=hidden)
    assert host.requests(old) == 10
    with pytest.raises(ForeignService):
        host.publish(3)
    del old
    assert host.requests(host.publish(3, 1)) == 1


def test_a_directory_is_held_though_the_application_closes_all_descriptors(host):
    """As daemons do; what has the number of ours then is left alone."""
    old = host.publish(2, 10)
    far = Process(1, "noon", "space there")
    descriptor = old._hold._descriptor
    with open(os.devnull) as other:
        os.dup2(other.fileno(), descriptor)
    host.requests(old)
    assert os.fstat(descriptor).st_rdev == os.stat(os.devnull).st_rdev
    with pytest.raises(ForeignService):
        host.publish(5, 1, service=far)
    os.close(descriptor)
    os.close(old._hold._descriptor)
    host.requests(old)
    (host.path / "owner").unlink()
    host.publish(4)
    host.requests(old)
    with pytest.raises(ForeignService):
        host.publish(5, 1, service=far)


def test_there_may_be_nothing_to_hold(tmp_path):
    """Of a directory that was just removed; once it is made anew, it is held."""
    path = tmp_path / "owner"
    hold = Hold(path)
    hold.take()
    for _ in range(2):
        path.touch()
        hold.take()
        assert is_held(path)
        path.unlink()
        hold.take()
    path.touch()
    assert not is_held(path)


def test_who_asks_whether_it_is_held_disturbs_nobody(host):
    """A worker that cannot hold it at that moment goes on, and holds it the next time."""
    old = host.publish(2, 10)
    old._hold.close()
    with (host.path / "owner").open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert host.requests(old) == 10
        assert not is_held(host.path / "nowhere")
        assert is_held(host.path / "owner")
    assert not is_held(host.path / "owner")
    assert host.requests(old) == 10
    assert is_held(host.path / "owner")


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_what_cannot_be_read_for_a_while_is_not_thrown_away(host, monkeypatch, error):
    """No descriptors left, say: nothing is taken for gone, and all is there again afterwards."""
    mine = host.publish(2, 1000)
    host.publish(3, 10)
    del host.running[3]
    mine.fold()
    host.publish(4, 100)
    host.publish(5, 1)
    del host.running[5]

    def fail(path, users=None):
        raise OSError(error, "not now")

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_whole", fail)
        for act in (mine.fold, mine.gather, lambda: host.publish(2, 1001)):
            with pytest.raises(OSError, match="not now"):
                act()
    with monkeypatch.context() as patch:
        patch.setattr(mine, "_running", lambda pid: fail(pid))
        mine.fold()
        assert host.requests(mine) == 1111
    assert host.requests(mine) == 1111
    assert {said.process.pid for said in mine.gather().workers} == {2, 4}
    mine.fold()
    assert host.requests(host.publish(2, 2000)) == 2111
    assert host.rejected == []


def test_the_readable_do_not_stand_for_all(host, monkeypatch):
    """Out of descriptors in the midst of reading: that is an error, and no smaller sum."""
    mine = host.publish(2, 10)
    host.publish(3, 1)
    read_whole = files.read_whole

    def exhausted(path, users=None):
        if path == file_of(host, 3):
            raise OSError(errno.EMFILE, "Too many open files")
        return read_whole(path)

    monkeypatch.setattr(module, "read_whole", exhausted)
    with pytest.raises(OSError, match="Too many open files"):
        mine.gather()


def test_a_file_that_was_mended_meanwhile_is_not_put_aside(host, monkeypatch):
    """The worker writes its file anew while another finds out that it was damaged."""
    mine = host.publish(2, 10)
    host.publish(3, 1)
    damage(file_of(host, 3), b"nonsense")
    read_whole = files.read_whole

    def slowly(path, users=None):
        content = read_whole(path)
        if content == b"nonsense":
            host.publish(3, 2)
        return content

    monkeypatch.setattr(module, "read_whole", slowly)
    assert host.requests(mine) == 10
    assert host.requests(mine) == 12
    assert host.rejected == []


def test_of_two_who_find_a_damaged_file_one_reports_it(host, monkeypatch):
    """The other one sees that it has been put aside."""
    mine = host.publish(2, 10)
    host.publish(3, 1)
    damage(file_of(host, 3), b"nonsense")
    replace = os.replace

    def late(source, target):
        replace(source, target)
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", late)
    assert host.requests(mine) == 10
    assert host.rejected == []


def test_a_damaged_file_that_cannot_be_renamed_is_reported_once(host, monkeypatch):
    """It stays, and is left out each time."""
    mine = host.publish(2, 10)
    host.publish(3, 1)
    damage(file_of(host, 3), b"nonsense")

    def refused(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(module.os, "replace", refused)
    assert [host.requests(mine) for _ in range(3)] == [10] * 3
    ((_, why),) = host.rejected
    assert why.endswith("do not match their checksum, and it cannot be renamed: Operation not permitted")


def test_of_a_worker_that_is_gone_there_is_no_news(host):
    """Whoever waits for its answer waits no longer."""
    mine, other = host.publish(2), host.publish(3)
    tag = host.running[3].tag
    assert mine.news(tag) == mine.others()[tag]
    other.file("worker").unlink()
    assert mine.news(tag) is None
    assert mine.others() == {}


def test_what_cannot_be_removed_is_counted_once(host):
    """Hundreds of dead workers whose files stay for ever: each counts once, and is complained of once."""
    mine = host.publish(2, 1)
    for pid in range(1000, 1300):
        host.publish(pid, 1)
        del host.running[pid]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "remove", refuse)
        for _ in range(4):
            mine.fold()
            assert host.requests(mine) == 301
    assert len(host.rejected) == 300
    mine.fold()
    assert host.requests(mine) == 301


def refuse(path):
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_a_new_monitor_goes_on_where_the_one_before_left_off(host):
    """Of the same process, in the same place: what that published is known."""
    assert host.publish(2, 10).published().endpoints()[ROUTE].requests == 10
    assert host.worker(3).published() is None


def test_a_lock_that_is_held_for_ever_stops_nobody(host, monkeypatch):
    """A process that was stopped with the lock in hand: the others read and publish, and leave the dead to later."""
    mine = host.publish(2, 10)
    host.publish(3, 1)
    hold = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, 2); print(flush=True); input()"
    command = [sys.executable, "-c", hold, host.path / "lock"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        del host.running[3]
        mine.fold()
        assert len(list(host.path.glob("*.worker"))) == 2
        assert host.requests(host.publish(2, 20)) == 21
        monkeypatch.setattr(module, "_TAKE_WAIT", 0.1)
        (host.path / "owner").unlink()
        with pytest.raises(BlockingIOError, match="locked by another process"):
            host.publish(2, 30)
    finally:
        holder.communicate(b"\n")
    mine.fold()
    assert len(list(host.path.glob("*.worker"))) == 1


def test_a_path_that_is_none_is_an_error(tmp_path):
    """A directory below a file cannot be made."""
    (tmp_path / "file").touch()
    host = Host(tmp_path / "file" / "directory")
    with pytest.raises(OSError):
        host.publish(2)


def test_routes_are_bounded_over_all_workers(host):
    """Workers come and go with routes of their own: the archive has few of them, and every request counts."""
    for number in range(20):
        directory = host.worker(100 + number, max_routes=1)
        totals = {Endpoint("GET", f"/made/up/{number}/{n}"): EndpointTotals(1) for n in range(4)}
        directory.publish(Snapshot(MASTER, host.running[100 + number], 0.0, Counters.of(totals, {})))
        if number:
            del host.running[99 + number]
        directory.fold()
    found = directory.gather().counters.endpoints()
    assert sum(totals.requests for totals in found.values()) == 80
    assert len(found) == 4 + 1 + 4  # of the dead as many as four workers may have, and all of the living
    assert found[Endpoint("GET", "__other__")].requests == 72
