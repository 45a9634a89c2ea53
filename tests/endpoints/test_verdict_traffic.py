"""Whether a route leaks, on real traffic: requests through the middleware, real objects, automatic sampling."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "verdict_traffic.py"


@pytest.mark.once
@pytest.mark.accelerator
@pytest.mark.parametrize("interface", ["wsgi", "asgi"])
@pytest.mark.parametrize("concurrency", [1, 32])
def test_leaks_are_named_and_no_clean_route(interface, concurrency):
    """Objects, strings, buffers and tracebacks that stay are named, at about their number; caches are not."""
    command = [sys.executable, BENCHMARK, "--json", "--interface", interface, "--concurrency", str(concurrency)]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    print(found)
    assert found["alarms"] == {}
    assert len(found["named"]) == len(found["withdrawn"]) == 4
    # A thing has a dict and a string, a string is one, a buffer has its bytes apart; the sampling error is large.
    assert 1.5 < found["slopes"]["/leak_objects"] < 4.5
    assert 0.5 < found["slopes"]["/leak_strings"] < 2
    assert 1 < found["slopes"]["/leak_buffers"] < 3.5
    assert 0.4 < found["slopes"]["/leak_tracebacks"] < 3
