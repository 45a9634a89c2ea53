"""Whether a route leaks, on real traffic: requests through the middleware, real objects, automatic sampling."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "verdict_traffic.py"


def asked(backend, interface, concurrency):
    """What the benchmark found: leaks named and withdrawn, no clean route named."""
    command = [sys.executable, BENCHMARK, "--json", "--backend", backend, "--interface", interface]
    # Where lines are traced, a generator that waits has a frame object, which would be one object more.
    untraced = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    said = subprocess.run([*command, "--concurrency", str(concurrency)], capture_output=True, text=True, env=untraced)
    print(said.stdout)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert found["alarms"] == {}
    assert found["named"].keys() == found["withdrawn"].keys() == found["slopes"].keys()
    return found


@pytest.mark.once
@pytest.mark.accelerator
@pytest.mark.parametrize(("interface", "concurrency"), [("wsgi", 1), ("asgi", 32)])  # the benchmark asks all ways
def test_leaks_are_named_and_no_clean_route(interface, concurrency):
    """Objects, strings, buffers, classes, tasks and tracebacks that stay are named, at their number and its error."""
    found = asked("native", interface, concurrency)
    # A thing has a dict and a string, a string is one, a buffer has its bytes apart, a third of the requests makes a
    # class of nine, and a tenth an exception with its traceback.
    true = {"objects": 3, "strings": 1, "buffers": 2, "classes": 3.2, "tracebacks": 0.9}
    true["tasks"] = 1 if interface == "wsgi" else 11.5
    for name, objects in true.items():
        slope, error = found["slopes"][f"/leak_{name}"], found["errors"][f"/leak_{name}"]
        assert abs(slope - objects) < 4 * error + 0.15 * objects, (name, slope, error)
        assert error < slope / 2.576


@pytest.mark.once
def test_pure_python_names_leaks_and_no_clean_route():
    """By what the measured requests changed: exactly their number."""
    slopes = asked("windows", "asgi", 1)["slopes"]
    assert slopes["/leak_objects"] == pytest.approx(3, abs=0.1)
    assert slopes["/leak_strings"] == pytest.approx(1, abs=0.1)
    assert slopes["/leak_buffers"] == pytest.approx(2, abs=0.1)
    assert slopes["/leak_classes"] == pytest.approx(3, abs=0.4)
