"""A pytest plugin: leaks are found before they are in production.

    def test_search_does_not_leak(heap_leaks):
        heap_leaks(app).request("GET", "/search").stays_flat(after=50, over=500)

    @pytest.mark.heap_ceiling(objects=1000, bytes="1 MB")
    def test_import(): ...

It is loaded with pytest wherever the package is installed; `-p no:heap_middleware` does without.
"""

from collections.abc import Callable, Generator
from typing import Any

import pytest

from heap_middleware.testing.ceiling import Ceiling
from heap_middleware.testing.probe import Leak, Probe

__all__ = ["Leak", "Probe", "heap_leaks"]

_MARK = "heap_ceiling"


def pytest_configure(config: pytest.Config) -> None:
    """Let `--strict-markers` know ours."""
    config.addinivalue_line(
        "markers", f"{_MARK}(objects=None, bytes=None): what the test may leave alive, at most; bytes may be '10 MB'"
    )


@pytest.fixture
def heap_leaks() -> Callable[..., Probe]:
    """`heap_leaks(app)` says of a WSGI or ASGI application whether its requests leave objects behind.

    `heap_leaks(app).request("GET", "/x").stays_flat(after=50, over=500)`; see `Probe`.
    """
    return Probe


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Hold a test with the mark to its ceiling."""
    mark = item.get_closest_marker(_MARK)
    if mark is None:
        return (yield)
    ceiling = Ceiling.of(mark.args, mark.kwargs)
    with ceiling.watching():
        result = yield  # a failing test raises here, and fails for its own reason
    ceiling.hold()
    return result
