"""What belongs to the interpreter and to other libraries is as it was, however many middlewares there are."""

import asyncio
import decimal
import gc
import locale
import logging
import os
import signal
import socket
import sys
import threading
import warnings

import pytest


@pytest.fixture
def state():
    """`state()`: whatever a library could have changed for all."""

    def ask():
        return {
            "gc": (gc.get_threshold(), gc.isenabled(), gc.get_debug(), list(gc.callbacks)),
            "signals": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
            "timers": (signal.getitimer(signal.ITIMER_REAL), signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook, sys.breakpointhook),
            "tracers": (sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()),
            "limits": (sys.getrecursionlimit(), sys.getswitchinterval(), threading.stack_size()),
            "coroutines": (sys.get_asyncgen_hooks(), sys.get_coroutine_origin_tracking_depth()),
            "process": (os.getcwd(), dict(os.environ), os.getpgrp(), socket.getdefaulttimeout(), locale.setlocale(0)),
            "import": (list(sys.path), list(sys.meta_path), list(sys.path_hooks)),
            "streams": (sys.stdin, sys.stdout, sys.stderr),
            "logging": (
                logging.root.level,
                list(logging.root.handlers),
                logging.raiseExceptions,
                logging.root.disabled,
            ),
            "warnings": (list(warnings.filters), warnings.showwarning),
            "decimal": str(decimal.getcontext()),
        }

    return ask


def test_thirty_middlewares_change_nothing(serve, state):
    """Thirty middlewares, with requests and scrapes, change nothing of the interpreter, and have one thread at most."""
    first = serve(report_path="/heap")
    first.ask("/")
    first.samples()
    before, threads = state(), set(threading.enumerate())
    kept = []
    for number in range(30):
        service = serve(top_types=number + 1, census="tracked", report_path=f"/heap{number}")
        kept.append(service)
        assert service.ask("/") == (200, b"hello")
        assert len([one for one in service.samples() if one.name == "object_count"]) <= number + 2
    after = state()
    assert {name: value for name, value in after.items() if value != before[name]} == {}
    more = {thread.name for thread in threading.enumerate() if thread not in threads}
    assert {name for name in more if "AnyIO" not in name} <= {"heap_middleware-publisher"}
    assert sum("heap_middleware" in thread.name for thread in threading.enumerate()) <= 1
    assert len(kept) == 30


def test_no_full_collection_is_forced(serve):
    """Neither a request nor a scrape forces a full garbage collection, nor does the collector stand still for them."""
    service = serve(census="tracked")
    service.ask("/")
    service.samples()
    gc.collect()
    gc.disable()  # what is collected now is what was asked for
    try:
        full = gc.get_stats()[2]["collections"]
        for _ in range(100):
            service.ask("/")
        for _ in range(10):
            service.samples()
        service.ask("/heap")
        assert gc.get_stats()[2]["collections"] == full
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_built_five_times_and_nested_twice(serve):
    """Built five times and nested twice, each request counts once, and no series is there twice."""
    service = serve()
    built = [type(service.app)(service.app.app, monitor=service.monitor) for _ in range(5)]
    service.app = type(service.app)(type(service.app)(built[0], monitor=service.monitor), monitor=service.monitor)
    for _ in range(7):
        assert service.ask("/x") == (200, b"hello")
    samples = service.samples()
    series = [(one.name, *sorted(one.labels.items())) for one in samples]
    assert len(series) == len(set(series))
    assert {one.value for one in samples if one.name == "heap_endpoint_requests_total"} == {7.0}
    assert service.requests() == {"/x": 7}


def test_recursion_ends_where_it_did(serve):
    """An application that recurses without end sees the RecursionError that it would see bare; the next is served."""
    depths = []

    def work(path):
        if path == "/deep":
            depth = 0

            def deeper():
                nonlocal depth
                depth += 1
                deeper()

            try:
                deeper()
            finally:
                depths.append(depth)
        return b"hello"

    with pytest.raises(RecursionError) as bare:
        work("/deep")
    service = serve(work)
    for _ in range(3):
        with pytest.raises(RecursionError) as wrapped:
            service.ask("/deep")
        assert str(wrapped.value) == str(bare.value)
        assert service.ask("/shallow") == (200, b"hello")
    assert service.ask("/metrics")[0] == 200
    assert min(depths) >= depths[0] - 30  # the adapter's own few frames
    assert service.requests() == {"/deep": 3, "/shallow": 3}
    assert not any(service.monitor.own_figures().faults.values())


def test_a_request_at_the_recursion_limit(serve, monkeypatch):
    """A request with a few frames left fails like any call would, or is served; the next is served."""
    # Python tells of each finalizer that has no frame left to run in: that of the pure backend's sentinel, too.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    service = serve(census="tracked")
    service.ask("/")

    def at_depth(left, call):
        return call() if left == 0 else at_depth(left - 1, call)

    outcomes = set()
    limit = sys.getrecursionlimit()
    for left in range(limit - 200, limit, 2):
        try:
            outcomes.add(at_depth(left, service.ask)[0])
        except RecursionError:
            outcomes.add(RecursionError)
    assert outcomes == {200, RecursionError}
    served = service.requests()["/"]
    assert service.ask("/") == (200, b"hello")
    assert service.requests()["/"] == served + 1
    assert service.ask("/metrics")[0] == 200
    assert asyncio.run(asyncio.sleep(0, "loops work")) == "loops work"
