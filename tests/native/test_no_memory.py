"""Memory runs out amid a request, at each of its allocations in turn.

HEAP_MIDDLEWARE_POINTS is how many allocations of a request are tried: 400 in full.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "no_memory.py"
POINTS = os.environ.get("HEAP_MIDDLEWARE_POINTS", "40")


def take(path, backend):
    return subprocess.run([sys.executable, SCRIPT, path, backend, POINTS], capture_output=True, text=True, timeout=300)


def survives():
    """Whether this Python lives on when it has no room for a frame: 3.12.1 and 3.13.0 do not, with us or without."""
    return sys.version_info < (3, 12) or take("bare", "windows").returncode == 0


@pytest.mark.parametrize("backend", ["windows", "native"])
@pytest.mark.parametrize("interface", ["wsgi", "asgi"])
def test_a_request_survives_each_allocation_that_fails(interface, backend):
    """My application sees a MemoryError at most; the next requests and scrapes work, and are counted right."""
    if not survives():
        pytest.skip("this Python ends by itself when memory runs out for a frame; 3.11 does not")
    said = take(interface, backend)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    print(found)
    assert 5 <= found["raised"] < int(POINTS)
