"""Clocks that jump: no rate is negative, no figure falls, and requests are served."""

import random
import time

import pytest

JUMPS = (0.0, 0.001, 1.0, -3600.0, 7200.0, -1e9, 2e9, 0.0, -1.0, 1e6)


@pytest.fixture
def wall(monkeypatch):
    """The clock on the wall, which somebody sets; the monotonic one goes on."""
    offset, true = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: true() + offset[0])
    return offset


@pytest.fixture
def every_clock(monkeypatch):
    """A machine that is suspended: all clocks go far ahead at once."""
    offset = [0.0]
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda true=getattr(time, name): true() + offset[0])
    return offset


def growing(samples):
    return {
        (one.name, *sorted(one.labels.items())): one.value
        for one in samples
        if one.name.endswith(("_total", "_created")) and one.name != "heap_size_bytes_total"
    }


def never_falls(service, offset, jumps):
    chance, before = random.Random(1), {}
    for turn, jump in enumerate(jumps):
        for _ in range(20):
            assert service.ask(f"/{chance.randrange(3)}") == (200, b"hello")
        offset[0] += jump
        samples = service.samples()
        assert [one for one in samples if "seconds" in one.name and one.value < 0] == []
        now = growing(samples)
        assert {name: (value, now.get(name)) for name, value in before.items() if now.get(name, -1.0) < value} == {}
        assert sum(value for name, value in now.items() if name[0] == "heap_endpoint_requests_total") == 20 * turn + 20
        times = service.monitor.history().times
        assert list(times) == sorted(times)
        before = now
    assert not any(service.monitor.own_figures().faults.values())


def test_a_clock_that_is_set(serve, wall):
    """Set back by years and ahead by decades: counters and durations only grow, and the history goes forward."""
    never_falls(serve(census="tracked", overhead_budget=0.5), wall, JUMPS)


def test_a_suspended_machine(serve, every_clock):
    """After a night of sleep, and after a year: nothing is negative, a census is taken, and requests are measured."""
    service = serve(census="tracked", overhead_budget=0.5, census_min_interval=1.0)
    never_falls(service, every_clock, (0.0, 8 * 3600.0, 0.0, 365 * 86_400.0, 1.0))
