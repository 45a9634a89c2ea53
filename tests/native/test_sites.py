"""Which line allocated what is alive."""

import gc
import json
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from heap_middleware.endpoints.ledger import Endpoint, Ledger
from heap_middleware.endpoints.sites import OTHER_SITE, Site, roots_of, rows_in_accelerator, sites_by_endpoint
from heap_middleware.endpoints.tracker import TrackerRecorder
from heap_middleware.endpoints.windows import Level

HERE = __file__.rpartition("/")[2]


@pytest.fixture
def native() -> Iterator[Any]:
    """The extension, not started."""
    from heap_middleware import _native

    yield _native
    _native.stop()
    _native.locate(0, [])


@pytest.fixture
def serving(native: Any) -> Callable[..., list[Any]]:
    """`serving(work, room=, app_roots=)` runs it in a request of endpoint 1; returns the rows of native.sites()."""

    kept: list[object] = []  # until the test is over

    def run(work: Callable[[], object], *, room: int = 4000, app_roots: tuple[str, ...] = ()) -> list[Any]:
        native.locate(room, roots_of(app_roots))
        native.start(262_144, 1, 0.01)
        request = native.begin()
        kept.append(work())
        request.end(1)
        return [row for row in native.sites() if row[0] == 1]

    return run


def here(offset: int = 0) -> int:
    return sys._getframe(1).f_lineno + offset


def test_the_line_that_allocated_is_named(serving):
    """A leak is found at its line: file, line number and function."""
    line = 0

    def leaking():
        nonlocal line
        line = here(1)
        return [bytes(100) for _ in range(50)]

    (largest, *_) = sorted(serving(leaking), key=lambda row: -row[1])
    _, objects, size, innermost, application = largest
    assert objects >= 50
    assert size >= 50 * 133
    assert application[0] == innermost[0] == __file__
    assert application[1] == line
    assert "leaking" in application[2]


def test_a_leak_through_a_library_is_named_at_the_line_that_called_it(serving):
    """Beside the library's own line I see mine."""
    text = json.dumps([[number, [str(number)]] for number in range(100)])
    lines: list[int] = []

    def parsing():
        lines.append(here(1))
        return json.loads(text)

    rows = serving(parsing)
    found = [row for row in rows if row[3][0] == json.decoder.__file__]
    assert sum(row[1] for row in found) >= 300
    assert {row[4][:2] for row in found} == {(__file__, lines[0])}


def test_nothing_is_named_twice_and_sums_agree_with_the_totals(serving, native):
    """The lines of a route add up to what it retains."""
    rows = serving(lambda: [{"n": [number]} for number in range(300)])
    gained, lost, gained_bytes, lost_bytes, *_ = native.snapshot()[1]
    keys = [row[3:] for row in rows]
    assert len(keys) == len(set(keys))
    assert sum(row[1] for row in rows) == gained - lost
    assert sum(row[2] for row in rows) == gained_bytes - lost_bytes
    assert gained - lost > 600


def make(number: int) -> Any:
    space: dict[str, Any] = {}
    exec(compile(f"def made_{number}():\n    return bytes(100)", "/app/made.py", "exec"), space)
    return space.pop(f"made_{number}")  # without a cycle: it dies at once


def test_functions_that_are_made_again_and_again_are_not_kept_alive(serving):
    """Dynamic code dies when its application lets it go, though its lines were seen."""
    codes: list[Any] = []

    def calling():
        for number in range(200):
            function = make(number)
            function()
            codes.append(weakref.ref(function.__code__))

    serving(calling)
    gc.collect()
    assert [code for code in codes if code() is not None] == []


def test_a_function_that_came_to_lie_where_another_died_has_its_own_name(serving):
    """Names are right where code objects take each other's place in memory."""
    kept: list[Any] = []

    def calling():
        for number in range(100):
            kept.append(make(number)())
        return kept

    names = {row[4][2]: row[1] for row in serving(calling) if row[4] and row[4][2].startswith("made")}
    assert names == {f"made_{number}": 1 for number in range(100)}


def test_lines_that_hold_nothing_make_room_for_those_that_do(serving):
    """A leak has its name after a thousand lines that leak nothing."""
    kept: list[Any] = []

    def calling():
        for number in range(1000):
            make(number)()
        kept.append(make(7777)())
        return kept

    rows = serving(calling, room=64)
    assert any(row[4] is not None and row[4][2] == "made_7777" for row in rows)


def test_what_there_is_no_room_for_is_other(serving, native):
    """With more lines than there is room for, the rest is summed, and nothing is lost."""
    kept: list[Any] = []

    def calling():
        for number in range(300):
            kept.append(make(number)())
        return kept

    rows = serving(calling, room=64)
    other = [row for row in rows if row[4] is None]
    assert len(rows) <= 65
    assert len(other) == 1
    assert other[0][1] > 200
    assert sum(row[1] for row in rows) >= 300


def test_the_applications_own_files_are_below_its_roots(serving):
    """With app_roots, only lines below them are the application's; an environment below them is not."""
    kept: list[Any] = []

    def at(path: str) -> Any:
        space: dict[str, Any] = {}
        exec(compile("def call(f):\n    return f()", path, "exec"), space)
        return space["call"]

    def calling():
        inner = at("/srv/shop/.venv/lib/python3/site-packages/lib.py")
        kept.append(at("/srv/shop/views.py")(lambda: inner(lambda: bytes(100))))
        kept.append(at("/elsewhere/tool.py")(lambda: bytes(50)))
        return kept

    rows = serving(calling, app_roots=("/srv/shop",))
    assert {row[4][0] for row in rows if row[4]} == {"/srv/shop/views.py"}
    assert {row[3][0] for row in rows if row[3]} > {"/elsewhere/tool.py"}


def test_hostile_names_are_text(serving):
    """Quotes, control characters, lone surrogates and long names come out as bounded text."""
    kept: list[Any] = []
    path = "/app/<script>\"'\n" + "x" * 5000

    def calling():
        space: dict[str, Any] = {}
        exec(compile("def f():\n    return bytes(100)", path, "exec"), space)
        space["f"].__code__ = space["f"].__code__.replace(co_qualname="f<b>\ud800\x00" + "y" * 5000)
        kept.append(space["f"]())
        return kept

    lines = [row[4] for row in serving(calling) if row[4] and row[4][2].endswith("yyy")]
    assert lines
    for file, _, function in lines:
        assert (len(file), len(function)) == (300, 300)
        (file + function).encode()


def test_deep_recursion_is_looked_at_to_a_depth(serving):
    """A line a thousand frames deep is named like any other."""
    kept: list[Any] = []

    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        else:
            kept.append(json.loads("[1, 2]"))

    rows = serving(lambda: deep(500))
    assert any(row[4] is not None and "deep" in row[4][2] for row in rows)


def test_each_step_of_a_deep_recursion_has_its_line(serving):
    """What is allocated on the way down is named at each depth."""
    kept: list[Any] = []

    def deep(left: int) -> None:
        kept.append(json.loads("[1, 2]"))
        if left:
            deep(left - 1)

    rows = serving(lambda: deep(400))
    assert sum(row[1] for row in rows if row[4] is not None and row[4][2].endswith("deep")) >= 401


def test_eight_threads_at_once_have_their_own_lines(native):
    """Lines are those of the thread that allocated."""
    native.locate(4000, roots_of(()))
    native.start(262_144, 1, 0.01)
    kept: list[Any] = []

    def work(number: int) -> None:
        function = make(number)
        request = native.begin()
        for _ in range(500):
            kept.append(function())
        request.end(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {row[0]: row[4][2] for row in native.sites() if row[1] >= 500}
    assert found == {number: f"made_{number}" for number in range(1, 9)}


def test_locate_says_what_it_wants(native):
    """A wrong use is an error that says what is right."""
    with pytest.raises(ValueError, match="at most 65535 sites"):
        native.locate(65536, [])
    with pytest.raises(ValueError, match="a path and a kind of 0 to 2"):
        native.locate(10, [("/app/", 3)])
    with pytest.raises(TypeError, match=r"\(path, kind\)"):
        native.locate(10, ["/app/"])
    native.start(1000, 1, 0.01)
    with pytest.raises(ValueError, match=r"before start\(\)"):
        native.locate(10, [])


def test_the_recorder_names_lines_by_endpoint(native):
    """Endpoints have the lines of what they retain, most objects first, as `file:line function`."""
    recorder = TrackerRecorder(Ledger(), sampling=1)
    environ: dict[str, Any] = {}
    window = recorder.begin(environ, Level.RELEASE)
    kept = list(map(bytes, [100] * 100))
    line = here(-1)
    recorder.finish(window, environ, Level.RELEASE, "GET", "/leak")
    sites = recorder.sites()[Endpoint("GET", "/leak")]
    assert sites[0].where.endswith(f"{HERE}:{line} test_the_recorder_names_lines_by_endpoint")
    assert sites[0].objects >= len(kept)


def row(number: int, objects: int, file: str) -> Any:
    return number, objects, objects * 10, (file, 1, "f"), None


def test_the_largest_lines_are_shown_and_the_rest_is_summed():
    """Twenty lines a route, `max_sites` in all, and sums stay true."""
    rows = [*(row(1, 100 + number, f"/one/{number}.py") for number in range(30)), row(2, 5, "/two.py"), row(9, 1, "/x")]
    found = sites_by_endpoint(rows, {1: "one", 2: "two"}, 15)
    assert set(found) == {"one", "two"}
    assert [site.where for site in found["one"]][:2] == ["/one/29.py:1 f", "/one/28.py:1 f"]
    assert len(found["one"]) == 16
    assert found["one"][-1].where == OTHER_SITE
    assert sum(site.objects for site in found["one"]) == sum(100 + number for number in range(30))
    assert found["two"] == (Site(OTHER_SITE, OTHER_SITE, 5, 50),)
    assert len(sites_by_endpoint(rows, {1: "one"}, 2000)["one"]) == 21


def test_a_line_that_nobody_knows_is_among_the_others():
    """What C code allocated below no Python frame counts all the same."""
    assert sites_by_endpoint([(1, 5, 50, None, None)], {1: "one"}, 15) == {
        "one": (Site(OTHER_SITE, OTHER_SITE, 5, 50),)
    }


def test_room_is_bounded_by_what_a_record_can_say():
    """The setting's largest value still fits a record."""
    assert rows_in_accelerator(2000) == 16_000
    assert rows_in_accelerator(8000) == 64_000
    assert rows_in_accelerator(100_000) == 65_535


def test_many_routes_have_their_lines(native: Any) -> None:
    """Two thousand endpoints at one line: each has its own row, and all that it keeps."""
    kept = []
    native.locate(4000, roots_of(()))
    native.start(262_144, 1, 0.01)
    for endpoint in range(1, 2001):
        request = native.begin()
        kept.append(bytearray(100))
        request.end(endpoint)
    objects: dict[int, float] = {}
    for row in native.sites():
        objects[row[0]] = objects.get(row[0], 0.0) + row[1]
    assert {endpoint for endpoint, found in objects.items() if found >= 2} >= set(range(1, 2001))
    assert len(kept) == 2000
