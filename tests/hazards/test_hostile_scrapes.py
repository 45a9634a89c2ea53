"""What strangers send, over both adapters; tests/fuzz has many more cases, over WSGI."""

import random

import pytest

NUMBER = 1_000
SEEDS = (
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "application/openmetrics-text; version=1.0.0,",
    "name[]=object_count&name[]=heap_size_bytes",
    "gzip, deflate;q=x, *;q=0",
    "%00%ff%zz&&==;;\r\n\0",
    "q" * 5_000,
    ",;=" * 500,
    "application/openmetrics-text; version=\xb2; escaping=\xff",
)


def garbled(chance):
    text = chance.choice(SEEDS)
    for _ in range(chance.randint(0, 3)):
        at = chance.randrange(len(text) + 1)
        text = chance.choice(
            (text[at:], text[:at], text + chance.choice(SEEDS), text[:at] + chr(chance.randrange(256)))
        )
    return text[:10_000]


def test_malformed_scrapes(serve):
    """A thousand malformed scrapes get an answer below 500, and no exception reaches the server."""
    service, chance = serve(census="tracked", census_min_interval=86_400, top_types=5), random.Random(3)
    answered = set()
    for number in range(NUMBER):
        headers = [("Accept", garbled(chance)), ("Accept-Encoding", garbled(chance)), ("Content-Type", garbled(chance))]
        query = ("name[]=heap_census_objects&" if number % 50 else "") + garbled(chance)
        method = chance.choice(("GET", "GET", "HEAD", "POST", "TRACE", "get", "", "\xff", "X" * 5_000))
        status, _ = service.ask("/metrics", method=method, query=query, headers=headers, body=garbled(chance).encode())
        answered.add(status)
    assert max(answered) < 500
    assert answered >= {200, 405}
    assert service.samples()
    assert not any(service.monitor.own_figures().faults.values())


@pytest.mark.parametrize("backend", [pytest.param("native", marks=pytest.mark.accelerator), "windows"], indirect=True)
def test_what_clients_choose_makes_no_series(serve):
    """Random paths, methods, hosts and queries: at most ten methods and OTHER, one route, and a constant page."""
    service, chance = serve(route_of=None, census="tracked", census_min_interval=86_400, top_types=5), random.Random(9)
    methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"]

    def visit(method):
        name = f"{chance.getrandbits(64):x}"
        headers = [("Host", f"{name}.example"), (f"X-{name}", name)]
        assert service.ask(f"/{name}", method=method, query=name, headers=headers) == (200, b"hello")

    for method in [*methods, "PROPFIND"]:
        visit(method)
    service.samples()
    before = {(one.name, *one.labels.items()) for one in service.samples()}
    for number in range(NUMBER):
        visit(methods[number % 9] if number % 3 else f"{chance.getrandbits(32):X}")
    after = {(one.name, *one.labels.items()) for one in service.samples()}
    assert after == before
    labels = {value for _, *pairs in after for _, value in pairs}
    assert labels >= {"__unmatched__", "OTHER", *methods}
