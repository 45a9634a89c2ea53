"""Memory runs out: at each allocation in turn."""

import pytest


@pytest.mark.once
def test_memory_runs_out_at_every_allocation(run):
    """Wherever memory runs out: my own MemoryError or an answer, never a crash, and the next request and scrape work."""
    run(
        """
        import _testcapi, gc, logging
        from heap_middleware.exposition.requests import PageRequest

        logging.disable()  # of our faults, which there may be
        kept = []

        def work(path):
            kept[:] = [[path], {"n": bytes(100)}, (path, 1.5)]
            return b"hello"

        service = serve(work, census="tracked", top_types=5, census_process="inline")
        page = PageRequest("GET", "/metrics")

        def starved(what, number, most):
            outcomes = set()
            at = 0
            while at < most:
                at += 1 + at // number  # each at first, then fewer
                outcome = None
                _testcapi.set_nomemory(at, at + 1 + at % 3)
                try:
                    outcome = what()
                except MemoryError:
                    outcome = MemoryError
                finally:
                    _testcapi.remove_mem_hooks()
                outcomes.add(outcome)
                if at % 10 == 0:
                    assert service.ask("/next") == (200, b"hello")
            return outcomes

        gc.freeze()
        for _ in range(3):
            service.ask("/x"), service.monitor.respond(page), service.ask("/next")
        asked = starved(lambda: service.ask("/x")[0], 300, 600)
        assert asked == {200, MemoryError}, asked
        scraped = starved(lambda: service.monitor.respond(page).status, 100, 3_000)
        assert scraped <= {200, 503, MemoryError}, scraped
        assert len(scraped) >= 2
        gc.unfreeze()
        before = service.requests()["/after"] if "/after" in service.requests() else 0
        for _ in range(30):
            assert service.ask("/after") == (200, b"hello")
        assert service.requests()["/after"] == before + 30
        assert service.ask("/metrics")[0] == 200
        """,
        "-W",
        "ignore",
    )
