"""`heap-middleware top` in a terminal, over the real example, read from the screen as a person would."""

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest

from heap_middleware.cli.keys import keys

pytestmark = pytest.mark.one_python

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "flask_app"
SECONDS = 150  # of which a busy machine takes most until there is a verdict
WIDTH, HEIGHT = 140, 30


class Terminal:
    """A terminal of 140 by 30 with `top` in it."""

    def __init__(self, *arguments: str) -> None:
        self.screen = pyte.Screen(WIDTH, HEIGHT)
        self._stream = pyte.ByteStream(self.screen)
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "heap_middleware", "top", *arguments],
            dimensions=(HEIGHT, WIDTH),
            cwd="/",  # in the checkout, -m would find its package and not the installed one
            env={**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8"},
        )

    def wait(self, holds: Callable[[list[str]], Any]) -> Any:
        """Read until the screen is as wanted; what `holds` returned."""
        deadline = time.monotonic() + SECONDS
        while not (found := holds(self.screen.display)):
            assert time.monotonic() < deadline, "\n".join(self.screen.display)
            try:
                self._stream.feed(self.child.read_nonblocking(65536, timeout=0.2))
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                pytest.fail("top has ended\n" + "\n".join(self.screen.display))
        return found

    def end(self) -> int | None:
        """Wait until it has ended by itself; its exit code."""
        self.child.expect(pexpect.EOF, timeout=SECONDS)
        self.child.close()
        return self.child.exitstatus


@pytest.fixture
def example(serve: Callable[..., Any], free_port: Callable[[], int], tmp_path: Path) -> Callable[[], Any]:
    """Starts the Flask example with four workers, always on the same port."""
    copy = shutil.copytree(EXAMPLE, tmp_path / "flask_app", ignore=shutil.ignore_patterns(".heap_workers"))
    port = free_port()
    settings = {"SAMPLING": "1", "CENSUS_MIN_INTERVAL": "0.2", "WORKERS_WAIT": "10"}
    env = {"COVERAGE_PROCESS_CONFIG": None, **{f"HEAP_MIDDLEWARE_{name}": value for name, value in settings.items()}}
    return lambda: serve("gunicorn", app="app:app", cwd=copy, port=port, env=env, args=["--workers", "4"])


def first_route(lines: list[str]) -> str:
    """The first row of the table of routes."""
    heading = next((number for number, line in enumerate(lines) if line.startswith("route ")), None)
    return "" if heading is None else lines[heading + 1].split("  ")[0]


def compared(lines: list[str]) -> int:
    """How many seconds ago the reading is that this one is compared with; 0 if that is not said."""
    said = re.search(r"compared with (\d+) s ago", lines[0])
    return int(said.group(1)) if said else 0


def grown(lines: list[str]) -> int:
    """By how many objects the leaked type has grown since then."""
    row = next((line for line in lines if line.startswith("app.LeakObj ")), "app.LeakObj +0")
    return int(row.split()[1].replace(",", ""))


@contextmanager
def traffic(connection: Any, *paths: str) -> Iterator[None]:
    """The routes are asked for in turn while the block runs."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            visit(connection, *paths)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def visit(connection: Any, *paths: str, times: int = 1) -> None:
    for _ in range(times):
        for path in paths:
            connection.text(path)


@pytest.mark.once
@pytest.mark.accelerator
def test_the_leaking_route_is_on_top(example: Callable[[], Any], connect: Callable[[str], Any]) -> None:
    """The leaking route comes first, judged, with what it keeps; keys sort, mark and quit; a restart is outlived."""
    server = example()
    connection = connect(server.url)
    visit(connection, "/clean", times=30)
    terminal = Terminal(server.url, "--interval", "0.5")
    assert terminal.wait(first_route) == "GET /clean"
    with traffic(connection, "/clean", "/leakable", "/search", "/users/1"):
        judged = re.compile(r"GET /leakable +[12]\.\d\d +[12]\.\d\d .*app\.LeakObj × ")
        terminal.wait(lambda lines: any(judged.match(line) for line in lines))
        # What is read may end amid a picture: each part of it comes.
        terminal.wait(lambda lines: first_route(lines) == "GET /leakable")
        terminal.wait(lambda lines: any(re.match(r"app\.LeakObj +\+[\d,]+ ", line) for line in lines))
        terminal.wait(lambda lines: any("4 workers, heap " in line for line in lines))

    visit(connection, "/clean", times=50)
    terminal.child.send("n")
    terminal.wait(lambda lines: first_route(lines) == "GET /clean")
    for seconds in (3, 1):  # a mark is the last reading; a worker that was busy then had its census from before in it
        terminal.child.send("m")
        terminal.wait(lambda lines: compared(lines) == 0)
        terminal.wait(lambda lines, seconds=seconds: compared(lines) >= seconds)
    terminal.wait(lambda lines: grown(lines) < 100)

    server.stop()
    terminal.wait(lambda lines: any("cannot be read: Connection refused" in line for line in lines))
    server = example()
    terminal.wait(lambda lines: not any("cannot be read" in line for line in lines))
    visit(connection, "/search", times=3)
    terminal.wait(lambda lines: first_route(lines) == "GET /search")
    terminal.child.send("q")
    assert terminal.end() == 0


def test_a_service_that_is_not_there(free_port: Callable[[], int]) -> None:
    """If the first reading fails there is no live view: one line, and exit code 2."""
    terminal = Terminal(f"127.0.0.1:{free_port()}")
    said = terminal.child.read().decode()
    terminal.child.close()
    assert terminal.child.exitstatus == 2
    assert said.strip().endswith("cannot be read: Connection refused")
    assert said.strip().count("\n") == 0


def test_control_c_gives_the_terminal_back(pages: Any) -> None:
    """Ctrl-C ends it with exit code 130, without a traceback, and the terminal shows the cursor again."""
    pages.body = b'heap_middleware_info{version="1",backend="native",census="tracked",python="3"} 1.0\n'
    terminal = Terminal(pages.url)
    terminal.wait(lambda lines: any("No route yet" in line for line in lines))
    terminal.child.sendintr()
    said = terminal.child.read().decode()
    terminal.child.close()
    assert terminal.child.exitstatus == 130
    assert "Traceback" not in said
    assert "\x1b[?25h" in said  # the cursor
    assert "\x1b[?1049l" in said  # the screen that was there before


def test_json_goes_on_after_a_reading_that_failed(pages: Any) -> None:
    """A service that is deployed anew: what failed is a line on standard error, and the next readings come."""
    pages.body = b'heap_middleware_info{version="1",backend="native",census="tracked",python="3"} 1.0\n'
    terminal = Terminal(pages.url, "--json", "--interval", "0.1")
    terminal.child.expect(r'\{"url": .*\}\r\n', timeout=SECONDS)
    pages.status = 503
    terminal.child.expect(r"heap-middleware: \S+ answers 503", timeout=SECONDS)
    pages.status = 200
    terminal.child.expect(r'\{"url": .*\}\r\n', timeout=SECONDS)
    terminal.child.sendintr()
    assert terminal.end() == 130


def test_json_line_by_line(pages: Any) -> None:
    """Without --once, --json is one line each interval, at once and not when a buffer is full."""
    pages.body = b'heap_middleware_info{version="1",backend="native",census="tracked",python="3"} 1.0\n'
    terminal = Terminal(pages.url, "--json", "--interval", "0.1")
    for _ in range(3):
        terminal.child.expect(r'\{"url": .*\}\r\n', timeout=SECONDS)
    terminal.child.sendintr()
    assert terminal.end() == 130


def page(clean: int, leaked: int, census: float = 1.0) -> bytes:
    """A service in which a route leaks, and another is asked for."""
    return f"""\
heap_middleware_info{{version="1",backend="native",census="tracked",python="3"}} 1.0
heap_middleware_overhead_seconds_total{{part="census"}} {census}
heap_endpoint_requests_total{{method="GET",route="/leakable"}} {leaked}
heap_endpoint_retained_objects{{method="GET",route="/leakable"}} {leaked}
heap_endpoint_leak_objects_per_request{{method="GET",route="/leakable"}} 1.0
heap_endpoint_requests_total{{method="GET",route="/clean"}} {clean}
heap_endpoint_retained_objects{{method="GET",route="/clean"}} 0
object_count{{module="app.LeakObj"}} {leaked}
""".encode()


def test_keys_sort_mark_and_quit(pages: Any) -> None:
    """`n` sorts by requests, `m` compares with this moment from now on, other keys do nothing, `q` quits."""
    pages.body = page(clean=900, leaked=100)
    terminal = Terminal(pages.url, "--interval", "0.1")
    terminal.wait(lambda lines: first_route(lines) == "GET /leakable")
    terminal.child.send("x")
    terminal.child.send("n")
    terminal.wait(lambda lines: first_route(lines) == "GET /clean")
    pages.body = page(clean=900, leaked=350, census=1.2)
    terminal.wait(lambda lines: grown(lines) == 250)
    assert any("of a core (census " in line for line in terminal.screen.display)
    terminal.child.send("m")
    terminal.wait(lambda lines: grown(lines) == 0)
    terminal.child.send("q")
    assert terminal.end() == 0


def test_a_service_that_is_deployed_anew(pages: Any) -> None:
    """While it is away the last figures stay, with the reason above them; what comes then is compared with itself."""
    pages.body = page(clean=900, leaked=100)
    terminal = Terminal(pages.url, "--interval", "0.1")
    terminal.wait(lambda lines: first_route(lines) == "GET /leakable")
    pages.status = 503
    terminal.wait(lambda lines: any("answers 503: its census failed" in line for line in lines))
    assert first_route(terminal.screen.display) == "GET /leakable"
    pages.body, pages.status = page(clean=5, leaked=7), 200
    terminal.wait(lambda lines: not any("answers 503" in line for line in lines))
    terminal.wait(lambda lines: any(line.startswith("app.LeakObj  ") and " +0 " in line for line in lines))
    terminal.child.sendintr()
    assert terminal.end() == 130


def test_without_a_terminal_there_are_no_keys() -> None:
    """Where nobody can press any, it waits as long as it was told to, and goes on."""
    with Path(os.devnull).open() as nobody, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", nobody)
        with keys() as wait:
            began = time.monotonic()
            assert wait(0.05) == ""
            assert time.monotonic() - began >= 0.05
