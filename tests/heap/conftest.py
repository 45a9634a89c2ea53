"""A small heap for the tests that walk all of it."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def small_heap(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hide what the other tests imported: `gc.get_objects` does not list frozen objects, and a traced walk is slow."""
    gc.collect()
    if request.node.get_closest_marker("whole_heap") is None:
        gc.freeze()
    yield
    gc.unfreeze()
