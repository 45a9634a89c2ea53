"""docs/worked-example.md: a leak of a published library, found on the page that the middleware serves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import dateparser
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "real_leak" / "app.py"
PAGE = (ROOT / "docs" / "worked-example.md").read_text(encoding="utf-8")

pytestmark = [pytest.mark.once, pytest.mark.accelerator]


def test_the_docs_show_the_example() -> None:
    """The service that the docs show is the one in the repository, line by line."""
    assert f"```python\n{EXAMPLE.read_text(encoding='utf-8')}```" in PAGE


def test_the_page_finds_the_leak_of_a_real_library() -> None:
    """The example ends as the docs say: six objects a request, of Settings, from that line, held by that dict."""
    assert dateparser.__version__ == "1.4.3"
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("HEAP_MIDDLEWARE_", "COVERAGE_"))}
    done = subprocess.run(
        [sys.executable, "find.py"], cwd=EXAMPLE.parent, env=bare, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (shown,) = re.findall(r"```text\n(GET /reminders leaks.*?)```", PAGE, re.S)
    assert re.match(r"GET /reminders leaks (6|5\.[5-9]\d?|6\.[0-4]\d?) objects a request", done.stdout)
    line = next(n for n, text in enumerate(EXAMPLE.read_text().splitlines(), 1) if "dateparser.parse(" in text)
    for found in (
        "type  dateparser.conf.Settings × ",
        "type  datetime.datetime × ",
        f"line  app.py:{line} remind, in dateparser/utils/__init__.py:215 registry.<locals>.choose.<locals>.",
        "held  class dateparser.conf.Settings → attribute '__registry_dict' → dict → dateparser.conf.Settings × ",
    ):
        assert found in done.stdout
        assert found in shown
