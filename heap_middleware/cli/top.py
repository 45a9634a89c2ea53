"""`heap-middleware top`: what is on the page, once or again and again."""

import json
import sys
import time
from typing import Any, Final

from rich.console import Console
from rich.live import Live

from heap_middleware.cli.comparison import Comparison, compare, restarted
from heap_middleware.cli.keys import keys
from heap_middleware.cli.page import Page
from heap_middleware.cli.reading import Reading
from heap_middleware.cli.screen import SORT_KEYS, live_screen, printed
from heap_middleware.errors import CommandError

__all__ = ["once", "watch"]

_WIDE: Final = 160
"""Columns where nobody says how many: in a file no route is cut."""


def once(page: Page, *, as_json: bool, sort: str, limit: int) -> None:
    """Print what the page says now. Raises `CommandError` if it says nothing."""
    reading = page.read()
    found = compare(Reading({}, {}, {}, {}, 0.0, {}), reading, 0.0, sort)
    if as_json:
        _print_json(page, found)
        return
    console = Console() if sys.stdout.isatty() else Console(width=_WIDE)
    console.print(printed(found, limit))


def watch(page: Page, *, as_json: bool, sort: str, interval: float) -> None:
    """Show it again and again until `q` or Ctrl-C. Raises `CommandError` if the first reading fails; later ones may."""
    view = _View(page, sort)
    if as_json:
        while True:
            _print_json(page, view.found())
            while not _reads(view, interval):
                pass
    console = Console()
    with (
        keys() as wait,
        Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        while True:
            next_reading = time.monotonic() + interval
            while (left := next_reading - time.monotonic()) > 0:
                live.update(view.screen(console.size.height), refresh=True)
                pressed = wait(left)
                if pressed == "q":
                    return
                view.press(pressed)
            view.try_to_read()


def _reads(view: "_View", interval: float) -> bool:
    """Wait and read once more; a service that is deployed anew comes back, and until then a line says why not."""
    time.sleep(interval)
    try:
        view.read()
    except CommandError as error:
        print(f"heap-middleware: {error}", file=sys.stderr)
        return False
    return True


class _View:
    """What the live view knows: the reading everything is compared with, and the last one. Raises `CommandError`."""

    def __init__(self, page: Page, sort: str) -> None:
        self._page = page
        self._sort = sort
        self._first = self._now = page.read(), time.monotonic()
        self._trouble = ""

    def read(self) -> None:
        """Read the page. Raises `CommandError`."""
        self._now = self._page.read(), time.monotonic()
        if restarted(self._first[0], self._now[0]):
            self._first = self._now
        self._trouble = ""

    def try_to_read(self) -> None:
        """Read the page, or remember why it cannot be read: a service that is deployed anew comes back."""
        try:
            self.read()
        except CommandError as error:
            self._trouble = str(error)

    def press(self, key: str) -> None:
        """Sort by something else, or compare with this moment from now on."""
        self._sort = SORT_KEYS.get(key, self._sort)
        if key == "m":
            self._first = self._now

    def found(self) -> Comparison:
        """The last reading beside the first."""
        return compare(self._first[0], self._now[0], self._now[1] - self._first[1], self._sort)

    def screen(self, height: int) -> Any:
        """The same, to look at."""
        return live_screen(
            self.found(), address=self._page.shown, sort=self._sort, height=height, trouble=self._trouble
        )


def _print_json(page: Page, found: Comparison) -> None:
    print(json.dumps({"url": page.shown, "time": time.time(), **found.as_json()}), flush=True)
