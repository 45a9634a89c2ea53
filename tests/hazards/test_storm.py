"""Scrapes without pause on a large heap: they share censuses, and requests are served meanwhile."""

import threading

import pytest

from heap_middleware import HeapMonitor

OBJECTS = 300_000
SCRAPERS = 8


@pytest.mark.once
def test_a_scrape_storm_starves_nobody(serve, in_threads, monkeypatch):
    """Eight threads scrape 300,000 objects without pause: two thousand requests are served, and censuses are shared."""
    kept = [[] for _ in range(OBJECTS)]
    taken, scraped, served = [], [0] * SCRAPERS, [0, 0]
    over = threading.Event()
    take = HeapMonitor._take_census

    def counted(self):
        taken.append(threading.get_ident())
        return take(self)

    monkeypatch.setattr(HeapMonitor, "_take_census", counted)
    service = serve(census="tracked", top_types=20)
    service.samples()

    def one(n):
        if n < SCRAPERS:
            while not over.is_set() or scraped[n] == 0:
                assert service.ask("/metrics")[0] == 200
                scraped[n] += 1
            return
        for _ in range(1_000):
            assert service.ask("/served") == (200, b"hello")
            served[n - SCRAPERS] += 1
        if sum(served) == 2_000:
            over.set()

    assert in_threads(SCRAPERS + 2, one) == []
    assert service.requests() == {"/served": 2_000}
    assert min(scraped) > 0
    assert len(taken) - 1 < sum(scraped)
    assert not any(service.monitor.own_figures().faults.values())
    assert len(kept) == OBJECTS


def test_a_storm_inside_the_interval_is_one_census(serve, in_threads, monkeypatch):
    """However many scrape at once, and again and again: within census_min_interval there is one census."""
    taken = []
    take = HeapMonitor._take_census
    monkeypatch.setattr(HeapMonitor, "_take_census", lambda self: taken.append(1) or take(self))
    service = serve(census="tracked", top_types=20, census_min_interval=3600.0)
    barrier = threading.Barrier(SCRAPERS)

    def one(n):
        barrier.wait()
        for _ in range(10):
            assert service.ask("/metrics")[0] == 200

    assert in_threads(SCRAPERS, one) == []
    assert len(taken) == 1
