"""The file that a worker writes, and what becomes of one that is no such file."""

import json
import math
import zlib
from array import array
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.workers.counters import Counters, DamagedSnapshot
from heap_middleware.workers.processes import Process
from heap_middleware.workers.snapshot import FORMAT, Snapshot, decode, encode

pytestmark = pytest.mark.one_python

MASTER, WORKER = Process(1, "noon", "here"), Process(2, "later", "here")
ROUTE = Endpoint("GET", "/ä\n\"'{}\\")
GAUGES = {"a": b'a{pid="2"} 1.0\na{pid="2",x="y"} 2.0\n', "b_c": b'b_c{pid="2"} 0.5\n'}
AMOUNTS = st.floats(0, 1e15) | st.integers(0, 10**15)
TOTALS = st.builds(EndpointTotals, *[st.integers(0, 10**15)] * 2, *[AMOUNTS] * 3, *[st.none() | AMOUNTS] * 3)
ENDPOINTS = st.dictionaries(st.builds(Endpoint, st.text(), st.text()), TOTALS, max_size=5)


def snapshot(endpoints=None, gauges=GAUGES):
    counters = Counters.of(endpoints or {ROUTE: EndpointTotals(3, 2, 1.5, 0.5, 1)}, {("own", "part"): 2.5})
    return Snapshot(MASTER, WORKER, 12.5, counters, gauges, ("3-00000000",))


def signed(body):
    return b"%08x %d\n" % (zlib.crc32(body), len(body)) + body


def changed(numbers=None, **values):
    _, names, body = encode(snapshot(gauges={})).split(b"\n", 2)
    return signed(json.dumps({**json.loads(names), **values}).encode() + b"\n" + (body if numbers is None else numbers))


@given(ENDPOINTS)
def test_what_is_written_is_read(endpoints):
    """Counters and gauges arrive as they were, whatever the routes are called."""
    written = snapshot(endpoints)
    read = decode(encode(written))
    expected = written.counters.endpoints()
    assert read.counters.endpoints() == expected
    assert {key: row.requests for key, row in expected.items()} == {
        key: row.requests for key, row in (endpoints or {ROUTE: EndpointTotals(3)}).items()
    }
    assert read.counters.own == {("own", "part"): 2.5}
    assert replace(read, counters=written.counters) == written


@given(st.data())
def test_a_damaged_file_is_found_out(data):
    """A file that was cut, or in which any byte is another, is not taken for a snapshot."""
    whole = encode(snapshot())
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:place]
    else:
        damaged = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    with pytest.raises(DamagedSnapshot):
        decode(damaged)


@given(st.binary())
def test_anything_else_is_found_out(data):
    """Whatever else is in a file, with a checksum that holds or without, it is a DamagedSnapshot and nothing worse."""
    for content in (data, signed(data), signed(data + b"\n")):
        with pytest.raises(DamagedSnapshot):
            decode(content)


@pytest.mark.parametrize(
    "values",
    [
        {"format": 1},
        {"evidence": [["GET", "/", 1, 2]]},
        {"evidence": [["GET", 5, *[0.0] * 7]]},
        {"evidence": [["GET", "/", *["x"] * 7]]},
        {"evidence": 5},
        {"details": -1},
        {"details": 10**9},
        {"details": "x"},
        {"format": FORMAT + 1},
        {"evidence": [["GET", "/", 1e200, *[0.0] * 6]]},
        {"evidence": [["GET", "/\ud800", *[0.0] * 7]]},
        {"routes": ["/\ud800"]},
        {"own": [["a", "\ud800", 1]]},
        {"process": [1, "\ud800", ""]},
        {"format": "x" * 1000},
        {"taken": "now"},
        {"taken": math.nan},
        {"taken": True},
        {"taken": 10**400},
        {"methods": "G"},
        {"methods": []},
        {"methods": [1]},
        {"methods": ["GET", "GET"], "routes": ["/", "/"]},
        {"routes": ["x" * 20_000]},
        {"numbers": array("d", [-1, 0, 0, 0, 0]).tobytes()},
        {"numbers": array("d", [math.inf, 0, 0, 0, 0]).tobytes()},
        {"numbers": array("d", [0, 0, math.nan, 0, 0]).tobytes()},
        {"numbers": array("d", [1e308] * 4).tobytes()},
        {"numbers": array("d", [0] * 6).tobytes()},
        {"numbers": b""},
        {"columns": ["requests"]},
        {"columns": ["measured", "requests", "gained", "lost", "retained_objects"]},
        {"columns": ["requests", "measured", "gained", "lost", "retained_objects", "sites"]},
        {"columns": ["requests", "measured", "gained", "lost", "retained_objects", "retained_bytes"]},
        {"columns": {"requests": [1]}},
        {"own": [["a", "b"]]},
        {"own": [["a", "b", math.nan]]},
        {"own": [["a", 1, 1]]},
        {"own": 7},
        {"folded": [1]},
        {"process": [0, "", ""]},
        {"process": ["1", "", ""]},
        {"process": [1, None, ""]},
        {"process": [1]},
        {"service": None},
        {"gauges": {"a": 1}},
        {"gauges": {"a": -1}},
        {"gauges": {"a": "1"}},
        {"gauges": []},
    ],
    ids=str,
)
def test_wrong_values_are_found_out(values):
    """A file in which one value is not what it should be is not used at all."""
    assert decode(changed())
    with pytest.raises(DamagedSnapshot):
        decode(changed(**values))


@pytest.mark.parametrize(
    "gauges",
    [
        {"a": b'a{pid="2"} 1.0'},
        {"a": b""},
        {"a": b'b{pid="2"} 1.0\n'},
        {"a": b'a{pid="2"} 1.0\n# EOF\n'},
        {"a": b'a{pid="2"} 1.0\n\n'},
        {"a b": b"a b{} 1\n"},
    ],
    ids=str,
)
def test_lines_of_something_else_are_found_out(gauges):
    """Gauges that would spoil the whole page are not taken."""
    with pytest.raises(DamagedSnapshot):
        decode(encode(snapshot(gauges=gauges)))


def test_what_one_worker_does_not_know_others_may():
    """Bytes are the sum of those that know them: with the accelerator in one worker and without it in another."""
    knows = Counters.of({ROUTE: EndpointTotals(1, 1, 1, 1, 1, 64, 2, 128)}, {})
    other = Endpoint("GET", "/other")
    does_not = Counters.of({other: EndpointTotals(1), ROUTE: EndpointTotals(1)}, {})
    both = Counters()
    both.add(does_not)
    assert both.endpoints()[ROUTE].retained_bytes is None
    both.add(knows)
    assert both.endpoints() == {
        other: EndpointTotals(1, 0, 0, 0, 0, 0, 0, 0),
        ROUTE: EndpointTotals(2, 1, 1, 1, 1, 64, 2, 128),
    }
