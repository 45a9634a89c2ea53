"""The pytest plugin, as a project that uses it sees it: each test runs a pytest of its own."""

import asyncio
import gc
import logging
import re
import sys
import tracemalloc

import pytest

from heap_middleware import HeapMonitor, HeapSettings, SettingsError, accelerator
from heap_middleware.heap import holders
from heap_middleware.testing import Leak
from heap_middleware.testing.ceiling import Ceiling
from heap_middleware.testing.meters import meter, tracing

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


class Left:
    """What the applications below leave behind."""


class Application:
    """WSGI and ASGI, with a path that leaks, one that fails, and one that wants something; all others are clean."""

    def __init__(self, make=Left):
        self.kept = []
        self.make = make

    def answer(self, path, body, kind):
        if path == "/leak":
            self.kept.append(self.make())
        if path == "/wants":
            return 200 if (body, kind) == (b'{"a": 1}', "application/json") else 400
        return 500 if path == "/broken" else 200

    def wsgi(self, environ, start_response):
        body, kind = environ["wsgi.input"].read(), environ.get("CONTENT_TYPE")
        start_response(f"{self.answer(environ['PATH_INFO'], body, kind)} said", [])
        return [b"an answer"]

    async def asgi(self, scope, receive, send):
        assert scope["type"] == "http", "there is no lifespan here"
        await send({"type": "http.response.start", "status": self.answer(scope["path"], b"", ""), "headers": []})
        await send({"type": "http.response.body", "body": b"an answer"})


SOON = {"after": 2, "over": 20}
"""Enough for the accelerator, which is exact: those that need it have its mark."""


@pytest.fixture
def without_accelerator(monkeypatch):
    """Pure Python, on a small heap: its census looks at all of it."""
    gc.collect()
    gc.freeze()
    monkeypatch.setattr(accelerator, "missing", "not here")
    monkeypatch.setattr(holders, "missing", "not here")
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("without_accelerator")
def test_pure_python_tells_a_leak_from_what_is_clean(heap_leaks):
    """With what is left, the line that made it, and who holds it; other things of the process count as well."""
    probe, course = heap_leaks(Application().wsgi), {"after": 10, "over": 50, "at_most": 0.8}
    probe.request("GET", "/clean").stays_flat(**course)
    with pytest.raises(Leak, match=r"^GET /leak leaves [123](\.\d+)? objects behind with every request") as caught:
        probe.request("GET", "/leak").stays_flat(**course)
    said = str(caught.value)
    assert f"{Left.__module__}.Left × 1 a request" in said
    assert re.search(r"made at  \S*test_testing\.py:\d+ × ", said)
    assert re.search(r"held by  .* → list → \S*Left × 8\d\b", said)


@pytest.mark.usefixtures("without_accelerator")
def test_a_type_that_the_process_is_full_of_has_no_holders(heap_leaks):
    """Whose lists they are pure Python cannot tell; what the requests left is told all the same."""
    with pytest.raises(Leak, match=r"builtins\.list × 1 a request") as caught:
        heap_leaks(Application(lambda: [Left]).wsgi).request("GET", "/leak").stays_flat(**SOON)
    assert not re.search(r"held by .*builtins\.list ×", str(caught.value))


@pytest.mark.accelerator
def test_what_is_gone_is_held_by_nobody():
    """Of a type of which requests left nothing alive."""
    with meter() as measured:
        assert measured.holders(f"{__name__}.Nothing") == []


@pytest.mark.accelerator
def test_in_the_loop_that_runs(heap_leaks):
    """A coroutine asks where it is itself; what fails there fails as elsewhere."""
    app = Application()

    async def ask(path):
        await heap_leaks(app.asgi).request("GET", path).stays_flat_here(**SOON)

    asyncio.run(ask("/clean"))
    with pytest.raises(Leak, match="GET /leak leaves"):
        asyncio.run(ask("/leak"))
    with pytest.raises(AssertionError, match="GET /broken answers 500, not below 400: 'an answer'"):
        asyncio.run(ask("/broken"))


@pytest.mark.accelerator
def test_what_our_client_logs_is_no_leak(heap_leaks, caplog):
    """Where INFO is logged, pytest keeps what httpx says of each request; what others say is there."""
    caplog.set_level(logging.INFO)
    probe = heap_leaks(Application().asgi).request("GET", "/clean")
    probe.stays_flat(**SOON)
    asyncio.run(probe.stays_flat_here(**SOON))
    logging.getLogger("httpx").info("HTTP Request: %s %s", "GET", "http://another.test/")
    assert [record.args for record in caplog.records if record.name == "httpx"] == [("GET", "http://another.test/")]


async def returns(scope, receive, send):
    if scope["type"] != "lifespan":
        await Application().asgi(scope, receive, send)


async def fails_to_start(scope, receive, send):
    await send({"type": "lifespan.startup.failed", "message": "no database"})
    raise OSError("no database")


@pytest.mark.accelerator
def test_without_a_lifespan(heap_leaks, caplog):
    """An application that raises in it, or returns, is asked without one, as servers do; that it raised is said."""
    for app in (Application().asgi, returns):
        heap_leaks(app).request("GET", "/clean").stays_flat(**SOON)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "heap_middleware"]
    assert said.startswith("the application is asked without its lifespan, in which it raised AssertionError(")
    with pytest.raises(OSError, match="no database"):
        heap_leaks(fails_to_start).request("GET", "/clean").stays_flat(**SOON)


@pytest.mark.accelerator
def test_a_lifespan_is_around_the_requests(heap_leaks):
    """An application that has one has started before the first request, and ends after the last."""
    course = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            for moment in ("startup", "shutdown"):
                course.append((await receive())["type"].removeprefix("lifespan."))
                await send({"type": f"lifespan.{moment}.complete"})
        else:
            assert course == ["startup"]
            await Application().asgi(scope, receive, send)

    heap_leaks(app).request("GET", "/clean").stays_flat(**SOON)
    assert course == ["startup", "shutdown"]


@pytest.mark.accelerator
def test_what_is_asked_for_is_sent(heap_leaks):
    """JSON and its header, another status, a path by number: one that is wrong fails the test."""
    app = heap_leaks(Application().wsgi)
    app.request("POST", "/wants", json={"a": 1}).stays_flat(**SOON)
    app.request("GET", "/broken", status=500).stays_flat(**SOON)
    app.request("GET", lambda number: f"/{number % 2}").stays_flat(**SOON)
    with pytest.raises(AssertionError, match="answers 400, not below 400"):
        app.request("POST", "/wants", json={"a": 2}).stays_flat(**SOON)
    with pytest.raises(AssertionError, match="answers 200, not 201"):
        app.request("GET", "/clean", status=201).stays_flat(**SOON)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda probe: probe(Application().wsgi).stays_flat(), "nothing to ask for"),
        (lambda probe: probe(Application().wsgi).request("GET", "/").stays_flat(over=5), "over is 5; allowed"),
        (
            lambda probe: probe(Application().wsgi).request("GET", "/").stays_flat(at_most=float("nan")),
            "at_most is nan; allowed",
        ),
        (
            lambda probe: probe(Application().wsgi).request("GET", "/").stays_flat(at_most="x"),
            "at_most is 'x'; allowed",
        ),
        (lambda probe: probe(Application().wsgi).request("GET", None), "request('GET', None); allowed"),
        (lambda probe: probe(Application().wsgi).request("GET", "/", status="404"), "status is '404'; allowed"),
        (lambda probe: probe(Application().wsgi).request("GET", "/", json=1, body=b"x"), "json= beside body="),
        (lambda probe: probe(Application().wsgi).request("GET", "/").stays_flat(after=0), "after is 0; allowed"),
        (lambda probe: probe(Application().wsgi).request("POST", "/", json={1, 2}), "json= is no JSON"),
        (lambda probe: probe(Application().wsgi, "cgi"), "interface is 'cgi'; allowed: 'wsgi' or 'asgi'"),
        (lambda probe: probe(7), "whether int is a WSGI or an ASGI application cannot be told"),
        (lambda probe: probe(print), "cannot be told from its parameters"),
        (
            lambda probe: asyncio.run(probe(Application().wsgi).request("GET", "/").stays_flat_here()),
            "stays_flat_here is for ASGI applications; for this one use stays_flat",
        ),
    ],
)
def test_a_question_that_is_none(heap_leaks, ask, says):
    """It says what is allowed, and is not taken for a route that does not leak."""
    with pytest.raises(SettingsError, match=re.escape(says)):
        ask(heap_leaks)


@pytest.mark.accelerator
def test_a_tracker_that_ran_before_runs_afterwards(heap_leaks):
    """An application's own middleware goes on, with the settings that it has by default."""
    accelerator.native.stop()
    heap_leaks(Application().wsgi).request("GET", "/clean").stays_flat(**SOON)
    assert not accelerator.native.statistics()["running"]
    HeapMonitor(HeapSettings(attribution="native"))
    heap_leaks(Application().wsgi).request("GET", "/clean").stays_flat(**SOON)
    assert accelerator.native.statistics()["running"]
    accelerator.native.stop()


@pytest.mark.heap_ceiling(objects=2000, bytes="1 MB")
def test_below_a_ceiling():
    """What is gone when the test ends does not count."""
    assert len([Left() for _ in range(5000)]) == 5000


def test_above_a_ceiling():
    """It is told how much is alive, of which type, and which line made it."""
    ceiling, kept = Ceiling.of((), {"objects": 100, "bytes": 10_000}), []
    with ceiling.watching():
        kept += [Left() for _ in range(500)]
    with pytest.raises(pytest.fail.Exception) as caught:
        ceiling.hold()
    said = str(caught.value)
    assert re.search(
        r"^the test leaves [\d,]+ objects alive, where 100 may be and [\d,]+ bytes alive, where 10,0", said
    )
    assert f"of type {Left.__module__}.Left × 500" in said
    assert re.search(r"made at \S*test_testing\.py:\d+ × ", said)


def test_tracing_that_runs_already_is_left_as_it_is():
    """Whoever traces memory by himself goes on afterwards."""
    tracemalloc.start()
    try:
        with tracing():
            pass
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("positional", "named", "says"),
    [
        ((), {}, "takes objects=, a number, or bytes=, such as '10 MB', or both"),
        ((5,), {}, "takes objects="),
        ((), {"objects": 1, "peak": 2}, "takes objects="),
        ((), {"objects": -1}, "heap_ceiling(objects=-1): allowed is an integer of 0 or more"),
        ((), {"bytes": "10 parsecs"}, "heap_ceiling(bytes='10 parsecs'): allowed is a number of bytes, or a text"),
        ((), {"bytes": -1}, "heap_ceiling(bytes=-1): allowed"),
    ],
)
def test_a_mark_that_is_wrong(positional, named, says):
    """It says what is allowed."""
    with pytest.raises(pytest.UsageError, match=re.escape(says)):
        Ceiling.of(positional, named)


def test_what_is_not_installed_is_named(heap_leaks, monkeypatch):
    """An ASGI application is asked by Starlette's client; who has none is told so."""
    monkeypatch.setitem(sys.modules, "starlette.testclient", None)
    with pytest.raises(SettingsError, match="heap_leaks needs starlette and httpx"):
        heap_leaks(fails_to_start).request("GET", "/").stays_flat(**SOON)
