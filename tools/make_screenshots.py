"""Take the pictures of README and docs from the real examples: `python tools/make_screenshots.py [picture ...]`.

Each is of a server that runs an example, with traffic until its leak is found. It needs the dependency group `test`,
Chromium (Debian: apt-get install chromium fonts-dejavu-core), and a minute or two.
"""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page as Tab
from playwright.sync_api import sync_playwright
from rich.console import Console

from heap_middleware.cli.comparison import compare
from heap_middleware.cli.page import Page
from heap_middleware.cli.screen import live_screen

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLASK = ("/leakable", "/clean", "/users/{number}", "/search")
REMINDERS = ("/reminders?when=in+{number}+hours", "/health")
PATIENCE = 180_000
WIDTH, COLUMNS, LINES = 1100, 132, 22
SHARP = 1.5


def main(names: list[str]) -> None:
    """Take those that are named, or all."""
    for name, take in PICTURE.items():
        if not names or name in names:
            take(PICTURES / f"{name}.png")
            print(f"docs/pictures/{name}.png")


def report(target: Path) -> None:
    """The report of the Flask example with four workers, its leaking route opened, down to the holders."""
    with serving("flask_app", workers=4) as url, traffic(url, FLASK), browser() as tab:
        open_report(tab, url, leaked="app.LeakObj")
        shoot(tab, target)


def worked_example(target: Path) -> None:
    """The report of the real leak, once the library's caches are full and only the leak grows."""
    with serving("real_leak", workers=1) as url, traffic(url, REMINDERS), browser() as tab:
        open_report(tab, url, leaked="dateparser.conf.Settings", says="leaks 6 objects")
        shoot(tab, target)


def open_report(tab: Tab, url: str, *, leaked: str, says: str = "leaks") -> None:
    """Wait for the verdict, open the route, and look for who holds the type."""
    tab.goto(f"{url}/heap")
    first = tab.locator("#routes tbody tr").first
    tab.locator("#summary", has_text=says).wait_for(timeout=PATIENCE)
    first.locator("button").click()
    row = tab.locator("#types tbody tr", has_text=leaked)
    row.wait_for(timeout=PATIENCE)
    row.get_by_role("button").click()
    tab.wait_for_selector("#paths li", timeout=PATIENCE)
    tab.wait_for_timeout(1500)  # the charts move into place


def shoot(tab: Tab, target: Path) -> None:
    """The page from its top to the holders."""
    tab.get_by_label("live").uncheck()
    tab.evaluate("scrollTo(0, 0)")
    bottom = tab.evaluate("document.querySelector('#holders').getBoundingClientRect().bottom + scrollY")
    tab.screenshot(path=target, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": bottom + 16})


def top(target: Path) -> None:
    """`heap-middleware top` over the Flask example, once the leak is found."""
    with serving("flask_app", workers=4) as url, traffic(url, FLASK), Page(url, token=None, timeout=10) as page:
        time.sleep(10)  # all workers have served something
        first, began = page.read(), time.monotonic()
        found = compare(first, first, 0.0, "leak")
        while not any(row.leak_objects_per_request for row in found.routes):
            time.sleep(15)  # as Prometheus does
            found = compare(first, page.read(), time.monotonic() - began, "leak")
        with open(os.devnull, "w") as nowhere:
            console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
            console.print(live_screen(found, address=f"{page.shown}", sort="leak", height=LINES))
        picture = console.export_svg(title="heap-middleware top http://127.0.0.1:8000/metrics").replace(url, EXAMPLE)
    picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.S)  # nothing is loaded from elsewhere
    with browser() as tab:
        tab.set_content(f"<style>body {{ margin: 0; width: max-content }} svg {{ width: {WIDTH}px }}</style>{picture}")
        tab.locator("svg").screenshot(path=target, omit_background=True)


EXAMPLE = "http://127.0.0.1:8000"
PICTURE = {"report": report, "top": top, "worked-example": worked_example}


@contextmanager
def serving(example: str, *, workers: int) -> Iterator[str]:
    """A copy of an example under gunicorn; its URL."""
    with tempfile.TemporaryDirectory() as directory, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        probe.close()
        ignored = shutil.ignore_patterns(".heap_workers", "__pycache__")
        copy = shutil.copytree(ROOT / "examples" / example, Path(directory, "app"), ignore=ignored)
        command = [sys.executable, "-m", "gunicorn", "--bind", address, "--workers", str(workers), "app:app"]
        # A verdict in a minute; at one allocation in N it takes more requests.
        variables = {"HEAP_MIDDLEWARE_SAMPLING": "1"}
        server = subprocess.Popen(
            command, cwd=copy, env={**os.environ, **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for(f"http://{address}/metrics")
            yield f"http://{address}"
        finally:
            server.terminate()
            server.wait(20)


def wait_for(url: str) -> None:
    """Return once there is an answer."""
    for _ in range(200):
        try:
            httpx.get(url, timeout=5)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"{url} does not answer")


@contextmanager
def traffic(url: str, paths: tuple[str, ...]) -> Iterator[None]:
    """Four clients ask for all paths, again and again."""
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            with httpx.Client(base_url=url, verify=False, timeout=20) as http:  # anew, for another worker
                for _ in range(10):
                    for path in paths:
                        http.get(path.format(number=random.randint(1, 99))).raise_for_status()
            stop.wait(0.01)

    for _ in range(40):  # what asks first is charged with what is loaded once: here, something that is not there
        with httpx.Client(base_url=url, verify=False, timeout=20) as http:
            http.get("/favicon.ico")
    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


@contextmanager
def browser() -> Iterator[Any]:
    """A tab of Chromium without a screen."""
    if CHROMIUM is None:
        raise SystemExit("Chromium is not installed (Debian: apt-get install chromium fonts-dejavu-core)")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium.new_page(viewport={"width": WIDTH, "height": 800}, device_scale_factor=SHARP)
        chromium.close()


if __name__ == "__main__":
    main(sys.argv[1:])
