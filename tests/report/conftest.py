"""The examples with traffic, and a browser that looks at their report."""

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PATHS = {
    "flask": ("/leakable", "/clean", "/users/{number}", "/search"),
    "fastapi": ("/leak/async", "/clean", "/users/{number}", "/shop/items/{number}"),
}
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def example(serve: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`example("flask" | "fastapi", workers=4, **settings)` starts a copy of the example."""

    def start(kind: str, *, workers: int = 1, **settings: str) -> Any:
        copy = shutil.copytree(
            EXAMPLES / f"{kind}_app", tmp_path / "app", ignore=shutil.ignore_patterns(".heap_workers", "__pycache__")
        )
        variables = {f"HEAP_MIDDLEWARE_{name.upper()}": value for name, value in settings.items()}
        environment: dict[str, str | None] = {"COVERAGE_PROCESS_CONFIG": None, **variables}
        server = {"flask": "gunicorn", "fastapi": "uvicorn"}[kind]
        if kind == "flask" and workers == 1:
            (copy / "gunicorn.conf.py").unlink()
        args = ["--workers", str(workers)] if kind == "flask" else []
        return serve(server, app="app:app", cwd=copy, args=args, env=environment)

    return start


@pytest.fixture
def traffic(connect: Callable[[str], Any]) -> Callable[..., Any]:
    """`with traffic(kind, url):` four clients ask for all routes of the example, again and again."""

    @contextmanager
    def run(kind: str, url: str) -> Iterator[None]:
        stop = threading.Event()
        failures: list[Exception] = []

        def client() -> None:
            try:
                while not stop.is_set():
                    with connect(url) as connection:  # anew, or one worker would serve all of them
                        for _ in range(10):
                            for path in PATHS[kind]:
                                connection.text(path.format(number=random.randint(1, 999)))
                    stop.wait(0.01)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        assert failures == []

    return run


@pytest.fixture(scope="module")  # its event loop would be in the way of later tests
def browser() -> Iterator[Any]:
    """Debian's Chromium without a screen."""
    found = next((path for name in _CHROMIUM if (path := shutil.which(name)) is not None), None)
    if found is None:
        missing = "Chromium is not installed (Debian: apt-get install chromium)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=_FLAGS)
        yield started
        started.close()


@pytest.fixture
def look(browser: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """`look(url, scheme="light", width=1280)` opens a page; at the end no error may have been on its console.

    Its `hosts` are those it has asked.
    """
    pages: list[Any] = []
    complaints: list[str] = []

    def open_page(url: str, *, scheme: str = "light", width: int = 1280, expect: tuple[str, ...] = ()) -> Any:
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        pages.append(page)
        page.hosts = set()
        page.on("request", lambda asked: page.hosts.add(asked.url.split("/")[2] if "//" in asked.url else ""))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda said: (
                complaints.append(said.text)
                if said.type in ("error", "warning") and not any(text in said.text for text in expect)
                else None
            ),
        )
        page.goto(url)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []
