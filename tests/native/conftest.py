"""The accelerator on its own."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _collections() -> Iterator[None]:
    """With HEAP_MIDDLEWARE_GC_THRESHOLD=1 the collector runs whenever it can: `sanitize` asks for it."""
    before = gc.get_threshold()
    gc.set_threshold(int(os.environ.get("HEAP_MIDDLEWARE_GC_THRESHOLD", before[0])), *before[1:])
    yield
    gc.set_threshold(*before)


@pytest.fixture
def tracker() -> Iterator[Any]:
    """The extension module, recording every allocation; it stops with the test."""
    from heap_middleware import _native

    _native.start(262_144, 1, 0.01)
    yield _native
    _native.stop()


@pytest.fixture
def serving(tracker: Any) -> Callable[[int], AbstractContextManager[Any]]:
    """`with serving(endpoint):` what is allocated inside belongs to a request of that endpoint."""

    @contextmanager
    def serve(endpoint: int) -> Iterator[Any]:
        request = tracker.Request()
        request.enter()
        try:
            yield request
        finally:
            assert request.leave()
            request.finish(endpoint)

    return serve


@pytest.fixture
def retained(tracker: Any) -> Callable[[int], tuple[int, int]]:
    """`retained(endpoint)`: objects and bytes that its requests left alive."""

    def ask(endpoint: int) -> tuple[int, int]:
        gained, lost, gained_bytes, lost_bytes, _, _ = tracker.snapshot()[endpoint]
        return gained - lost, gained_bytes - lost_bytes

    return ask
