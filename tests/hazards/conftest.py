"""One service in four shapes: over WSGI and over ASGI, with the accelerator and in pure Python."""

import gc
import importlib.util
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from heap_middleware import accelerator
from heap_middleware.heap import holders

HERE = Path(__file__).parent
RACE_SECONDS = float(os.environ.get("HEAP_MIDDLEWARE_RACE_SECONDS", "4"))
FORKS = int(os.environ.get("HEAP_MIDDLEWARE_FORKS", "100"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On each Python, WSGI with the accelerator: what differs between them is C. The other shapes on one."""
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        shape = {value for value in values if isinstance(value, str)}
        if item.path.parent == HERE and not shape >= {"wsgi", "native"}:
            item.add_marker(pytest.mark.once)


def _imported(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"hazards_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_service = _imported("service")


@pytest.fixture(autouse=True)
def small_heap() -> Iterator[None]:
    """Hide what pytest and the frameworks made from pure Python, which would look at it for most of the time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=["wsgi", "asgi"])
def adapter(request: pytest.FixtureRequest) -> str:
    """How the application is asked."""
    return str(request.param)


@pytest.fixture(params=["windows", pytest.param("native", marks=pytest.mark.accelerator)])
def backend(request: pytest.FixtureRequest, own_sampling: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The accelerator, or pure Python for all that it would do: attribution, the census, the search for holders."""
    if request.param == "windows":
        monkeypatch.setattr(accelerator, "missing", _service.LEFT_OUT)
        monkeypatch.setattr(holders, "missing", _service.LEFT_OUT)
    yield str(request.param)
    logging.getLogger("heap_middleware").removeFilter(_service.unless_left_out)


@pytest.fixture
def serve(adapter: str, backend: str) -> Callable[..., Any]:
    """`serve(work, **settings)`: a service whose every path is answered with what `work(path)` returns."""

    def make(work: Any = _service.hello, **settings: Any) -> Any:
        return _service.service_of(adapter, backend, work, **settings)

    return make


@pytest.fixture
def in_threads() -> Callable[..., list[BaseException]]:
    """`in_threads(number, work)` does `work(n)` in so many threads at once, and returns what they raised."""
    found: Callable[..., list[BaseException]] = _service.in_threads
    return found


@pytest.fixture
def run(adapter: str, backend: str) -> Callable[..., str]:
    """`run(code, *options, **environment)`: the output of a program, in which `serve` is as above.

    It ends with status 0 and nothing on its standard error.
    """

    def program(code: str, *options: str, **environment: str) -> str:
        head = (
            f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
            "from functools import partial\n"
            "from service import *\n"
            f"serve = partial(service_of, {adapter!r}, {backend!r})\n"
        )
        done = subprocess.run(
            [sys.executable, "-P", *options, "-c", head + textwrap.dedent(code)],
            env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")} | environment,
            capture_output=True,
            text=True,
            timeout=300 + RACE_SECONDS + FORKS,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    return program
