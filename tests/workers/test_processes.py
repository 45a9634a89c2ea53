"""Which process is meant, and which processes are one service."""

import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heap_middleware.workers import processes
from heap_middleware.workers.processes import running, this_process

pytestmark = pytest.mark.one_python

SCRIPT = """
import multiprocessing, os, sys
from heap_middleware.workers.processes import service

def tell(queue):
    queue.put(service())

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.SimpleQueue()
    told = []
    for _ in range(2):
        child = context.Process(target=tell, args=(queue,))
        child.start()
        told.append(queue.get())
        child.join()
    print(told[0] == told[1], service().pid == os.getpid(), told[0] == service())
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_one_master_are_one_service(method, tmp_path):
    """However a master makes its workers. Which Python program started the master, as here, does not matter."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script, method], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True"] * 3, done.stderr


def test_a_child_of_a_forked_worker_belongs_to_its_service(tmp_path):
    """A helper that a worker forks is not the master of a service of its own."""
    code = """
import os
from heap_middleware.workers.processes import service
master = os.getpid()
if os.fork() == 0:
    if os.fork() == 0:
        os._exit(0 if service().pid == master else 1)
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, cwd=tmp_path).returncode == 0


def test_a_master_of_another_user_is_found_by_its_command_line(monkeypatch):
    """Where a worker may not see its master's memory layout, because it has become another user."""
    stat = processes._stat

    def hidden(pid):
        fields = stat(pid)
        if fields is not None and pid != os.getpid():
            fields[25] = b"0"
        return fields

    monkeypatch.setattr(processes, "_stat", hidden)
    code = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as other:
        while Path(f"/proc/{other.pid}/cmdline").read_bytes().split(b"\0")[1:2] != [b"-c"]:
            time.sleep(0.01)
        assert not processes._share_memory_layout(os.getpid(), other.pid)
        monkeypatch.setattr(processes, "_command", lambda pid: b"gunicorn")
        assert processes._share_memory_layout(os.getpid(), other.pid)


@pytest.fixture
def hide(monkeypatch):
    """`hide(pid)`: as under `hidepid` a process of another user is not shown, and may not be signalled."""
    stat, kill, hidden = processes._stat, os.kill, set()

    def killed(pid, number):
        if pid in hidden and number == 0:
            raise PermissionError
        kill(pid, number)

    monkeypatch.setattr(processes, "_stat", lambda pid: None if pid in hidden else stat(pid))
    monkeypatch.setattr(os, "kill", killed)
    return hidden.add


HIDEPID = """
import os, subprocess, sys
from heap_middleware.workers.processes import running, service

def ask(pid):
    try:
        return running(pid)
    except OSError as error:
        return "hidden"

subprocess.run(["mount", "-o", "remount,hidepid=" + sys.argv[1], "/proc"], check=True)
for _ in range(2):
    if os.fork() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        print(service().pid, service().can_be_seen, ask(os.getppid()), ask(999), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.parametrize("hidepid", ["1", "2"])
def test_workers_that_may_not_see_their_master_are_one_service(hidepid, tmp_path):
    """With a real /proc that hides, workers that gave up root have one master, and do not take it for dead."""
    command = ["unshare", "--mount", "--pid", "--fork", "--mount-proc"]
    if os.geteuid() != 0 or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("only root can make namespaces")
    done = subprocess.run([*command, sys.executable, "-P", "-c", HIDEPID, hidepid], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["1 False hidden None"] * 2, done.stderr


def test_what_is_not_shown_is_not_taken_for_dead(hide):
    """Where a user is shown nobody else's processes, one that runs is not said to be gone."""
    with subprocess.Popen(["sleep", "60"]) as other:
        hide(other.pid)
        with pytest.raises(PermissionError, match=f"does not show the process {other.pid}"):
            running(other.pid)
        other.kill()
        other.wait()


@pytest.mark.parametrize("apart", [False, True])
def test_a_master_that_is_not_shown_is_known_by_its_group(hide, monkeypatch, apart):
    """Workers are in its process group; a supervisor puts what it starts into one of its own, and is no master."""
    parent = os.getppid()
    hide(parent)
    monkeypatch.setattr(os, "getpgid", lambda pid: pid if apart else 7)
    monkeypatch.setattr(processes, "_is_spawned", lambda pid: False)
    found = processes.service.__wrapped__()
    assert found.pid == (os.getpid() if apart else parent)
    assert found.started != ""


def test_a_host_may_be_renamed(monkeypatch):
    """It stays the same host, as long as it is not started anew."""
    before = processes._home.__wrapped__()
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "renamed")
    assert processes._home.__wrapped__() == before
    monkeypatch.setattr(processes, "_boot", lambda: "")
    assert processes._home.__wrapped__().endswith(" renamed")


def test_whoever_cannot_be_looked_at_now_can_be_later(monkeypatch):
    """Out of descriptors, say: it is an error to ask, and nobody becomes somebody else by it."""

    def exhausted(pid):
        raise OSError(errno.EMFILE, "Too many open files")

    before = this_process(), processes.service.__wrapped__()
    with monkeypatch.context() as patch:
        patch.setattr(processes, "_stat", exhausted)
        for ask in (this_process, processes.service.__wrapped__, lambda: running(os.getppid())):
            with pytest.raises(OSError, match="Too many open files"):
                ask()
    assert (this_process(), processes.service.__wrapped__()) == before


def test_root_may_signal_what_it_is_not_shown(monkeypatch):
    """What runs is not taken for dead, whoever asks; what ended that very moment is."""
    stat, shown = processes._stat, iter([None, None, None])
    monkeypatch.setattr(processes, "_stat", lambda pid: next(shown, stat(pid)))
    with pytest.raises(PermissionError, match="does not show"):
        running(os.getpid())
    assert running(os.getpid()) is None  # it was not there when it was looked for, and is now


def test_what_multiprocessing_made_is_no_service_of_its_own(monkeypatch):
    """Its parent is part of it, whichever program that runs."""
    monkeypatch.setattr(processes.multiprocessing, "parent_process", lambda: "the parent")
    assert processes.service.__wrapped__().pid != os.getpid()


def test_one_that_is_gone_is_like_no_other():
    """Two workers whose masters cannot be looked at any longer are not of one service by that."""
    gone = []
    for _ in range(2):
        with subprocess.Popen(["true"]) as child:
            gone.append(child.pid)
    assert processes._command(gone[0]) != processes._command(gone[1])


def test_a_system_that_tells_neither_namespace_nor_boot(monkeypatch, tmp_path):
    """The name of the host tells its processes from those of others."""
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    monkeypatch.setattr(processes, "_boot", processes._boot.__wrapped__)
    assert processes._home.__wrapped__() == f"one {socket.gethostname()}"


def test_a_ps_that_hangs_says_nothing(monkeypatch):
    """Nobody is taken for dead because the machine is too busy to tell."""

    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(processes, "_has_proc", lambda: False)
    monkeypatch.setattr(processes.subprocess, "run", hang)
    with pytest.raises(OSError, match="timed out after 5 seconds"):
        running(os.getpid())


@pytest.fixture(params=["proc", "ps"])
def source(request, monkeypatch):
    """Where it is looked up: Linux has /proc, others ask ps."""
    if request.param == "ps":
        monkeypatch.setattr(processes, "_has_proc", lambda: False)


@pytest.mark.usefixtures("source")
def test_processes_are_told_apart():
    """A process that ended does not run, whether or not its parent has noticed."""
    child = subprocess.Popen(["sleep", "60"])
    found = running(child.pid)
    assert found == running(child.pid)
    assert found != this_process() == running(os.getpid())
    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert running(child.pid) is None
    child.wait()
    assert running(child.pid) is None


@pytest.mark.usefixtures("source")
def test_forks_are_told_from_programs_that_were_started():
    """A fork goes on in its parent's program."""
    other = subprocess.Popen(["sleep", "60"])
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        time.sleep(60)
        os._exit(0)
    try:
        assert processes._parent(child) == processes._parent(other.pid) == os.getpid()
        assert processes._share_memory_layout(child, os.getpid())
        assert not processes._share_memory_layout(other.pid, os.getpid())
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        other.kill()
        other.wait()


def test_where_nobody_can_be_asked_nobody_is_dead(monkeypatch):
    """Without /proc and ps it is an error to ask, and each process is still a worker of its service."""
    monkeypatch.setattr(processes, "_has_proc", lambda: False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(OSError):
        running(os.getpid())
    assert this_process().pid == processes.service.__wrapped__().pid == os.getpid()
