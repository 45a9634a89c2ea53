"""Forks amid traffic, preloading, ends with requests in flight, and our own child beside sockets."""

import os
import socket

import pytest

FORKS = int(os.environ.get("HEAP_MIDDLEWARE_FORKS", "100"))
"""Over all four shapes; 1,000 in the soak."""
QUIET = ("-W", "ignore::DeprecationWarning")
"""3.12 and newer warn of forks beside threads."""

UNDER_LOAD = """
import os, threading, signal
service = serve(census="tracked", top_types=10)
over = threading.Event()

def load(n):
    while not over.is_set():
        assert service.ask(f"/{n}") == (200, b"hello")
        if n == 0:
            assert service.ask("/metrics")[0] == 200

def child():
    signal.alarm(60)  # one that is stuck ends by itself, and fails
    assert service.requests() == {}, service.requests()
    for _ in range(5):
        assert service.ask("/mine") == (200, b"hello")
    shown = {one.labels["route"]: one.value for one in service.samples() if one.name == "heap_endpoint_requests_total"}
    assert shown == {"/mine": 5.0}, shown
    own = [thread.name for thread in threading.enumerate() if thread.name == "heap_middleware-publisher"]
    assert len(own) == 1, own  # started anew by the first request

service.ask("/metrics")  # first: anyio imports, and a child forked amid another thread's import waits for ever
threads = [threading.Thread(target=load, args=(n,), daemon=True) for n in range(4)]
for thread in threads:
    thread.start()
for _ in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            child()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
over.set()
for thread in threads:
    thread.join()
served = service.requests()
assert set(served) == {"/0", "/1", "/2", "/3"}, served
assert not any(service.monitor.own_figures().faults.values())
"""


@pytest.mark.once
def test_forks_under_load(run):
    """Forked amid four threads of requests and scrapes, each child serves and scrapes, and counts its own only."""
    run(UNDER_LOAD.replace("sys.argv[1]", f'"{FORKS // 4}"'), *QUIET)


def test_preloaded_and_frozen(run):
    """A master preloads, serves and freezes: workers do not count its requests, and know what is frozen."""
    run(
        """
        import gc, os
        kept = []
        service = serve(lambda path: kept.append({"a": path}) or b"hello", census="tracked", top_types=100_000)
        cls = type("Preloaded", (), {"__module__": "app"})
        loaded = [cls() for _ in range(500)]
        for _ in range(50):
            service.ask("/warm")
        gc.collect()
        gc.freeze()
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    assert service.requests() == {}
                    for _ in range(20):
                        service.ask("/served")
                    census = service.monitor.census()
                    assert census.frozen == gc.get_freeze_count() > 500
                    counted = {row.module: row.objects for row in census.rows}.get("app.Preloaded", 0)
                    assert counted == (500 if service.monitor.settings.attribution == "native" else 0), counted
                    totals = service.monitor.endpoints()
                    assert {(*endpoint, row.requests) for endpoint, row in totals.items()} == {("GET", "/served", 20)}
                    if service.monitor.settings.attribution == "native":
                        assert 20 <= totals["GET", "/served"].retained_objects <= 60
                    loaded.clear()
                    kept.clear()
                    assert service.samples()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert service.requests() == {"/warm": 50}
        """,
        *QUIET,
    )


@pytest.mark.parametrize(
    "how",
    ["sys.exit(0)", *(pytest.param(how, marks=pytest.mark.once) for how in ("pass", "os.kill(os.getpid(), 15)"))],
)
def test_an_end_with_requests_in_flight(run, how, tmp_path):
    """However the process ends amid requests and scrapes of daemon threads: status 0, and nothing on standard error."""
    run(
        f"""
        import os, signal, threading
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        busy = threading.Semaphore(0)

        def work(path):
            busy.release()
            return b"hello"

        service = serve(work, census="tracked", top_types=5, workers_dir={str(tmp_path)!r}, publish_interval=0.1)

        def load(n):
            while True:
                service.ask("/x")
                if n == 0:
                    service.monitor.respond(PageRequest("GET", "/metrics"))

        from heap_middleware.exposition.requests import PageRequest
        for n in range(4):
            threading.Thread(target=load, args=(n,), daemon=True).start()
        for _ in range(200):
            busy.acquire()
        {how}
        """
    )


@pytest.mark.accelerator
@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_our_child_leaves_sockets_alone(serve):
    """Twenty censuses in children, beside connections in all states: no byte is read, sent or lost, none is closed."""
    service = serve(census_process="fork")
    pairs = [socket.socketpair() for _ in range(20)]
    listener = socket.create_server(("127.0.0.1", 0))
    waiting = [socket.create_connection(listener.getsockname()) for _ in range(3)]
    for number, (ours, theirs) in enumerate(pairs):
        ours.sendall(b"%d for them" % number)
        theirs.sendall(b"%d for us" % number)
    descriptors = sorted(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert service.ask("/metrics")[0] == 200
    assert sorted(os.listdir("/proc/self/fd")) == descriptors
    for number, (ours, theirs) in enumerate(pairs):
        assert ours.recv(100) == b"%d for us" % number
        assert theirs.recv(100) == b"%d for them" % number
        ours.close()
        assert theirs.recv(100) == b""  # at once: nobody else holds it
        theirs.close()
    for one in waiting:
        accepted, _ = listener.accept()
        one.sendall(b"late")
        assert accepted.recv(100) == b"late"
        accepted.close()
        one.close()
    listener.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
