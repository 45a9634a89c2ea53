"""The report as JSON, asked as a server asks."""

import asyncio
import gc
import gzip
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_middleware import HeapMonitor, HeapSettings, accelerator
from heap_middleware.asgi import HeapMetricsMiddleware as AsgiMiddleware
from heap_middleware.endpoints.ledger import Endpoint
from heap_middleware.endpoints.suspects import Suspect
from heap_middleware.exposition.access import Caller
from heap_middleware.exposition.report import search as search_module
from heap_middleware.exposition.requests import PageRequest
from heap_middleware.heap import holders as holders_module
from heap_middleware.wsgi import HeapMetricsMiddleware as WsgiMiddleware

DOCUMENT = Path(__file__).parents[2] / "docs" / "report-api.md"
STATIC = Path(__file__).parents[2] / "heap_middleware" / "exposition" / "report" / "static"
HERE = Caller("127.0.0.1", {"host": "localhost"})
TOKEN = "a token of my own"


class Explosive:
    """Records that somebody wanted to see it."""

    asked: list[str] = []

    def __repr__(self) -> str:
        self.asked.append("repr")
        return "secret-4711"

    __str__ = __repr__


kept: list[Any] = []


@pytest.fixture(scope="module")
def monitor() -> HeapMonitor:
    """A monitor with a report, whose application has leaked."""
    backend = "native" if accelerator.missing is None else "windows"
    if backend == "native":
        accelerator.native.stop()  # the first monitor's sampling holds for all
    monitor = HeapMonitor(HeapSettings(report_path="/heap", attribution=backend, sampling=1, census_min_interval=0))
    app = WsgiMiddleware(leaking, monitor=monitor)
    for _ in range(20):
        list(app({"PATH_INFO": "/x", "REQUEST_METHOD": "GET"}, lambda *_: None))
    return monitor


def leaking(environ: Any, start_response: Any) -> list[bytes]:
    kept.append({"secret-key": Explosive(), "secret-4712": "secret-4713"})
    start_response("200 OK", [])
    return [b""]


def ask(monitor: HeapMonitor, name: str, caller: Caller = HERE, verb: str = "GET", **fields: str) -> Any:
    request = PageRequest(verb, f"/heap{name}", urlencode(fields), caller=caller)
    assert request.path in monitor.paths
    return monitor.respond(request)


def data(monitor: HeapMonitor, name: str, **fields: str) -> Any:
    page = ask(monitor, f"/api/v1/{name}", **fields)
    assert page.status == 200, page.body
    assert dict(page.headers)["Content-Type"] == "application/json"
    return json.loads(page.body)


def lines(page: Any) -> list[Any]:
    return [json.loads(line) for line in page.body]


def fields_of(found: Any) -> set[str]:
    if isinstance(found, dict):
        return set(found).union(*map(fields_of, found.values())) if found else set()
    return set().union(*map(fields_of, found)) if isinstance(found, list) else set()


def test_the_documented_fields_are_those_served(monitor):
    """docs/report-api.md names every field, and no other."""
    first = data(monitor, "overview")["routes"][0]
    route = data(monitor, "route", method=first["method"], route=first["route"])
    route["types_history"]["types"] = []  # by type
    tree = lines(ask(monitor, "/api/v1/holders", module=f"{__name__}.Explosive"))[-1]
    found = data(monitor, "overview")
    for by_part in ("overhead_seconds", "faults"):
        found["about"][by_part] = {}
    served = fields_of([found, route, data(monitor, "heap"), tree])
    written = set(re.findall(r"`([a-z_]+)`", DOCUMENT.read_text()))
    assert served <= written, served - written
    only_for_leaks = {"words", "lower", "upper", "confidence", "bytes_per_day", "since"}
    other = {
        "depth",
        "items",
        "time",
        "cancelled",
        "failed",
        "progress",
        "level",
        "error",
        "report_path",
        "workers_dir",
        "heap",
    }
    native = {"records", "interval", "sites", "where", "innermost", "module", "objects", "tracker"}
    assert written - served <= only_for_leaks | other | native


def test_a_route_shows_types_and_lines(monitor):
    """The route that leaked is there with its requests, what it retains, of which types and from which lines."""
    (row,) = data(monitor, "overview")["routes"]
    assert (row["method"], row["route"], row["requests"]) == ("GET", "__unmatched__", 20)
    found = data(monitor, "route", method="GET", route="__unmatched__")
    if accelerator.missing is None:
        assert found["retained_objects"] >= 40
        assert any("leaking" in site["where"] for site in found["sites"])
        assert {f"{__name__}.Explosive", "builtins.dict"} <= {row["module"] for row in found["types"]}
        assert found["types_history"]["times"]
    assert found["history"]["requests"][-1] == 20
    assert ask(monitor, "/api/v1/route", method="GET", route="/none").status == 404


def test_everything_in_one_file(monitor):
    """The download has the overview, each route in full, and the heap."""
    page = ask(monitor, "/api/v1/report")
    found = json.loads(page.body)
    assert "attachment" in dict(page.headers)["Content-Disposition"]
    assert found["routes"][0]["history"]["times"]
    assert found["heap"]["objects"] > 1000


def test_a_leak_is_shown_with_its_verdict(monitor, monkeypatch):
    """A route that is said to leak has the verdict in words and in numbers; what it loses is that of the verdict."""
    types = (("app.Left", 7.0), ("builtins.dict", 7.0))
    suspect = Suspect(Endpoint("GET", "__unmatched__"), 2.5, 2.4, 2.6, 0.99, 96.0, 5e9, 12_345, 1e9, types)
    monkeypatch.setattr(monitor, "suspects", lambda: [suspect])
    (row,) = data(monitor, "overview")["routes"]
    assert (row["objects_per_request"], row["bytes_per_request"]) == (2.5, 96.0)
    assert row["verdict"]["words"] == str(suspect)
    assert (row["verdict"]["lower"], row["verdict"]["upper"], row["verdict"]["since"]) == (2.4, 2.6, 1e9)
    assert [row["module"] for row in row["verdict"]["types"]] == ["app.Left", "builtins.dict"]


def test_a_route_that_is_new_has_no_history_yet():
    """Asked for the first time just now: it is there, with its requests, and without a point."""
    monitor = HeapMonitor(HeapSettings(report_path="/heap", attribution="windows"))
    assert data(monitor, "overview")["routes"] == []
    with monitor.request("task", "send_mail"):
        pass
    (row,) = data(monitor, "overview")["routes"]
    assert (row["route"], row["requests"], row["spark"]) == ("send_mail", 1, [])
    history = data(monitor, "route", method="task", route="send_mail")["history"]
    assert history == {"times": [], "requests": [], "objects": [], "bytes": []}


def test_with_several_workers_the_heap_is_that_of_all(tmp_path):
    """Types are summed over the workers, who are listed with the age of what they said."""
    monitor = HeapMonitor(HeapSettings(report_path="/heap", attribution="windows", workers_dir=tmp_path / "shared"))
    with monitor.request("task", "send_mail"):
        pass
    found = data(monitor, "heap")
    (functions,) = [row for row in found["types"] if row["module"] == "builtins.function"]
    assert functions["objects"] > 1000
    assert functions["bytes"] > 50 * functions["objects"]
    assert found["census"] is None  # each worker took one
    route = data(monitor, "route", method="task", route="send_mail")
    assert (route["requests"], route["types_history"]["types"]) == (1, {})
    (worker,) = data(monitor, "overview")["workers"]
    assert worker["pid"] == os.getpid()
    assert 0 <= worker["age_seconds"] < 60


def test_no_value_of_mine_is_shown(monitor):
    """Neither repr nor keys nor values of my objects are in anything that is served."""
    Explosive.asked.clear()
    bodies = [ask(monitor, f"/api/v1/{name}").body for name in ("overview", "heap", "report")]
    bodies += [ask(monitor, "/api/v1/route", method="GET", route="__unmatched__").body]
    bodies += list(ask(monitor, "/api/v1/holders", module=f"{__name__}.Explosive").body)
    assert b"secret" not in b"".join(bodies)
    assert Explosive.asked == []


def test_holders_are_reported_line_by_line(monitor):
    """The last line is the tree; it names the list in this module."""
    found = lines(ask(monitor, "/api/v1/holders", module=f"{__name__}.Explosive"))
    assert all(set(line) == {"progress"} for line in found[:-1])
    tree = found[-1]["tree"]
    assert tree["root"]["objects"] == len(kept)
    assert any("global 'kept' → list → dict" in path for path in tree["paths"])


@pytest.mark.accelerator
def test_holders_of_what_a_route_retains(monitor):
    """By route alone, or by route and type; a route this worker never served falls back to the type."""
    fields = {"method": "GET", "route": "__unmatched__"}
    assert lines(ask(monitor, "/api/v1/holders", **fields))[-1]["tree"]["root"]["objects"] >= 20
    both = lines(ask(monitor, "/api/v1/holders", module=f"{__name__}.Explosive", **fields))
    assert both[-1]["tree"]["root"]["objects"] == 20
    unknown = {"method": "GET", "route": "/unknown"}
    assert "error" in lines(ask(monitor, "/api/v1/holders", **unknown))[-1]
    assert "tree" in lines(ask(monitor, "/api/v1/holders", module=f"{__name__}.Explosive", **unknown))[-1]


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_leaving_cancels_the_search(how, monitor, monkeypatch):
    """Who closes the answer ends the search, and the next one can begin; meanwhile there is one."""
    ended = []

    def slow(*_: Any, cancelled: Any, progress: Any, **__: Any) -> Any:
        progress(1, 1)
        while not cancelled():
            time.sleep(0.01)
        ended.append(True)
        raise RuntimeError("it was cancelled")

    monkeypatch.setattr(monitor, "holders", slow)
    page = ask(monitor, "/api/v1/holders", module="a.B")
    assert json.loads(next(page.body)) == {"progress": {"level": 1, "items": 1}}
    assert ask(monitor, "/api/v1/holders", module="a.B").status == 429
    if how == "closed":
        page.body.close()
    del page  # a server that only lets go of it has left, too
    deadline = time.monotonic() + 10
    while not ended or ask(monitor, "/api/v1/holders", module="a.B").status == 429:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_long_search_is_heard_of(monitor, monkeypatch):
    """While one level of a large heap is walked, each beat repeats how far it is: a proxy would give up else."""
    monkeypatch.setattr(search_module, "_BEAT", 0.02)

    def slow(*_: Any, cancelled: Any, progress: Any, **__: Any) -> Any:
        progress(3, 5)
        while not cancelled():
            time.sleep(0.01)

    monkeypatch.setattr(monitor, "holders", slow)
    page = ask(monitor, "/api/v1/holders", module="a.B")
    told = [json.loads(next(page.body)) for _ in range(4)]
    assert told[-2:] == [{"progress": {"level": 3, "items": 5}}] * 2
    page.body.close()
    deadline = time.monotonic() + 10
    while ask(monitor, "/api/v1/holders", module="a.B").status == 429:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_search_that_fails_says_so(monitor, monkeypatch):
    """A fault of ours is an error in the last line, not a broken answer."""
    monkeypatch.setattr(holders_module, "missing", "not now")
    monkeypatch.setattr(monitor, "holders", lambda *_, **__: 1 / 0)
    assert lines(ask(monitor, "/api/v1/holders", module="a.B"))[-1] == {"error": "the search failed, see the log"}


@pytest.mark.parametrize(
    "fields", [{}, {"module": ""}, {"module": "a.B", "depth": "0"}, {"module": "a.B", "depth": "x"}, {"depth": "²"}]
)
def test_a_question_that_is_none(monitor, fields):
    """A wrong question is a 400 that says what is allowed."""
    page = ask(monitor, "/api/v1/holders", **fields)
    assert page.status == 400
    assert "must be" in json.loads(page.body)["error"]


def test_a_query_of_very_many_fields_is_none(monitor):
    """Nobody has us take thousands of fields apart."""
    query = "&".join(["module=a.B"] * 30)
    page = monitor.respond(PageRequest("GET", "/heap/api/v1/holders", query, caller=HERE))
    assert page.status == 400


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_query_breaks_anything(monitor, data):
    """Whatever a client sends: an answer, and no 5xx."""
    name = data.draw(st.sampled_from(["overview", "route", "holders"]))
    words = st.sampled_from(["module", "method", "route", "depth", "x"])
    pairs = data.draw(st.lists(st.tuples(words, st.text(max_size=20)), max_size=6))
    query = data.draw(st.sampled_from([urlencode(pairs), "&".join(f"{a}={b}" for a, b in pairs), "=&;%%%zz&&"]))
    method = data.draw(st.sampled_from(["GET", "HEAD", "POST", "<script>", ""]))
    page = monitor.respond(PageRequest(method, f"/heap/api/v1/{name}", query, caller=HERE))
    assert page.status in (200, 400, 404, 405, 429)
    if not isinstance(page.body, bytes):
        assert lines(page)


class TestAccess:
    """Who may see it."""

    @pytest.fixture
    def guarded(self) -> HeapMonitor:
        return HeapMonitor(HeapSettings(report_path="/heap", access=TOKEN, metrics_access=TOKEN))

    def test_from_elsewhere_everything_is_refused(self, monitor):
        """Another machine gets 403 for each path, the same few bytes."""
        caller = Caller("10.1.2.3", {"host": "localhost", "x-forwarded-for": "127.0.0.1"})
        for path in sorted(monitor.paths - {"/metrics", "/metrics/", "/heap/api/v1/session"}):
            page = monitor.respond(PageRequest("GET", path, caller=caller))
            assert (page.status, page.body) == (403, b"forbidden\n"), path

    def test_the_page_asks_for_the_token(self, guarded):
        """Without it, the login and its two files are all there is; with it, a cookie that scripts cannot read."""
        assert ask(guarded, "").status == 308
        assert ask(guarded, "/").status == 403
        assert b'type="password"' in ask(guarded, "/").body
        assert ask(guarded, "/static/login.js").status == 200
        assert ask(guarded, "/static/report.js").status == 403
        assert ask(guarded, "/api/v1/overview").status == 403
        assert ask(guarded, "/api/v1/session", verb="POST").status == 403
        assert ask(guarded, "/api/v1/session").status == 405
        bearer = Caller("10.0.0.1", {"authorization": f"Bearer {TOKEN}"})
        page = ask(guarded, "/api/v1/session", bearer, "POST")
        cookie = dict(page.headers)["Set-Cookie"]
        assert page.status == 204
        assert cookie.endswith("; HttpOnly; SameSite=Strict; Path=/heap")
        assert TOKEN not in cookie
        assert ask(guarded, "/api/v1/overview", Caller("10.0.0.1", {"cookie": cookie.partition(";")[0]})).status == 200

    def test_metrics_can_be_guarded_too(self, guarded):
        """With metrics_access a scrape needs the token."""
        assert guarded.respond(PageRequest("GET", "/metrics")).status == 403
        bearer = Caller("10.0.0.1", {"authorization": f"Bearer {TOKEN}"})
        assert guarded.respond(PageRequest("GET", "/metrics", caller=bearer)).status == 200

    def test_a_check_of_mine_that_raises_is_no_yes(self):
        """A faulty access check shows nothing; it is logged."""
        monitor = HeapMonitor(HeapSettings(report_path="/heap", access=lambda _: 1 / 0))
        assert ask(monitor, "/api/v1/overview").status == 503

    def test_the_token_is_in_no_error(self):
        """A token that is too short is refused without being shown."""
        with pytest.raises(ValueError, match="access is a str that is no good") as caught:
            HeapSettings(access="short-secret")
        assert "short-secret" not in str(caught.value)


def test_every_answer_has_the_safe_headers(monitor):
    """No script but ours runs, nothing is stored, guessed, framed or referred."""
    for path in sorted(monitor.paths - {"/metrics", "/metrics/"}):
        headers = dict(monitor.respond(PageRequest("GET", path, "module=a.B", caller=HERE)).headers)
        assert headers["Cache-Control"] == ("private, max-age=3600" if "/static/" in path else "no-store")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy


def test_the_page_asks_no_other_host_and_has_nothing_inline():
    """Our own files hold no address but relative ones, no inline script, no style attribute, no markup from text."""
    for file in STATIC.iterdir():
        if file.suffix in (".html", ".js", ".css") and not file.name.startswith("echarts"):
            text = file.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(
                r"https?:|//[a-z]|innerHTML|insertAdjacent|document\.write|eval\(| on\w+=|style=", text
            ), file
            assert not re.search(r"<script(?![^>]*src=)", text)


def test_the_charting_library_is_as_released():
    """The vendored files have the checksums that were noted when they were fetched, licence and notice among them."""
    noted = json.loads((STATIC / "echarts.json").read_text())
    assert set(noted["sha256"]) == {"echarts.min.js", "echarts.LICENSE", "echarts.NOTICE"}
    for name, checksum in noted["sha256"].items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == checksum
    assert f'version="{noted["version"]}"'.encode() in (STATIC / "echarts.min.js").read_bytes()


def test_the_library_is_compressed_for_who_can_read_it(monitor):
    """A megabyte of charting library is a third of that on its way."""
    path = "/heap/static/echarts.min.js"
    plain = monitor.respond(PageRequest("GET", path, caller=HERE))
    packed = monitor.respond(PageRequest("GET", path, accept_encoding="gzip", caller=HERE))
    assert dict(packed.headers)["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < 0.4 * len(plain.body)


def test_the_path_leads_to_the_folder(monitor):
    """Links of the page are relative, so the page is below a slash, whatever comes before."""
    page = ask(monitor, "")
    assert (page.status, dict(page.headers)["Location"]) == (308, "heap/")


def test_over_wsgi_a_search_is_streamed_and_closed(monitor):
    """The server gets an iterable that it closes."""
    app = WsgiMiddleware(leaking, monitor=monitor)
    environ = {
        "PATH_INFO": "/heap/api/v1/holders",
        "REQUEST_METHOD": "GET",
        "QUERY_STRING": f"module={__name__}.Explosive",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "localhost",
    }
    answered: list[Any] = []
    body = app(environ, lambda *answer: answered.append(answer))
    parts = b"".join(body)
    body.close()  # type: ignore[attr-defined]
    assert answered[0][0].startswith("200")
    assert b'"tree"' in parts.splitlines()[-1]


def test_over_asgi_a_search_is_streamed(monitor):
    """The same over ASGI, part by part."""

    async def nothing(scope: Any, receive: Any, send: Any) -> None: ...

    async def receive() -> Any:
        await asyncio.sleep(30)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "method": "GET",
        "path": "/heap/api/v1/holders",
        "query_string": f"module={__name__}.Explosive".encode(),
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 5),
    }
    asyncio.run(AsgiMiddleware(nothing, monitor=monitor)(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 200
    assert b'"tree"' in b"".join(message.get("body", b"") for message in sent)
    gc.collect()
