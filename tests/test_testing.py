"""The pytest plugin, as a project that uses it sees it: each test runs a pytest of its own."""

import re
import sys

import pytest

pytestmark = pytest.mark.one_python

pytest_plugins = "pytester"
BLOCKS = 1 if sys.version_info >= (3, 13) else 2
"""Of an object with no attributes: its dict is a block of its own up to Python 3.12."""

APPS = """
import contextlib, functools
from fastapi import BackgroundTasks, FastAPI
from flask import Flask, request, session

class LeakObj:
    pass

kept, strings, started = [], {}, []

flask_app = Flask(__name__)
flask_app.secret_key = "x"

@flask_app.get("/leak")
def leak():
    kept.append(LeakObj())
    return {"kept": len(kept)}

@flask_app.get("/clean")
def clean():
    return {"made": len([LeakObj() for _ in range(50)])}

@flask_app.get("/session")
def with_session():
    session["seen"] = True
    return "ok"

@flask_app.post("/echo")
def echo():
    assert request.headers["X-Who"] == "me"
    return {"got": request.get_json()}

@flask_app.get("/users/<int:number>")
def user(number):
    strings[number] = str(number)
    return "ok"

@functools.lru_cache(maxsize=100)
def cached(number):
    return [number]

@flask_app.get("/cached/<int:number>")
def cache(number):
    return str(cached(number))

@flask_app.get("/broken")
def broken():
    raise ZeroDivisionError("the application's own")

@contextlib.asynccontextmanager
async def lifespan(app):
    started.append("started")
    yield
    started.append("stopped")

api = FastAPI(lifespan=lifespan)

@api.get("/leak")
async def api_leak():
    kept.append(LeakObj())
    return {}

@api.get("/leak/thread")
def api_thread():
    kept.append(LeakObj())
    return {}

@api.get("/leak/background")
async def api_background(tasks: BackgroundTasks):
    tasks.add_task(kept.append, LeakObj())
    return {}

@api.get("/clean")
async def api_clean():
    return {"made": len([LeakObj() for _ in range(50)])}

@api.get("/clean/thread")
def api_clean_thread():
    return {"made": len([LeakObj() for _ in range(50)])}
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """`run(test source, *options)` runs it beside the applications; the plugin comes by its entry point."""
    pytester.makepyfile(shop=APPS)
    # In CI pytest prints a failure's message a second time, in its summary.
    for variable in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(variable, raising=False)

    def run_it(source, *options):
        pytester.makepyfile(test_shop=f"import pytest\nimport shop\n\n{source}")
        pytester.makeini("[pytest]\nfilterwarnings = error\n    ignore:.*asyncio_default_fixture_loop_scope")
        return pytester.runpytest_subprocess("--strict-markers", "-p", "no:cacheprovider", *options, timeout=300)

    return run_it


@pytest.mark.once
def test_clean_routes_pass(run):
    """Routes that leave nothing behind pass: WSGI and ASGI, on threads, with sessions, with a cache that is full."""
    result = run(
        """
@pytest.mark.parametrize("path", ["/clean", "/session"])
def test_flask(heap_leaks, path):
    heap_leaks(shop.flask_app).request("GET", path).stays_flat(after=20, over=200)

def test_cache(heap_leaks):
    probe = heap_leaks(shop.flask_app).request("GET", lambda number: f"/cached/{number + 1000}")
    probe.stays_flat(after=200, over=200)

def test_body(heap_leaks):
    probe = heap_leaks(shop.flask_app).request("POST", "/echo", json={"a": [1]}, headers={"X-Who": "me"})
    probe.stays_flat(after=20, over=100)

@pytest.mark.parametrize("path", ["/clean", "/clean/thread"])
def test_fastapi(heap_leaks, path):
    heap_leaks(shop.api).request("GET", path).stays_flat(after=20, over=200)
    assert shop.started[-2:] == ["started", "stopped"]
"""
    )
    result.assert_outcomes(passed=6)


LEAKS = [("flask_app", "/leak"), ("api", "/leak"), ("api", "/leak/thread"), ("api", "/leak/background")]


@pytest.mark.accelerator
def test_a_leak_fails_and_says_why(run):
    """A leak fails with objects per request, types, the allocating line, and who holds them."""
    result = run(
        f"""
@pytest.mark.parametrize(("app", "path"), {LEAKS})
def test_it(heap_leaks, app, path):
    shop.kept.clear()
    heap_leaks(getattr(shop, app)).request("GET", path).stays_flat(after=20, over=200)
"""
    )
    result.assert_outcomes(failed=4)
    said = result.stdout.str()
    for _, path in LEAKS:
        assert f"GET {path} leaves {BLOCKS} objects behind with every request, where 0.01 may be: {BLOCKS * 2}0" in said
    assert said.count("shop.LeakObj × 1 a request") == 4
    assert len(re.findall(rf"made at  shop\.py:\d+ \w+ × {BLOCKS} a request", said)) == 4
    assert said.count("held by  module shop → global 'kept' → list → shop.LeakObj × 240") == 4


@pytest.mark.once
def test_a_leak_is_found_without_the_accelerator(run):
    """In pure Python a leak fails, too, with the same four answers, and a clean route passes."""
    result = run(
        """
from heap_middleware import accelerator
accelerator.missing = "not here"

def test_leak(heap_leaks):
    heap_leaks(shop.flask_app).request("GET", "/leak").stays_flat(after=20, over=200)

def test_clean(heap_leaks):
    heap_leaks(shop.flask_app).request("GET", "/clean").stays_flat(after=20, over=200)
"""
    )
    result.assert_outcomes(failed=1, passed=1)
    said = result.stdout.str()
    (left,) = re.findall(r"GET /leak leaves (\S+) objects behind with every request, where 0.1 may be", said)
    assert float(left) == pytest.approx(BLOCKS, abs=0.1)
    assert "shop.LeakObj × 1 a request" in said
    assert re.search(rf"made at  .*shop\.py:\d+ × {BLOCKS}", said)
    assert "module shop → global 'kept' → list → shop.LeakObj" in said


@pytest.mark.once
@pytest.mark.accelerator
def test_one_line_that_leaks_through_several_of_a_library(run):
    """Of a line that keeps what several lines of a library made, all objects are told."""
    result = run(
        """
from flask import Flask
import fractions

app = Flask("several")

@app.get("/leak")
def leak():
    shop.kept.append((fractions.Fraction(10**20, 3), fractions.Fraction(f"{10**20}/7")))
    return "ok"

def test_it(heap_leaks):
    heap_leaks(app).request("GET", "/leak").stays_flat(after=20, over=100)
"""
    )
    result.assert_outcomes(failed=1)
    said = result.stdout.str()
    (left,) = re.findall(r"leaves (\S+) objects behind", said)
    (line,) = re.findall(r"made at  test_shop\.py:\d+ leak × (\S+) a request", said)
    assert float(line) == pytest.approx(float(left), abs=0.3)


@pytest.mark.once
@pytest.mark.accelerator
def test_a_middleware_around_the_application_does_not_hide_the_leak(run):
    """An application that has our middleware around it, sampling what it likes, is measured all the same."""
    result = run(
        """
from heap_middleware.wsgi import HeapMetricsMiddleware

def test_it(heap_leaks):
    app = HeapMetricsMiddleware(shop.flask_app, attribution=True, sampling=1000)
    heap_leaks(app).request("GET", "/leak").stays_flat(after=20, over=200)
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*GET /leak leaves {BLOCKS} objects behind with every request*"])


@pytest.mark.once
def test_strings_and_a_cache_that_fills_are_found(run):
    """Leaks of plain strings in a dict are found; the message says what a cache that fills looks like."""
    result = run(
        """
def test_it(heap_leaks):
    heap_leaks(shop.flask_app).request("GET", lambda number: f"/users/{number + 1000}").stays_flat(after=20, over=200)
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*of type*", "*raise after=*"])


@pytest.mark.once
def test_at_most_allows_what_it_says(run):
    """With `at_most` above the leak the test passes."""
    result = run(
        """
def test_it(heap_leaks):
    heap_leaks(shop.flask_app).request("GET", "/leak").stays_flat(after=20, over=100, at_most=2.5)
"""
    )
    result.assert_outcomes(passed=1)


@pytest.mark.once
def test_several_requests_are_sent_in_turns(run):
    """A leak in one of several routes is found, and all of them are named."""
    result = run(
        """
def test_it(heap_leaks):
    probe = heap_leaks(shop.flask_app).request("GET", "/clean").request("GET", "/leak")
    probe.stays_flat(after=20, over=200)
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*GET /clean, GET /leak leaves {BLOCKS / 2:g} objects behind*"])


@pytest.mark.once
def test_a_coroutine_tests_in_its_own_loop(run):
    """`stays_flat_here` asks in the loop that runs the test, on asyncio and trio."""
    result = run(
        """
pytestmark = pytest.mark.anyio

async def test_leak(heap_leaks):
    await heap_leaks(shop.api).request("GET", "/leak").stays_flat_here(after=20, over=100)

async def test_clean(heap_leaks):
    await heap_leaks(shop.api).request("GET", "/clean").stays_flat_here(after=20, over=100)
"""
    )
    result.assert_outcomes(failed=2, passed=2)


NO_LIFESPAN = """
import pytest

kept = []

def application(without):
    async def app(scope, receive, send):
        if scope["type"] == "lifespan" and without == "returns":
            return
        assert scope["type"] == "http", "there is no lifespan here"
        if scope["path"] == "/leak":
            kept.append(bytearray(100))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
    return app

@pytest.mark.parametrize("without", ["raises", "returns"])
@pytest.mark.parametrize("path", ["/leak", "/clean"])
def test_it(heap_leaks, without, path):
    heap_leaks(application(without)).request("GET", path).stays_flat(after=20, over=50)

async def fails(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
    raise OSError("no database")

def test_fails(heap_leaks):
    heap_leaks(fails).request("GET", "/").stays_flat(after=20, over=50)
"""


@pytest.mark.once
def test_an_application_without_a_lifespan(run):
    """It is asked without one, as servers do; one that fails to start fails the test."""
    result = run(NO_LIFESPAN)
    result.assert_outcomes(passed=2, failed=3)
    # Of the first it is said that it may not have started.
    said = "*without its lifespan, in which it raised AssertionError(*there is no lifespan here*"
    result.stdout.fnmatch_lines([said, "*OSError: no database*"])


@pytest.mark.once
def test_beside_pytest_asyncio(run):
    """Its coroutine tests use the fixture as others do, in their own loop or in another one."""
    result = run(
        """
import asyncio

@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/leak", "/clean"])
async def test_here(heap_leaks, path):
    await asyncio.sleep(0)
    await heap_leaks(shop.api).request("GET", path).stays_flat_here(after=20, over=100)

@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/leak", "/clean"])
async def test_apart(heap_leaks, path):
    heap_leaks(shop.api).request("GET", path).stays_flat(after=20, over=100)
"""
    )
    result.assert_outcomes(passed=2, failed=2)


@pytest.mark.once
def test_with_xdist(run):
    """Tests that are spread over processes find the same."""
    result = run(
        """
@pytest.mark.parametrize("n", range(4))
def test_clean(heap_leaks, n):
    heap_leaks(shop.flask_app).request("GET", "/clean").stays_flat(after=20, over=100)

def test_leak(heap_leaks):
    heap_leaks(shop.flask_app).request("GET", "/leak").stays_flat(after=20, over=100)
""",
        "-n",
        "2",
    )
    result.assert_outcomes(failed=1, passed=4)


WRONG = [
    (
        'heap_leaks(shop.flask_app).request("GET", "/nowhere").stays_flat()',
        "GET /nowhere answers 404, not below 400",
    ),
    ('heap_leaks(shop.flask_app).request("GET", "/clean", status=201).stays_flat()', "answers 200, not 201"),
    (
        'heap_leaks(shop.flask_app).request("GET", "/clean").stays_flat(over=5)',
        "over is 5; allowed: an integer of 20",
    ),
    ('heap_leaks(shop.flask_app).request("GET", "/clean").stays_flat(after=0)', "after is 0; allowed"),
    ("heap_leaks(shop.flask_app).stays_flat()", "nothing to ask for"),
    ("heap_leaks(print)", "cannot be told from its parameters"),
    ("heap_leaks(shop.api, 'cgi')", "interface is 'cgi'; allowed: 'wsgi' or 'asgi'"),
    ('heap_leaks(shop.flask_app).request("POST", "/echo", json={1, 2})', "json= is no JSON"),
]


@pytest.mark.once
def test_what_is_wrong_is_said(run):
    """A wrong path, answer or argument fails with what was wrong, and is not taken for a route that does not leak."""
    result = run("".join(f"def test_{at}(heap_leaks):\n    {statement}\n\n" for at, (statement, _) in enumerate(WRONG)))
    result.assert_outcomes(failed=len(WRONG))
    said = result.stdout.str()
    for _, says in WRONG:
        assert says in said


@pytest.mark.once
def test_an_expected_status_is_no_failure(run):
    """An error page is tested for leaks with the status that is expected."""
    result = run(
        """
def test_it(heap_leaks):
    heap_leaks(shop.flask_app).request("GET", "/nowhere", status=404).stays_flat(after=20, over=100)
"""
    )
    result.assert_outcomes(passed=1)


@pytest.mark.once
def test_a_ceiling_holds(run):
    """A test that leaves more alive than its mark allows fails, with numbers, types and lines; others pass."""
    result = run(
        """
@pytest.mark.heap_ceiling(objects=100)
def test_too_many():
    shop.kept.extend([shop.LeakObj() for _ in range(500)])

@pytest.mark.heap_ceiling(bytes="1 MB")
def test_too_large():
    shop.kept.append(bytearray(2_000_000))

@pytest.mark.heap_ceiling(objects=1000, bytes="1 MiB")
def test_fine():
    assert len([shop.LeakObj() for _ in range(50_000)]) == 50_000

@pytest.mark.heap_ceiling(objects=0)
def test_fails_for_its_own_reason():
    shop.kept.append([1])
    assert False, "its own reason"
"""
    )
    result.assert_outcomes(failed=3, passed=1)
    said = result.stdout.str()
    assert re.search(
        r"the test leaves 1,0\d\d objects alive, where 100 may be|the test leaves 5\d\d objects alive", said
    )
    assert "shop.LeakObj × 500" in said
    assert re.search(r"the test leaves 2,0\d\d,\d{3} bytes alive, where 1,000,000 may be", said)
    assert re.search(r"made at .*test_shop\.py:\d+", said)
    assert "its own reason" in said


NO_CEILINGS = ["", "5", "objects=-1", "objects='many'", "bytes='10 parsecs'", "bytes=-1", "objects=1, peak=2"]


@pytest.mark.once
def test_a_ceiling_that_is_none(run):
    """A wrong mark is an error that says what is allowed, before the test runs."""
    result = run(
        "".join(
            f"@pytest.mark.heap_ceiling({arguments})\ndef test_{at}():\n    print('it ran')\n\n"
            for at, arguments in enumerate(NO_CEILINGS)
        )
    )
    result.assert_outcomes(failed=len(NO_CEILINGS))
    said = result.stdout.str()
    assert said.count("UsageError: heap_ceiling takes objects=, a number, or bytes=, such as '10 MB', or both") == 3
    assert "heap_ceiling(objects='many'): allowed is an integer of 0 or more" in said
    assert "heap_ceiling(bytes='10 parsecs'): allowed is a number of bytes, or a text such as '10 MB'" in said
    assert "Captured stdout" not in said
