"""Real servers with several workers: whichever is scraped answers for all."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter

import pytest

from heap_middleware import accelerator

pytestmark = pytest.mark.one_python

REQUESTS = "heap_endpoint_requests_total"
PATHS = ("/leak", "/clean", "/other")
INTERVAL = 0.5


def counted(samples):
    return {key[2]: value for key, value in samples.items() if key[0] == REQUESTS}


def pids(samples):
    return {int(key[1]) for key in samples if key[0] == "heap_worker_snapshot_age_seconds"}


def children(pid):
    """The living children of a process, and those that nobody has taken note of."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(child) for child, state in rows if state[0] != "Z"], [child for child, state in rows if state[0] == "Z"]


@pytest.mark.once
def test_no_count_is_lost_while_workers_are_killed(workers, clients):
    """Workers die every second, of SIGKILL, SIGTERM and max_requests: what was published stays counted, once."""
    service = workers("gunicorn", "--max-requests", "1500", "--max-requests-jitter", "500", publish_interval=INTERVAL)
    master = service.server.process.pid
    service.scrape()
    killed, seen = {}, [counted(service.scrape())]
    with clients(service.url, PATHS, number=8, requests=20_000) as (traffic, busy):
        how = signal.SIGKILL
        due = time.monotonic() + 1
        while busy():
            time.sleep(0.1)
            seen.append(counted(service.scrape()))
            if time.monotonic() > due:
                victim = random.choice(children(master)[0])
                killed[victim] = (how, time.monotonic())
                os.kill(victim, how)
                how = signal.SIGTERM if how == signal.SIGKILL else signal.SIGKILL
                due = time.monotonic() + 1
    final = counted(service.settled())
    for before, after in zip(seen, [*seen[1:], final], strict=True):
        assert all(after.get(route, 0) >= count for route, count in before.items()), (before, after)
    # What a worker that was killed had answered and not yet published: what it answered in its last moments. Of what
    # came to no answer, some was served before the worker died.
    unpublished = sum(
        killed.get(pid, (None, 0))[0] == signal.SIGKILL and when > killed[pid][1] - 2 * INTERVAL
        for when, _, pid in traffic.answered
    )
    answered, total = len(traffic.answered), sum(final.values())
    print(
        f"{answered} answered, {traffic.failed} failed, {total:.0f} counted, {answered - total:.0f} lost, "
        f"at most {unpublished}; {Counter(how.name for how, _ in killed.values())}, {len(seen)} scrapes"
    )
    assert answered + traffic.failed == 20_000
    assert answered - unpublished <= total <= answered + traffic.failed
    assert len(killed) >= 4
    living, zombies = children(master)
    assert zombies == []
    files = service.files()
    assert files["worker"] <= len(living)
    assert files["bell"] <= len(living)
    assert files["archive"] == files["owner"] == files["lock"] == 1
    assert set(files) == {"worker", "bell", "archive", "owner", "lock"}
    assert service.complaints() == []


SERVERS = {
    "sync": ("gunicorn",),
    "preload": ("gunicorn", "--preload"),
    "gthread": ("gunicorn", "--worker-class", "gthread", "--threads", "4"),
    "gevent": ("gunicorn", "--worker-class", "gevent"),
    "uvicorn": ("uvicorn",),
}


ON_EACH_PYTHON = ("preload", "uvicorn")


@pytest.mark.parametrize(
    "server", [name if name in ON_EACH_PYTHON else pytest.param(name, marks=pytest.mark.once) for name in SERVERS]
)
def test_any_worker_answers_for_all(server, workers):
    """Counters are sums, gauges have the process id of each worker, and no master is among them."""
    # On a busy machine half a second is too little for the others.
    service = workers(*SERVERS[server], number=3, sampling=1, top_types=10_000, workers_wait=10)
    leaking, others = Counter(), Counter()
    while len(leaking) < 3 or leaking.total() < 100:
        leaking += service.visit("/leak")
        others += service.visit("/clean", "/other")
    service.await_workers(3)
    for _ in range(4):
        samples = service.settled()
        assert counted(samples) == dict.fromkeys(PATHS, leaking.total())
        assert pids(samples) == set(leaking | others)
    leaked = {key[2]: value for key, value in samples.items() if key[:2] == ("object_count", "application.Leaked")}
    assert {int(pid): objects for pid, objects in leaked.items()} == leaking
    if accelerator.missing is None:
        by_type = ("heap_endpoint_retained_objects_by_type", "GET", "application.Leaked")
        retained = {key[3]: value for key, value in samples.items() if key[:3] == by_type}
        assert retained == leaked
    assert all(0 <= age < 2 for key, age in samples.items() if key[0] == "heap_worker_snapshot_age_seconds")
    living, _ = children(service.server.process.pid)
    assert set(leaking) <= set(living)
    assert service.files()["worker"] == 3
    assert service.complaints() == []


@pytest.mark.once
@pytest.mark.parametrize("server", [("uvicorn",), ("gunicorn", "--worker-class", "gthread", "--threads", "4")])
def test_workers_that_are_replaced_take_nothing_with_them(workers, server):
    """A reload ends every worker politely; uvicorn's end by the signal itself, after their lifespan."""
    service = workers(*server, number=2, publish_interval=3600)
    old = Counter()
    while len(old) < 2 or old.total() < 100:
        old += service.visit("/clean")
    os.kill(service.server.process.pid, signal.SIGHUP)
    deadline = time.monotonic() + 30
    while any(set(listed) & set(old) for listed in children(service.server.process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    service.visit("/clean")
    assert counted(service.settled()) == {"/clean": old.total() + 1}


def test_workers_that_end_politely_take_nothing_with_them(workers):
    """With max_requests every worker ends now and then: each request is counted, whoever is asked afterwards."""
    service = workers("gunicorn", "--max-requests", "20", number=2, publish_interval=3600)
    answered = sum((service.visit(*PATHS) for _ in range(50)), Counter())
    assert len(answered) > 5
    assert counted(service.settled()) == dict.fromkeys(PATHS, 50)
    assert service.files()["worker"] <= 2


@pytest.mark.once
def test_counts_outlive_the_directory(workers):
    """Somebody removes it: who has answered a scrape before knows what the others, and the dead, had counted."""
    service = workers("gunicorn", number=2, publish_interval=3600)
    service.visit(*PATHS * 20)
    victim = children(service.server.process.pid)[0][0]
    os.kill(victim, signal.SIGTERM)
    while any(victim in listed for listed in children(service.server.process.pid)):
        time.sleep(0.01)
    service.visit(*PATHS * 30)
    assert counted(service.settled()) == dict.fromkeys(PATHS, 50)
    for _ in range(20):  # both have answered
        service.scrape()
    shutil.rmtree(service.directory)
    for _ in range(10):
        assert counted(service.scrape()) == dict.fromkeys(PATHS, 50)
    assert sum("written anew" in line for line in service.complaints()) == 1


def test_a_reload_with_another_setting_keeps_the_counts(workers, tmp_path):
    """HUP starts new workers of the same service: what the old ones counted stays."""
    config = tmp_path / "reload.py"
    config.write_text('raw_env = ["HEAP_MIDDLEWARE_TOP_TYPES=20"]')
    service = workers("gunicorn", "--config", str(config), number=2)
    old = service.visit(*PATHS * 10)
    config.write_text('raw_env = ["HEAP_MIDDLEWARE_TOP_TYPES=10"]')
    os.kill(service.server.process.pid, signal.SIGHUP)
    deadline = time.monotonic() + 20
    while set(children(service.server.process.pid)[0]) & set(old):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    service.visit("/clean")
    assert counted(service.settled()) == {"/leak": 10, "/clean": 11, "/other": 10}


def test_a_leak_is_the_same_with_many_workers(workers):
    """What a request leaks comes out the same, whether one worker serves it or four."""
    leaks = {}
    visits = [path for path in PATHS * 5 for _ in range(40)]  # pure Python measures what comes twice in a row
    for number in (1, 4):
        service = workers("gunicorn", number=number, directory=f"with{number}", sampling=1, workers_wait=10)
        service.visit(*visits)
        samples = service.settled()
        service.visit(*visits)
        after = service.settled()
        change = {key: value - samples.get(key, 0) for key, value in after.items()}
        leaks[number] = {
            path: (
                change["heap_endpoint_objects_gained_total", "GET", path]
                - change["heap_endpoint_objects_lost_total", "GET", path]
            )
            / change["heap_endpoint_measured_requests_total", "GET", path]
            for path in PATHS
        }
    assert leaks[1]["/leak"] >= 1
    assert leaks[4]["/leak"] == pytest.approx(leaks[1]["/leak"], rel=0.05)
    assert [round(leaks[number][path], 1) for number in (1, 4) for path in ("/clean", "/other")] == [0, 0, 0, 0]


def test_a_fresh_service_starts_from_zero(workers):
    """What yesterday's service left in the directory is swept away, and not counted."""
    first = workers("gunicorn", number=2)
    first.visit(*PATHS * 10)
    assert sum(counted(first.settled()).values()) == 30
    first.server.stop()
    assert first.files()["worker"] >= 1
    assert first.files()["bell"] == 0
    second = workers("gunicorn", number=2)
    answered = second.visit("/clean")
    second.await_workers(1)
    assert counted(second.settled()) == {"/clean": 1}
    assert second.files()["worker"] <= 2
    assert pids(second.scrape()) >= set(answered)
    assert second.complaints() == []


def test_two_services_do_not_share_a_directory_by_accident(workers):
    """The second says so in its log and answers for itself alone, until the first is gone."""
    first = workers("gunicorn", number=2, publish_interval=0.5)
    first.visit("/clean")
    second = workers("gunicorn", number=1, publish_interval=0.5)
    second.visit("/other")
    assert counted(first.settled()) == {"/clean": 1}
    assert counted(second.settled()) == {"/other": 1}
    complaint = f"another service uses it: that of the process {first.server.process.pid}"
    assert second.server.log.count(complaint) == 1
    first.server.stop()
    second.visit("/other")
    assert counted(second.settled()) == {"/other": 2}
    assert second.files()["worker"] == 1
