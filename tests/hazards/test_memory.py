"""Memory runs out: at each allocation in turn, in what the accelerator does.

Not around whole requests: CPython 3.12.1 itself ends there, where it cannot make room for a Python frame.
"""

import pytest


@pytest.mark.accelerator
@pytest.mark.parametrize(("adapter", "backend"), [("wsgi", "native")], indirect=True)
def test_memory_runs_out_at_every_allocation(run):
    """Wherever memory runs out amid recording or a census: a MemoryError at most, and the next request works."""
    run(
        """
        import _testcapi
        native, strike, stop = accelerator.native, _testcapi.set_nomemory, _testcapi.remove_mem_hooks
        sys.unraisablehook = lambda *_: None  # of a request that ends as it is dropped
        kept = []
        service = serve(lambda path: kept.append(bytes(100)) or b"hello", census="tracked", census_process="inline")
        service.ask("/x"), service.ask("/metrics")
        failed = {"request": 0, "census": 0, "snapshot": 0, "sites": 0}
        for what, most in (("request", 40), ("census", 300), ("snapshot", 60), ("sites", 120)):
            for at in range(most):
                strike(at, at + 1)
                try:
                    if what == "request":
                        request = native.begin()
                        block = [bytes(200), {}]
                        request.end(1)
                    elif what == "census":
                        native.census(True)
                    elif what == "snapshot":
                        native.snapshot()
                    else:
                        native.sites()
                except MemoryError:
                    failed[what] += 1
                finally:
                    stop()
                request = block = None
            assert service.ask("/next") == (200, b"hello")
            assert service.ask("/metrics")[0] == 200
        assert failed["request"] and failed["census"] and failed["snapshot"], failed
        before = service.monitor.totals()["GET", "/next"].retained_objects
        for _ in range(30):
            service.ask("/next")
        assert 30 <= service.monitor.totals()["GET", "/next"].retained_objects - before <= 60
        assert native.statistics()["intact"]
        assert not any(service.monitor.own_figures().faults.values())
        """
    )
