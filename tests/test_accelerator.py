"""What becomes of an installation without the C extension."""

import importlib.util
import logging
import sys

import pytest

from heap_middleware import accelerator
from heap_middleware.endpoints.ledger import Ledger
from heap_middleware.endpoints.tracker import TrackerRecorder


@pytest.fixture
def load(monkeypatch):
    """`load()`: the module as it is imported where the extension was not built."""

    def run():
        spec = importlib.util.find_spec("heap_middleware.accelerator")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    monkeypatch.setitem(sys.modules, "heap_middleware._native", None)
    monkeypatch.delenv("HEAP_MIDDLEWARE_REQUIRE_NATIVE", raising=False)
    return run


def test_without_it_pure_python_serves_and_says_so(load, caplog):
    """Everything can be imported; the reason is in the log, once a process."""
    caplog.set_level(logging.WARNING)
    without = load()
    assert without.native is None
    assert "heap_middleware._native" in without.missing
    without.say_it_is_missing()
    without.say_it_is_missing()
    assert [record.getMessage() for record in caplog.records] == [
        f"heap_middleware runs in pure Python: {without.missing}"
    ]


def test_where_it_is_wanted_its_absence_is_an_error(load, monkeypatch):
    """HEAP_MIDDLEWARE_REQUIRE_NATIVE=1, as in CI: nobody measures pure Python by mistake."""
    monkeypatch.setenv("HEAP_MIDDLEWARE_REQUIRE_NATIVE", "1")
    with pytest.raises(ImportError, match=r"heap_middleware\._native"):
        load()


def test_a_recorder_that_needs_it_says_why_there_is_none(monkeypatch):
    """The reason is that of the import."""
    monkeypatch.setattr(accelerator, "missing", "built for another Python")
    with pytest.raises(ImportError, match="built for another Python"):
        TrackerRecorder(Ledger())
