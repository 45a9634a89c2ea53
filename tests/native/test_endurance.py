"""No growth of our own memory, whatever the number of requests.

A cut of it is part of the suite; `tox run -e native-soak` serves ten million.
"""

import os
import subprocess
import sys
import textwrap

import pytest

REQUESTS = int(os.environ.get("HEAP_MIDDLEWARE_SOAK_REQUESTS", "300000"))
GROWTH = 1024 * 1024
"""Bytes of the process that may come and go by chance: an allocator's pages. A slot is 56 bytes, a Request 64: one lost
in ten requests is noticed in the suite, one in four hundred in the soak."""

SERVE = """
    import gc, sys
    from heap_middleware import _native as tracker

    def private():
        with open("/proc/self/smaps_rollup") as lines:
            return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

    class Response:
        def __iter__(self):
            return iter((b"part",))

    kept, response = [None] * 1000, Response()

    def serve(count):
        held = tracker.begin()
        for at in range(count):
            request = tracker.begin()
            if at % 100 < 50:
                kept[at % 1000] = [at]  # for as long as a thousand requests
            if at % 4 == 0:  # ends under the next one
                held.end(1 + at % 50)
                held = request
            elif at % 4 == 1:
                for _ in tracker.body(response, request, lambda _: request.end(1 + at % 50)):
                    pass
            else:
                request.end(1 + at % 50)
            if at % 20_000 == 0:  # a scrape
                tracker.snapshot()
        held.end(1)
        kept[:] = [None] * len(kept)

    requests, interval = int(sys.argv[1]), int(sys.argv[2])
    tracker.start(65_536, interval, 0.01)
    serve(100_000)
    gc.collect()
    tracker.snapshot()
    before, bytes_before = tracker.statistics(), private()
    serve(requests)
    gc.collect()
    tracker.snapshot()
    after, bytes_after = tracker.statistics(), private()
    print(after["memory"] - before["memory"], after["requests"] - before["requests"], bytes_after - bytes_before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="reads the process's memory from /proc")
@pytest.mark.parametrize("interval", [1, 64])
def test_any_number_of_requests_takes_no_memory(interval):
    """Hundreds of thousands of requests later, tables, slots and the process are as large as before."""
    command = [sys.executable, "-P", "-c", textwrap.dedent(SERVE), str(REQUESTS), str(interval)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + REQUESTS / 5_000)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    tables, slots, process = map(int, done.stdout.split())
    assert tables == 0
    assert slots <= 2
    assert process < GROWTH
