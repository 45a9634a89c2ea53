"""Which request allocated what is still alive: the C tracker, seen from Python."""

import asyncio
import gc
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc

import anyio.to_thread
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

POOLS = (asyncio.to_thread, anyio.to_thread.run_sync)
SIZE = 100  # of a bytes object's payload; 133 bytes with its header, and no free list holds it


def test_a_leak_is_counted_to_the_block(serving, retained):
    """What requests leave alive is counted exactly, in objects and bytes, and what dies later is taken off."""
    kept = []
    for _ in range(500):
        with serving(1):
            kept.append(bytes(SIZE))
            bytes(SIZE)
    objects, size = retained(1)
    assert 500 <= objects <= 502  # the list's buffer is one block
    assert size >= 500 * sys.getsizeof(kept[0])
    del kept[100:]
    assert 100 <= retained(1)[0] <= 102


def test_requests_that_keep_nothing_leave_nothing(tracker, serving, retained):
    """A clean endpoint has allocated much and retains nothing; it never gained anything either."""
    for _ in range(500):
        with serving(1):
            [bytes(SIZE) for _ in range(20)]
    assert retained(1)[0] <= 2  # a tracer of the tests' may keep a note
    gained, _, _, _, allocated, _ = tracker.snapshot()[1]
    assert gained <= 2
    assert allocated >= 500 * 20


def test_what_others_allocate_is_not_counted(serving, retained):
    """Allocations outside requests belong to nobody."""
    kept = [None] * 100
    with serving(1):
        pass
    for at in range(100):
        kept[at] = bytes(SIZE)
    assert retained(1) == (0, 0)


def test_concurrent_tasks_are_told_apart(tracker, retained):
    """Requests that run at the same time in one event loop, and their child tasks and threads, keep apart."""
    kept = {1: [None] * 400, 2: [None] * 1200, 3: []}
    places = {1: iter(range(400)), 2: iter(range(1200))}

    def keep(endpoint):
        kept[endpoint][next(places[endpoint])] = bytes(SIZE)

    async def child(endpoint):
        await asyncio.sleep(0)
        keep(endpoint)

    async def serve(endpoint):
        request = tracker.Request()
        request.enter()
        await asyncio.sleep(random.random() / 100)
        if endpoint == 1:
            keep(1)
        elif endpoint == 2:
            await asyncio.create_task(child(2))
            for to_thread in POOLS:
                await to_thread(keep, 2)
        else:
            [bytes(SIZE) for _ in range(5)]
        request.leave()
        request.finish(endpoint)

    async def main():
        # The pools' threads, which stay, are made by whoever needs them first: here by nobody's request.
        await asyncio.gather(*(to_thread(time.sleep, 0.05) for to_thread in POOLS for _ in range(40)))
        for _ in range(20):
            await asyncio.gather(*(serve(endpoint) for endpoint in (1, 2, 3) for _ in range(20)))

    asyncio.run(main())
    gc.collect()
    # Beside them, what the event loop and its threads keep of their last tasks; in development mode, tracebacks, too.
    more = 40 if not sys.flags.dev_mode else 400
    assert retained(1)[0] == pytest.approx(400, abs=more)
    assert retained(2)[0] == pytest.approx(1200, abs=more)
    assert retained(3)[0] <= more


def test_work_after_the_response_counts(tracker, retained):
    """A task that goes on after the response belongs to the route that started it."""
    kept = [None] * 50

    async def background(at):
        await asyncio.sleep(0.001)
        kept[at] = bytes(SIZE)

    async def main(endpoint):
        for at in range(50):
            request = tracker.Request()
            request.enter()
            task = asyncio.create_task(background(at))
            request.leave()
            request.finish(endpoint)
            tracker.snapshot()  # settled before the task allocates
            await task

    asyncio.run(main(2))  # in development mode, asyncio's tracebacks fill the cache of source lines
    asyncio.run(main(1))
    # It also formats tasks there, by looking up methods whose names CPython's type cache keeps.
    assert 50 <= retained(1)[0] <= (60 if not sys.flags.dev_mode else 450)


@pytest.mark.parametrize("interval", [16, 64])
def test_sampling_is_unbiased(tracker, retained, interval):
    """Recording one allocation in N, the sums are right on average."""
    found = []
    for _ in range(10):
        tracker.stop()
        tracker.start(262_144, interval, 0.01)
        kept = [None] * 8_000
        for at in range(8_000):
            request = tracker.Request()
            request.enter()
            kept[at] = bytes(SIZE)
            request.leave()
            request.finish(1)
        found.append(retained(1)[0])
    # A binomial count: its deviation over ten runs is sqrt(N / 80,000); six of them are allowed.
    assert sum(found) / 80_000 == pytest.approx(1, abs=6 * (interval / 80_000) ** 0.5)
    assert len(set(found)) > 5


def test_large_blocks_are_always_recorded(tracker, retained):
    """A block of 4 KiB is recorded however rarely others are."""
    tracker.stop()
    tracker.start(262_144, 1 << 20, 0.01)
    kept = [None] * 50
    for at in range(50):
        request = tracker.Request()
        request.enter()
        kept[at] = bytes(10_000)
        request.leave()
        request.finish(1)
    assert retained(1) == (50, 50 * sys.getsizeof(kept[0]))


def test_memory_is_bounded(tracker, retained):
    """At the limit half of the records go and the others count twice; the sums stay right on average."""
    found = []
    tracker.stop()
    tracker.locate(0, [])  # another test's table of lines is not meant
    for _ in range(20):
        tracker.stop()
        tracker.start(1_000, 1, 0.01)
        kept = [None] * 8_000
        for at in range(8_000):
            request = tracker.Request()
            request.enter()
            kept[at] = bytes(SIZE)
            request.leave()
            request.finish(1)
            assert tracker.statistics()["records"] <= 1_000
        found.append(retained(1)[0])
        del kept
        assert abs(retained(1)[0]) == 0
    assert sum(found) / 160_000 == pytest.approx(1, abs=0.1)
    assert tracker.statistics()["memory"] < 2**20


def test_requests_that_nobody_asks_for_are_counted(tracker, serving, retained):
    """Twenty thousand requests between two snapshots, each with something that stays."""
    kept = []
    for _ in range(20_000):
        with serving(1):
            kept.append(bytes(100))
    assert retained(1)[0] == pytest.approx(20_000, abs=100)
    assert len(kept) == 20_000


def test_the_budget_sets_the_interval(tracker):
    """With automatic sampling, a busy service comes to record one allocation in many."""
    tracker.stop()
    tracker.start(262_144, 0, 0.01)
    assert tracker.statistics()["interval"] == 1
    deadline = threading.Event()
    timer = threading.Timer(1.0, deadline.set)
    timer.start()
    while not deadline.is_set():
        request = tracker.Request()
        request.enter()
        [bytes(SIZE) for _ in range(1000)]
        request.leave()
        request.finish(1)
    timer.join()
    assert tracker.statistics()["interval"] > 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("keep"), st.integers(0, 30), st.integers(60, 9_000)),
        st.tuples(st.just("drop"), st.integers(0, 30)),
        st.tuples(st.just("enter"), st.integers(1, 5)),
        st.tuples(st.just("leave")),
        st.tuples(st.just("snapshot")),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_an_independent_bookkeeper_agrees(tracker, steps):
    """Random programs of nested requests that keep and drop objects: the tracker agrees with exact bookkeeping."""
    tracker.stop()
    tracker.start(262_144, 1, 0.01)
    slots, owners, nested, expected = [None] * 31, [0] * 31, [], [[0, 0] for _ in range(6)]
    for step in steps:
        what = step[0]
        if what == "enter":
            request = tracker.Request()
            request.enter()
            nested.append((request, step[1]))
        elif what == "leave" and nested:
            request, endpoint = nested.pop()
            request.leave()
            request.finish(endpoint)
        elif what == "snapshot":
            tracker.snapshot()
        elif what in ("keep", "drop"):
            at = step[1]
            if slots[at] is not None:
                expected[owners[at]][0] -= 1
                expected[owners[at]][1] -= sys.getsizeof(slots[at])
                slots[at] = None
            if what == "keep":
                slots[at] = bytes(step[2])
                owners[at] = nested[-1][1] if nested else 0
                expected[owners[at]][0] += 1
                expected[owners[at]][1] += sys.getsizeof(slots[at])
    while nested:
        request, endpoint = nested.pop()
        request.leave()
        request.finish(endpoint)
    rows = tracker.snapshot()
    for endpoint in range(1, 6):
        gained, lost, gained_bytes, lost_bytes, _, _ = rows[endpoint] if endpoint < len(rows) else (0,) * 6
        # Beside the objects, the program's own lists and integers may have grown inside a request.
        assert 0 <= gained - lost - expected[endpoint][0] <= 12
        assert 0 <= gained_bytes - lost_bytes - expected[endpoint][1] <= 3_000


def run(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-P", *options, "-c", textwrap.dedent(code)],
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done


SERVE = """
from heap_middleware import _native as tracker
kept = [None] * 1000
def serve(count, endpoint=1):
    for at in range(count):
        request = tracker.Request()
        request.enter()
        kept[at] = bytes(100)
        request.leave()
        request.finish(endpoint)
def retained(endpoint=1):
    row = tracker.snapshot()[endpoint]
    return row[0] - row[1]
"""


@pytest.mark.parametrize(
    ("options", "environment"),
    [((), {"PYTHONMALLOC": "debug"}), ((), {"PYTHONMALLOC": "malloc"}), (("-X", "dev", "-W", "error"), {})],
    ids=["debug", "malloc", "dev"],
)
def test_other_allocators_below(options, environment):
    """With another allocator below, the counts are the same."""
    run(
        SERVE
        + "tracker.start(10_000, 1, 0.01); serve(300); assert 300 <= retained() <= 303, retained(); tracker.stop()",
        *options,
        **environment,
    )


@pytest.mark.parametrize("order", ["before", "after", "between"])
def test_tracemalloc_beside(order):
    """tracemalloc may be started before or after the tracker and stopped in any order; allocations go on."""
    steps = {
        "before": "T.start(); start(); serve(100); T.stop(); churn(); stop(); churn()",
        "after": "start(); T.start(); serve(100); stop(); churn(); T.stop(); churn(); start(); stop()",
        "between": "start(); T.start(); serve(100); assert 100 <= retained() <= 103; T.stop(); serve(5); stop()",
    }[order]
    code = (
        SERVE
        + "import tracemalloc as T\n"
        + "start = lambda: tracker.start(10_000, 1, 0.01)\nstop = tracker.stop\n"
        + "churn = lambda: [bytearray(n) + b'x' for n in range(5000)]\n"
        + steps.replace("; ", "\n")
    )
    run(code)


def test_being_taken_out_of_the_chain_is_noticed():
    """When tracemalloc's end takes the hooks away, the statistics say so, and a new start hooks again."""
    run(
        SERVE
        + "import tracemalloc; tracemalloc.start(); tracker.start(10_000, 1, 0.01)\n"
        + "assert tracker.statistics()['intact']; tracemalloc.stop(); assert not tracker.statistics()['intact']\n"
        + "tracker.start(10_000, 1, 0.01); serve(50); assert 50 <= retained() <= 53"
    )


def test_a_forked_child_starts_from_zero():
    """A child that was forked in the middle of a request forgets the parent's objects and follows its own."""
    run(
        SERVE
        + """
import os
tracker.start(10_000, 1, 0.01)
serve(50)
request = tracker.Request(); request.enter()
child = os.fork()
if child == 0:
    tracker.reset()
    request.leave(); request.finish(2)
    del request
    kept[:] = [None] * 1000
    serve(20)
    os._exit(0 if 20 <= retained() <= 23 and retained(2) <= 2 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
request.leave(); request.finish(2)
assert 50 <= retained() <= 53
"""
    )


def test_forks_amid_the_requests_of_many_threads():
    """Forked while several threads are in requests, each child counts its own from zero and the parent counts on."""
    run(
        SERVE
        + """
import os, threading
tracker.start(100_000, 1, 0.01)
done = threading.Event()
others = [[None] * 1000 for _ in range(4)]
def work(mine):
    request = None
    while not done.is_set():
        for at in range(1000):
            request = tracker.begin()
            mine[at] = bytes(100)
            [{"n": [n]} for n in range(5)]
            request.end(3)
threads = [threading.Thread(target=work, args=(mine,), daemon=True) for mine in others]
for thread in threads: thread.start()
serve(50)
for _ in range(30):
    request = tracker.begin()
    child = os.fork()
    if child == 0:
        tracker.reset()
        request.end(2)
        kept[:] = [None] * 1000
        serve(20)
        # Of the others' requests nothing is left but what goes as their threads do.
        os._exit(0 if 20 <= retained() <= 23 and retained(2) <= 2 and tracker.statistics()["intact"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    request.end(2)
done.set()
for thread in threads: thread.join()
assert 50 <= retained() <= 53, retained()
assert 4000 <= retained(3) <= 4020, retained(3)
""",
        "-W",
        "ignore::DeprecationWarning",  # 3.12 and newer: of forks beside threads
    )


def test_start_and_stop_under_threads():
    """Started and stopped a thousand times while eight threads allocate, nothing breaks, and counts are right after."""
    run(
        SERVE
        + """
import sys, threading
sys.setswitchinterval(1e-5)  # most starts and stops happen in the middle of somebody's request
done = False
def churn():
    while not done:
        request = tracker.Request(); request.enter()
        [bytearray(n) + b"x" for n in range(50)]
        held = [{"n": n} for n in range(10)]
        held += [bytes(5000)] * 100
        request.leave(); request.finish(3)
threads = [threading.Thread(target=churn, daemon=True) for _ in range(8)]
for thread in threads: thread.start()
for turn in range(1000):
    tracker.start(1000, (1, 16, 0)[turn % 3], 0.01); serve(1); tracker.stop()
tracker.start(262_144, 1, 0.01)
serve(300)
done = True
for thread in threads: thread.join()
assert 300 <= retained() <= 303, retained()
assert abs(retained(3)) <= 10, retained(3)
figures = tracker.statistics()
assert figures["intact"] and figures["requests"] <= 1, figures
"""
    )


def test_exit_with_requests_in_flight():
    """The interpreter ends quietly while daemon threads are in the middle of requests."""
    run(
        SERVE
        + """
import threading, time
tracker.start(10_000, 1, 0.01)
def work():
    request = tracker.Request(); request.enter()
    while True: [bytes(100) for _ in range(100)]
for _ in range(4): threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
"""
    )


@pytest.mark.skipif(
    tracemalloc.is_tracing() and sys.version_info < (3, 13),
    reason="without us, too, 3.11 hangs there under tracemalloc, and 3.12 aborts at exit",
)
def test_a_subinterpreter_passes_through():
    """What a subinterpreter allocates in another thread is not recorded, and does no harm."""
    run(
        SERVE
        + """
import threading
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
tracker.start(10_000, 1, 0.01)
def other():
    number = interpreters.create()
    interpreters.run_string(number, "kept = [bytes(100) for _ in range(20000)]; del kept")
    interpreters.destroy(number)
thread = threading.Thread(target=other); thread.start()
serve(500)
thread.join()  # in 3.11 an interpreter cannot end beside a busy thread
assert 500 <= retained() <= 505, retained()
""",
        "-W",
        "ignore",
    )


def test_a_subinterpreter_cannot_load_it():
    """It says so, and pure Python serves there."""
    run(
        """
try:
    import _interpreters as interpreters
    number = interpreters.create("legacy")
except ImportError:
    import _xxsubinterpreters as interpreters
    number = interpreters.create(isolated=False)
from heap_middleware import _native
said = interpreters.run_string(number, '''
from heap_middleware import accelerator
assert accelerator.missing == "heap_middleware._native works in the main interpreter only", accelerator.missing
''')
assert said is None, said
""",
        "-W",
        "ignore",
        HEAP_MIDDLEWARE_REQUIRE_NATIVE="0",
    )


def test_sampling_beside_a_subinterpreter():
    """Estimates are not too high while another interpreter allocates, and large blocks are all recorded."""
    run(
        """
import threading
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
from heap_middleware import _native as tracker

def other():
    number = interpreters.create()
    interpreters.run_string(number, "import time; end = time.monotonic() + 3\\n"
                                    "while time.monotonic() < end: [str(n) for n in range(300)]")
    interpreters.destroy(number)

def allocated(interval, requests):
    tracker.start(262_144, interval, 0.01)
    for _ in range(requests):
        request = tracker.begin(); [bytes(50) for _ in range(50)]; request.end(1)
    found = tracker.snapshot()[1][4] / requests
    tracker.stop()
    return found

exact = allocated(1, 1_000)
thread = threading.Thread(target=other); thread.start()
estimate = allocated(16, 40_000)
tracker.start(262_144, 16, 0.01)
request = tracker.begin(); kept = [bytes(10_000) for _ in range(200)]; request.end(2)
large = tracker.snapshot()[2]
thread.join()
assert 0.7 < estimate / exact < 1.1, (estimate, exact)  # the other's steps may hide some of ours, never add any
assert large[2] >= 200 * 10_000, large
""",
        "-W",
        "ignore",
    )


def test_misuse_is_refused(tracker):
    """Wrong arguments are errors that say what is allowed."""
    with pytest.raises(ValueError, match="16 to 2"):
        tracker.start(1, 1, 0.01)
    with pytest.raises(TypeError, match="no arguments"):
        tracker.Request(1)
    request = tracker.Request()
    request.enter()
    with pytest.raises(RuntimeError, match="entered already"):
        request.enter()
    assert request.leave() is True
    assert request.leave() is False
    with pytest.raises(ValueError, match="endpoint is"):
        request.finish(10**7)
