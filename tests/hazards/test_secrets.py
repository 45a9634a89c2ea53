"""What an application holds in secret is in nothing that we show: names of types, routes, globals and lines are all."""

import gc
import logging
import os
import sys
import types

import pytest

from heap_middleware import HeapDendrogram

SECRET = "hunter2-Zq8"
PAGES = ("", "/", "/api/v1/overview", "/api/v1/heap", "/api/v1/report")
HEADERS = [("Authorization", SECRET), ("Cookie", f"session={SECRET}"), ("X-Forwarded-For", SECRET), (SECRET, SECRET)]


class Account:
    """Who has secrets in every place that there is."""

    def __init__(self):
        self.password = SECRET
        self.words = {SECRET: SECRET, (SECRET,): [SECRET]}
        self.raw = SECRET.encode()
        setattr(self, SECRET, SECRET)

    def __repr__(self):
        return SECRET

    __str__ = __format__ = __repr__

    def __hash__(self):
        return hash(SECRET)

    def __eq__(self, other):
        return str(other) == SECRET


class Refused(Exception):
    """An error of the application's, with a secret in its text."""


@pytest.fixture
def module(monkeypatch):
    """A module of the application's whose globals have secrets for values."""
    made = types.ModuleType("shop")
    made.kept, made.token, made.tokens = [], SECRET, {SECRET: Account()}
    made.find = lambda secret=SECRET: (secret, made)
    monkeypatch.setitem(sys.modules, "shop", made)
    monkeypatch.setenv("DATABASE_PASSWORD", SECRET)
    return made


@pytest.fixture
def outputs(serve, module, caplog, capfd):
    """`outputs()`: whatever we write, of a service that has served requests full of secrets."""

    def work(path):
        local = {SECRET: Account()}
        module.kept.append(local)
        if "raise" in path:
            raise Refused(SECRET, local)
        return SECRET.encode()

    def route_of(held):
        raise Refused(SECRET)

    def ask():
        caplog.set_level(logging.DEBUG, "heap_middleware")
        service = serve(work, route_of=route_of, report_path="/heap", top_types=100_000, history_points=16)
        for path in (f"/{SECRET}", f"/raise/{SECRET}", f"/x/{SECRET}"):
            for method in ("GET", "POST", SECRET):
                try:
                    service.ask(path, method=method, query=f"q={SECRET}", headers=HEADERS, body=SECRET.encode())
                except Refused:
                    assert "raise" in path
        gc.collect()
        return service, [service.ask("/metrics", query=f"x={SECRET}", headers=HEADERS)[1], *report(service)]

    def report(service):
        yield from (service.ask("/heap" + page, query=f"x={SECRET}", headers=HEADERS)[1] for page in PAGES)
        for name in (f"{__name__}.Account", f"{__name__}.Refused", "builtins.dict", "builtins.str"):
            status, body = service.ask("/heap/api/v1/holders", query=f"module={name}")
            assert status == 200
            yield body
        for query in ("method=GET&route=__unmatched__", f"method=GET&route={SECRET}"):
            yield service.ask("/heap/api/v1/route", query=query)[1]

    yield ask
    written = capfd.readouterr()
    assert SECRET not in caplog.text + written.out + written.err


def test_no_secret_is_shown(outputs):
    """A secret in path, query, headers, body, attributes, keys, globals, errors and environment is on no page."""
    service, pages = outputs()
    assert os.environ["DATABASE_PASSWORD"] == SECRET
    assert len(b"".join(pages)) > 10_000
    assert [page for page in pages if SECRET.encode() in page] == []
    assert b"Account" in b"".join(pages)
    assert service.requests()["__unmatched__"] > 0


def test_no_secret_is_in_what_the_library_returns(outputs):
    """Nor is it in what HeapMonitor and HeapDendrogram return, printed."""
    service, _ = outputs()
    monitor = service.monitor
    tree = HeapDendrogram(max_items=2_000)
    tree.generate()
    found = [monitor.census(), monitor.endpoints(), monitor.suspects(), monitor.history(), monitor.retained_by_type()]
    found += [monitor.holders(f"{__name__}.Account").paths(), monitor.own_figures(), monitor.settings]
    found += [list(tree.descendants()), tree.as_prometheus_metric()]
    assert SECRET not in "".join(map(repr, found))


def test_the_page_is_off_unless_asked_for(serve):
    """Without report_path there is no page; with it, another machine is refused, whoever it says it is."""
    assert serve().ask("/heap")[1] == b"hello"
    service = serve(report_path="/heap")
    for page in PAGES:
        for host in ("evil.example", "169.254.169.254", "localhost.evil.example", "[::ffff:10.0.0.1]"):
            status, body = service.ask("/heap" + page, headers=[("Host", host)])
            assert (status, body) == (403, b"forbidden\n")
        status, body = service.ask("/heap" + page, headers=[("X-Forwarded-For", "127.0.0.1")])
        assert (status, body) == (403, b"forbidden\n")
