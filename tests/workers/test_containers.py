"""A directory that outlives the container in which a service ran, and the next one that finds it."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.one_python

UNSHARE = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
SCRIPT = """
import sys
from heap_middleware import HeapMonitor, HeapSettings
from heap_middleware.exposition.requests import PageRequest

monitor = HeapMonitor(HeapSettings(workers_dir=sys.argv[1], attribution="windows", census_min_interval=0))
for line in sys.stdin:
    with monitor.request("task", line.strip()):
        pass
    text = monitor.respond(PageRequest("GET", "/metrics")).body.decode()
    shown = [line for line in text.splitlines() if line.startswith("heap_endpoint_requests_total{")]
    print(sorted(line.partition('route="')[2] for line in shown), flush=True)
"""


class Container:
    """A service that is the first process of a namespace of its own."""

    def __init__(self, path):
        command = [*UNSHARE, sys.executable, "-P", "-c", SCRIPT, path]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def serve(self, name):
        """Serve a request; returns what is then shown."""
        self.process.stdin.write(f"{name}\n".encode())
        self.process.stdin.flush()
        return self.process.stdout.readline().decode().strip()

    def kill(self):
        """Of SIGKILL, as for want of memory; returns what it had to say."""
        self.process.kill()
        return self.process.communicate()[1].decode()


@pytest.fixture
def container(tmp_path):
    if os.geteuid() != 0 or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("no namespace can be made here")
    started = []

    def start():
        started.append(Container(tmp_path / "shared"))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def test_a_container_that_is_started_anew_takes_the_directory_at_once(container):
    """Nothing is inherited from the one that was killed, and nobody waits; one that goes on beside it is told so."""
    first = container()
    assert first.serve("first") == """['first"} 1.0']"""
    second = container()
    assert second.serve("second") == """['second"} 1.0']"""
    assert first.serve("first") == """['first"} 2.0']"""
    first.kill()
    assert second.serve("second") == """['second"} 2.0']"""
    assert second.kill().count("another service uses it") == 1
    third = container()
    assert third.serve("third") == """['third"} 1.0']"""
    assert third.kill() == ""
