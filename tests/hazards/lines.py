"""What the programs of test_reentry.py do at the lines of the package's own code."""

import linecache
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from service import Service

from heap_middleware import HeapMonitor
from heap_middleware.exposition.requests import PageRequest

Place = tuple[CodeType, int]
SCRAPE = PageRequest("GET", "/metrics")
CLEANING_UP = ("self._land(mine)", "self._active.discard(scrape)")
"""Where Python itself offers no shelter: in a `finally`."""


class Interrupted(BaseException):
    """What a handler of the application's raises: a worker's timeout, Ctrl-C."""


class Nested:
    """Serves a request and scrapes, unless that is under way in this thread; `done` counts how often."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.done = 0
        self._running = threading.local()

    def __call__(self) -> None:
        if getattr(self._running, "on", False):
            return
        self._running.on = True
        try:
            assert self.service.ask("/nested") == (200, b"hello")
            # As the adapters do; not through the ASGI one, whose scrape is another thread's.
            assert self.service.monitor.respond(SCRAPE).status == 200
            self.service.monitor.endpoints()
            self.done += 1
        finally:
            self._running.on = False


def at_lines_of_ours(what: Callable[[FrameType], object], work: Callable[[], Any]) -> Any:
    """Do the work with `what(frame)` called at every line of the package, in this thread and those it starts."""

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if "heap_middleware" not in frame.f_globals.get("__name__", ""):
            return None
        what(frame)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    threading.settrace(trace)
    try:
        return work()
    finally:
        sys.settrace(before)
        threading.settrace(None)  # type: ignore[arg-type]


def once_a_line(what: Callable[[], object]) -> Callable[[FrameType], None]:
    """For `at_lines_of_ours`: each line the first time, or it would take an hour."""
    seen: set[Place] = set()

    def at(frame: FrameType) -> None:
        place = frame.f_code, frame.f_lineno
        if place not in seen:
            seen.add(place)
            before = sys.gettrace()
            sys.settrace(None)  # as CPython does inside a trace function
            what()
            sys.settrace(before)

    return at


def places_of(work: Callable[[], object]) -> list[Place]:
    """The lines of ours that the work comes to, in that order, without those that clean up."""
    found: dict[Place, None] = {}

    def note(frame: FrameType) -> None:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if line not in CLEANING_UP and frame.f_code.co_name != "_land":
            found[frame.f_code, frame.f_lineno] = None

    at_lines_of_ours(note, work)
    return list(found)


def survives(monitor: HeapMonitor, place: Place) -> bool:
    """Whether a scrape in another thread is answered after one was interrupted there."""

    def raise_there(frame: FrameType) -> None:
        if (frame.f_code, frame.f_lineno) == place:
            raise Interrupted

    try:
        at_lines_of_ours(raise_there, lambda: monitor.respond(SCRAPE))
    except Interrupted:
        pass
    else:
        raise AssertionError(f"{place} was not reached")
    answered: list[int] = []
    thread = threading.Thread(target=lambda: answered.append(monitor.respond(SCRAPE).status), daemon=True)
    thread.start()
    thread.join(20)
    return answered == [200]
