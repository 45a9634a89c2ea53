"""Real servers, of whose requests every second one has a fault, while workers are killed and the disk is full.

HEAP_MIDDLEWARE_SOAK_SECONDS is how long it goes on: 600 in `tox run -e soak`. Memory is judged then only.
"""

import errno
import os
import random
import re
import signal
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest

SECONDS = float(os.environ.get("HEAP_MIDDLEWARE_SOAK_SECONDS", "30"))
CLIENTS = 16
INTERVAL = 0.5
LONG = 300
OURS = re.compile(r"LOG heap_middleware (ERROR|WARNING) ")
"""A full disk and memory that ran out under us are said, each once a process."""


@dataclass
class Killed:
    """A worker, and the span of time of which it may not have published what it had counted."""

    pid: int
    how: signal.Signals
    lost_from: float
    lost_to: float


@dataclass
class Faults:
    """What is done to the service with several workers: a kill a second, and every so often a full disk instead."""

    service: object
    killed: list = field(default_factory=list)
    full: int = 0

    def until(self, end):
        chance = random.Random(3)
        while time.monotonic() < end:
            for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
                time.sleep(1)
                self.kill(chance, how)
            time.sleep(2 * INTERVAL)
            if os.path.ismount(self.service.directory.parent):
                self.fill_disk(chance)

    def kill(self, chance, how, *, full_since=None):
        """What it had not published dies with it: of SIGKILL that of an interval, on a full disk all since then."""
        victim = chance.choice(self.service.children())
        now = time.monotonic()
        if full_since is not None:
            self.killed.append(Killed(victim, how, full_since - 2 * INTERVAL, now + INTERVAL))
        elif how == signal.SIGKILL:
            self.killed.append(Killed(victim, how, now - 2 * INTERVAL, now + INTERVAL))
        else:
            self.killed.append(Killed(victim, how, now, now))
        os.kill(victim, how)

    def fill_disk(self, chance):
        """Workers die meanwhile, and are born; afterwards all is published that was due."""
        filler = self.service.directory.parent / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC
        full_since = time.monotonic()
        for how in (signal.SIGKILL, signal.SIGTERM):
            time.sleep(1.5 * INTERVAL)
            self.kill(chance, how, full_since=full_since)
        time.sleep(3 * INTERVAL)
        filler.unlink()
        time.sleep(2 * INTERVAL)
        self.full += 1

    def unpublished(self, one):
        """Whether what an answer adds to the counts may have died with its worker."""
        return any(
            one.pid in (0, killed.pid) and killed.lost_from < one.when < killed.lost_to for killed in self.killed
        )


def scrape_under(faults, services):
    """Scrapes all the time, until there are no more faults."""
    thread = threading.Thread(target=faults.until, args=(time.monotonic() + SECONDS,))
    thread.start()
    while thread.is_alive():
        for service in services:
            service.scrape()
        thread.join(0.2)


def check_counts(service, seen, faults):
    """Nothing is lost but what a killed worker had not published, nothing is counted that was not asked."""
    answered = [one for one in seen.answered if one.service == service.name]
    at_risk = sum(faults.unpublished(one) for one in answered) if service is faults.service else 0
    counted = service.settled() - service.before
    print(
        f"{service.name}: {seen.sent[service.name]} sent, {len(answered)} answered, "
        f"{seen.unanswered[service.name]} not; {counted:.0f} counted, {max(0, len(answered) - counted):.0f} lost, "
        f"at most {at_risk}; {len(service.seen)} scrapes"
    )
    assert len(answered) - at_risk <= counted <= seen.sent[service.name]
    assert service.seen == sorted(service.seen)


def check_memory(service):
    """Less than 1 MB of growth in the last half, by the median of its tenths; the first process is never killed."""
    half = service.memory[len(service.memory) // 2 :]
    tenth = max(1, len(half) // 10)
    growth = statistics.median(half[-tenth:]) - statistics.median(half[:tenth])
    print(f"{service.name}: {half[-1] / 1e6:.1f} MB, grown by {growth / 1e6:.2f} MB in the last half")
    if SECONDS >= LONG:
        assert growth < 1e6


def check_nothing_left(service, before):
    """No process, descriptor, thread or file."""
    assert service.zombies() == []
    held = service.held()
    assert all(held[kind] <= before[kind] for kind in held), (held, before)
    if service.directory is not None:
        assert len(service.children()) == 4
        files = Counter(path.suffix.removeprefix(".") or path.name for path in service.directory.glob("format-*/*"))
        assert files["worker"] <= 4, files
        assert files["bell"] <= 4, files
        assert set(files) <= {"worker", "bell", "archive", "owner", "lock"}


@pytest.mark.once
@pytest.mark.accelerator
def test_every_second_request_has_a_fault(services, clients):
    """Clients leave, bodies are cut, handlers fail, memory and disk run out, clocks jump, workers die: all is right."""
    gunicorn = services[0]
    with clients(services, CLIENTS):
        time.sleep(2)
    before = {service.name: service.held() for service in services}
    for service in services:
        service.before = service.settled()
    faults = Faults(gunicorn)
    with clients(services, CLIENTS) as seen:
        scrape_under(faults, services)
    kills = Counter(killed.how.name for killed in faults.killed)
    print(f"faults: {dict(seen.faults)}, {dict(kills)}, {faults.full} times a full disk")
    assert seen.wrong == []
    assert len(seen.faults) == 6
    for service in services:
        check_counts(service, seen, faults)
        check_memory(service)
        check_nothing_left(service, before[service.name])
    complaints = [line for service in services for line in service.complaints()]
    print("\n".join(complaints))
    assert [line for line in complaints if not OURS.match(line)] == []
    for service in services:
        service.server.stop()
        assert service.server.process.returncode in (0, -signal.SIGTERM)
