"""Others in the same process: hooks of allocators, interpreters of their own, threads that Python knows nothing of."""

import itertools

import pytest

HOOKS = """
import _testcapi, ctypes, tracemalloc

class Others:
    # `set_nomemory` hooks all allocators; from so far on that it never strikes.
    start = {
        "tracemalloc": lambda: tracemalloc.start(5),
        "testcapi": lambda: _testcapi.set_nomemory(2**31 - 2, 2**31 - 1),
    }
    stop = {"tracemalloc": tracemalloc.stop, "testcapi": _testcapi.remove_mem_hooks}

service, kept = None, []

def start(name):
    global service
    if name == "ours":
        service = serve(lambda path: kept.append([path, bytes(100)]) or b"hello", census="tracked", top_types=20)
    else:
        Others.start[name]()

def stop(name):
    global service
    if name == "ours":
        service = None
        if serve.args[1] == "native":
            accelerator.native.stop()
    else:
        Others.stop[name]()

def churn():
    if service is not None:
        for _ in range(50):
            assert service.ask("/x") == (200, b"hello")
        assert service.ask("/metrics")[0] == 200
        assert service.requests()["/x"] % 50 == 0
    [bytearray(n) + b"x" for n in range(3_000)]
    kept.clear()
"""


@pytest.mark.parametrize("other", ["tracemalloc", pytest.param("testcapi", marks=pytest.mark.once)])
def test_hooks_started_and_stopped_in_any_order(run, other):
    """tracemalloc or another allocator's hooks, started before or after ours, stopped in any order: requests go on."""
    orders = [
        (starts, stops)
        for starts in itertools.permutations(("ours", other))
        for stops in itertools.permutations(("ours", other))
    ]
    run(
        HOOKS
        + f"""
for starts, stops in {orders!r}:
    for name in starts:
        start(name)
        churn()
    for name in stops:
        stop(name)
        churn()
start("ours")
for _ in range(30):
    service.ask("/after")
assert service.requests() == {{"/after": 30}}
if serve.args[1] == "native":
    assert 60 <= service.monitor.totals()["GET", "/after"].retained_objects <= 100
"""
    )


def test_interpreters_beside_us(run):
    """Other interpreters that allocate in threads of their own pass through, while we serve and scrape."""
    run(
        """
        import threading
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        kept = []
        service = serve(lambda path: kept.append(bytes(100)) or b"hello", census="tracked", top_types=20)
        over = threading.Event()

        def other():
            while not over.is_set():
                number = interpreters.create()
                interpreters.run_string(number, "kept = [{'n': [bytes(100)]} for _ in range(5000)]; del kept")
                interpreters.destroy(number)

        thread = threading.Thread(target=other)
        thread.start()
        for _ in range(300):
            assert service.ask("/x") == (200, b"hello")
        for _ in range(5):
            assert service.ask("/metrics")[0] == 200
        over.set()
        thread.join()
        assert service.requests() == {"/x": 300}
        if serve.args[1] == "native":
            assert 300 <= service.monitor.totals()["GET", "/x"].retained_objects <= 340
        """,
        "-W",
        "ignore",
    )


def test_threads_without_a_python_state(run):
    """Threads of C that use Python's raw allocator, and have no Python state, pass through."""
    run(
        """
        import ctypes, threading
        c, python = ctypes.CDLL(None), ctypes.pythonapi
        create, join = c.pthread_create, c.pthread_join
        create.argtypes = [ctypes.POINTER(ctypes.c_ulong), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        join.argtypes = [ctypes.c_ulong, ctypes.POINTER(ctypes.c_void_p)]
        malloc, free = (ctypes.cast(one, ctypes.c_void_p) for one in (python.PyMem_RawMalloc, python.PyMem_RawFree))

        def in_c(function, argument):
            # A new thread whose whole work is that call: no frame, no state, no lock.
            number, result = ctypes.c_ulong(), ctypes.c_void_p()
            assert create(number, None, function, argument) == 0
            assert join(number, result) == 0
            return result.value

        kept = []
        service = serve(lambda path: kept.append(bytes(100)) or b"hello", census="tracked", top_types=20)
        served = threading.Thread(target=lambda: [service.ask("/x") for _ in range(500)])
        served.start()
        blocks = []
        for size in range(1, 400):
            blocks.append(in_c(malloc, size * 37))
            ctypes.memset(blocks[-1], 0x5A, size * 37)
            if size % 2:
                in_c(free, blocks.pop(0))
            if size % 100 == 0:
                assert service.ask("/metrics")[0] == 200
        while blocks:
            in_c(free, blocks.pop())
        served.join()
        assert service.requests() == {"/x": 500}
        if serve.args[1] == "native":
            assert 500 <= service.monitor.totals()["GET", "/x"].retained_objects <= 540
        """
    )
