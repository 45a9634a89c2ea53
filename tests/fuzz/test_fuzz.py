"""Hostile input of every kind: it gets an answer below 500 or an error of ours, and makes no series.

What once was found, or is known to hurt others, is in `corpus/`, one case a line, and is replayed first.
HEAP_MIDDLEWARE_FUZZ_CASES is the number of malformed scrapes and of hostile paths: 100,000 in the soak.
"""

import json
import os
import random
import zlib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from heap_middleware import HeapMonitor, HeapSettings
from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.errors import SettingsError
from heap_middleware.exposition.access import Caller
from heap_middleware.exposition.requests import PageRequest
from heap_middleware.workers.processes import Process
from heap_middleware.workers.snapshot import Counters, DamagedSnapshot, Snapshot, decode, encode
from heap_middleware.wsgi import HeapMetricsMiddleware

pytestmark = pytest.mark.once

CORPUS = Path(__file__).parent / "corpus"
CASES = int(os.environ.get("HEAP_MIDDLEWARE_FUZZ_CASES", "10000"))
MOST_SERIES = 2500
NAMES = [spec.name for spec in fields(HeapSettings)]
HERE = Caller("127.0.0.1", {"host": "localhost"})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)
BEFORE = settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])


def corpus(name):
    return [json.loads(line) for line in (CORPUS / name).read_text().splitlines()]


def wrapped(**others):
    monitor = HeapMonitor(
        HeapSettings(attribution="windows", sampling=1 << 20, census="tracked", census_min_interval=86400, **others)
    )

    def application(environ, start_response):
        start_response("200 OK", [])
        return [b""]

    return monitor, HeapMetricsMiddleware(application, monitor=monitor)


def status(app, **environ):
    answered = []
    result = app({"REQUEST_METHOD": "GET", **environ}, lambda line, headers, *_: answered.append(int(line[:3])))
    body = b"".join(result)
    getattr(result, "close", lambda: None)()
    return answered[0], body


def series(app):
    code, body = status(app, PATH_INFO="/metrics")
    assert code == 200
    return [sample for family in text_string_to_metric_families(body.decode()) for sample in family.samples]


def garbled(chance, seeds):
    """One of the seeds, cut, doubled, or with characters of any kind in it."""
    text = chance.choice(seeds)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text) + 1)
        text = chance.choice(
            (text[:at], text[at:], text * 2, text[:at] + chr(chance.randrange(256)) + text[at:], text[::-1])
        )[:5000]
    return text


@BEFORE
@given(st.sampled_from(NAMES), VALUES)
def test_a_setting_of_any_value_is_taken_or_refused_by_name(name, value):
    """A wrong value in code is a SettingsError that names the setting, never another exception."""
    try:
        HeapSettings(**{name: value})
    except SettingsError as error:
        assert str(error).startswith(name)


@BEFORE
@given(st.sampled_from(NAMES), st.text())
def test_a_variable_of_any_text_is_taken_or_refused_by_name(name, text):
    """The same of an environment variable."""
    variable = f"HEAP_MIDDLEWARE_{name.upper()}"
    try:
        HeapSettings.from_environment({variable: text})
    except SettingsError as error:
        assert str(error).startswith(variable)


@pytest.mark.parametrize("case", corpus("settings.jsonl"), ids=str)
def test_known_hostile_settings(case):
    """What is in the corpus is refused, with the name of the variable."""
    name, text = case
    with pytest.raises(SettingsError, match=f"^{name} is "):
        HeapSettings.from_environment({name: text})


def test_malformed_scrapes_get_an_answer():
    """Whatever method, query string and headers a scrape has, the answer is no 5xx and no exception."""
    chance, known = random.Random(7), corpus("scrapes.jsonl")
    _, app = wrapped()
    seen = set()
    for number in range(CASES):
        whole = known[number] if number < len(known) else [garbled(chance, part) for part in zip(*known, strict=True)]
        method, query, accept, encoding = whole
        # A filter keeps most pages short: what is tried is the request, not the rendering.
        names = "name[]=heap_census_objects&" if number % 50 else ""
        code, _ = status(
            app,
            PATH_INFO="/metrics",
            REQUEST_METHOD=method,
            QUERY_STRING=names + query,
            HTTP_ACCEPT=accept,
            HTTP_ACCEPT_ENCODING=encoding,
        )
        seen.add(code)
        assert code < 500, whole
    assert seen >= {200, 400, 405}
    assert len(series(app)) < MOST_SERIES
    print(f"{CASES} malformed scrapes, answered with {sorted(seen)}")


def test_hostile_paths_make_no_series():
    """Paths and methods that a client chooses make one series of each metric at most, not one each."""
    chance, known = random.Random(11), corpus("paths.jsonl")
    _, app = wrapped()
    before = len(series(app))
    for number in range(CASES):
        path = known[number] if number < len(known) else garbled(chance, known)
        method = "GET" if number % 2 else garbled(chance, ["GET", "PROPFIND", "X" * 100])
        assert status(app, PATH_INFO=path, REQUEST_METHOD=method)[0] == 200 or path in ("/metrics", "/metrics/")
    found = series(app)
    assert {sample.labels["route"] for sample in found if "route" in sample.labels} == {"__unmatched__"}
    assert len(found) - before < MOST_SERIES
    print(f"{CASES} hostile paths, {len(found) - before} series more")


def test_labels_of_any_text_are_bounded_and_parse_back():
    """A route_of that makes up hostile names gets max_routes series, and a page that can be read."""
    chance, known = random.Random(13), corpus("paths.jsonl")
    monitor, app = wrapped(route_of=lambda environ: environ["PATH_INFO"], max_routes=50)
    asked = [*known, *(garbled(chance, known) for _ in range(CASES // 10))]
    for path in asked:
        status(app, PATH_INFO=path)
    routes = {sample.labels["route"] for sample in series(app) if "route" in sample.labels}
    assert len(routes) <= 52
    assert "__other__" in routes
    assert monitor.own_figures().faults["request"] == 0


def worker_file():
    counters = Counters.of({Endpoint("GET", "/x"): EndpointTotals(3, 2, 1.5, 0.5, 1)}, {("own", "part"): 2.5})
    process = Process(2, "later", "here")
    return encode(Snapshot(process, process, 1.0, counters, {"a": b'a{pid="2"} 1.0\n'}, ("3-00000000",)))


@BEFORE
@given(st.data())
def test_a_worker_file_with_a_valid_checksum_and_any_value_is_used_or_refused(data):
    """Values of another type, in a file that is otherwise whole, are a DamagedSnapshot and nothing worse."""
    header, rest = worker_file().split(b"\n", 2)[1:]
    found = json.loads(header)
    found[data.draw(st.sampled_from(sorted(found)))] = data.draw(VALUES.filter(is_json))
    body = json.dumps(found).encode() + b"\n" + rest
    try:
        used = decode(b"%08x %d\n" % (zlib.crc32(body), len(body)) + body)
    except DamagedSnapshot:
        return
    total = Counters()
    total.add(used.counters)
    encode(used)


def is_json(value):
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


@settings(BEFORE, max_examples=200)
@given(
    st.sampled_from(["overview", "route", "heap", "report", "holders", "session"]),
    st.sampled_from(["GET", "HEAD", "POST", "DELETE", ""]),
    st.text(max_size=50) | st.sampled_from(corpus("report.jsonl")),
)
def test_the_reports_json_answers_any_question(place, method, query):
    """No method and no query string makes the JSON of the report fail."""
    page = REPORT.respond(PageRequest(method, f"/heap/api/v1/{place}", query, caller=HERE))
    assert page.status < 500
    if not isinstance(page.body, bytes):
        page.body.close()


REPORT = HeapMonitor(
    HeapSettings(report_path="/heap", attribution="windows", census="tracked", census_min_interval=86400)
)
