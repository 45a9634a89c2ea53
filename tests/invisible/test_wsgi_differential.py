"""The same generated application and server, bare and wrapped: every raw WSGI call must come out the same."""

import contextvars
import sys
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_middleware.wsgi import HeapMetricsMiddleware

few, many = settings.get_profile("few cases"), settings.get_profile("many cases")
SEEN = contextvars.ContextVar("seen", default="nothing")
ERRORS = [None, ValueError, KeyboardInterrupt, SystemExit, GeneratorExit]

APPLICATION = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(
            ["list", "tuple", "generator", "iterator", "closing", "sized", "file", "bytes", "none", "number"]
        ),
        "chunks": st.lists(st.sampled_from([b"", b"a", b"bc"]), max_size=4),
        "starts": st.sampled_from(["none", "once", "twice", "exc_info", "keyword", "late"]),
        "writes": st.booleans(),
        "changes_environ": st.sampled_from(["", "path", "method", "clear"]),
        "raises": st.sampled_from(ERRORS),
        "raises_in_iteration": st.sampled_from([*ERRORS, StopIteration]),
        "raises_in_close": st.sampled_from(ERRORS),
        "sets_context": st.booleans(),
    }
)
SERVER = st.fixed_dictionaries(
    {
        "reads": st.integers(0, 6),
        "iterates": st.integers(0, 2),
        "closes": st.integers(0, 2),
        "asks_length": st.booleans(),
        "start_raises": st.booleans(),
    }
)


def raise_it(kind):
    if kind is not None:
        raise kind("mine")


class Iterator:
    def __init__(self, plan, trace):
        self.plan, self.trace, self.chunks = plan, trace, iter(plan["chunks"])

    def __iter__(self):
        self.trace.append(("iter", SEEN.get()))
        return self

    def __next__(self):
        self.trace.append(("next", SEEN.get()))
        if self.plan["sets_context"]:
            SEEN.set("in next")
        try:
            return next(self.chunks)
        except StopIteration:
            raise_it(self.plan["raises_in_iteration"])
            raise


class Closing(Iterator):
    def close(self):
        self.trace.append(("close", SEEN.get()))
        raise_it(self.plan["raises_in_close"])


class Sized(Closing):
    def __len__(self):
        return len(self.plan["chunks"])


class Wrapper(Closing):
    """The server's own file wrapper: it looks for this type, to use sendfile."""


def result_of(plan, trace, late):
    if plan["kind"] == "generator":

        def generate():
            late()
            yield from Iterator(plan, trace)

        return generate()
    late()
    makers = {"iterator": Iterator, "closing": Closing, "sized": Sized, "file": Wrapper}
    if plan["kind"] in makers:
        return makers[plan["kind"]](plan, trace)
    return {
        "list": list(plan["chunks"]),
        "tuple": tuple(plan["chunks"]),
        "bytes": b"xy",
        "none": None,
        "number": 5,
    }[plan["kind"]]


def application(plan, trace):
    def start(start_response):
        headers = [("Content-Type", "text/plain")]
        write = start_response("200 OK", headers)
        if plan["starts"] == "twice":
            start_response("201 Created", headers)
        if plan["starts"] in ("exc_info", "keyword"):
            try:
                raise_it(LookupError)
            except LookupError:
                info = sys.exc_info()
                if plan["starts"] == "keyword":
                    start_response("500 Oops", headers, exc_info=info)
                else:
                    start_response("500 Oops", headers, info)
        if plan["writes"]:
            trace.append(("write gave", write(b"written")))

    def app(environ, start_response):
        trace.append(("called", environ["PATH_INFO"], SEEN.get(), id(environ) == environ["the id"]))
        if plan["sets_context"]:
            SEEN.set("in call")
        if plan["starts"] not in ("none", "late"):
            start(start_response)
        if plan["changes_environ"] == "clear":
            environ.clear()
        elif plan["changes_environ"]:
            environ["PATH_INFO" if plan["changes_environ"] == "path" else "REQUEST_METHOD"] = "/other"
        raise_it(plan["raises"])
        return result_of(plan, trace, lambda: start(start_response) if plan["starts"] == "late" else None)

    return app


def attempt(trace, what, call):
    try:
        value = call()
    except BaseException as error:
        # The frames of the application, without those that lead to it.
        tail = traceback.extract_tb(error.__traceback__)[-1]
        context = type(error.__context__).__name__
        trace.append((what, "raised", type(error).__name__, str(error), context, tail.name, tail.lineno))
        return None
    trace.append((what, "gave", value if type(value) in (bytes, int, type(None)) else ""))
    return value


def serve(wrap, plan, server):
    trace = []

    def start_response(*args, **keywords):
        info = [type(one) for one in args[2:]], sorted(keywords)
        trace.append(("start_response", args[:2], info, SEEN.get()))
        if server["start_raises"]:
            raise_it(ConnectionError)
        return lambda data: trace.append(("write", data, SEEN.get()))

    environ = {"PATH_INFO": "/x", "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "wsgi.file_wrapper": Wrapper}
    environ["the id"] = id(environ)
    app = wrap(application(plan, trace))
    result = attempt(trace, "call", lambda: app(environ, start_response))
    trace.append(("is", isinstance(result, Wrapper), type(result) in (list, tuple), hasattr(type(result), "__len__")))
    if server["asks_length"] and hasattr(type(result), "__len__"):
        attempt(trace, "len", lambda: len(result))
    for _ in range(server["iterates"]):
        iterator = attempt(trace, "iter", lambda: iter(result))
        for _ in range(server["reads"] if iterator is not None else 0):
            attempt(trace, "next", lambda one=iterator: next(one))
    for _ in range(server["closes"]):
        close = getattr(result, "close", None)
        if close is not None:
            trace.append(("closing",))
            before = len(trace)
            attempt(trace, "closed", close)
            if trace[before:] == [("closed", "gave", None)]:
                del trace[-2:]  # a close that runs nothing of the application: there may be none
    left = [key for key in environ if not key.startswith("heap_middleware.")]  # marks of ours have names of their own
    trace.append(("after", SEEN.get(), sorted(left), environ.get("PATH_INFO")))
    return trace


def check(monitor, plan, server):
    def wrap(app):
        return HeapMetricsMiddleware(app, monitor=monitor)

    bare = contextvars.Context().run(serve, lambda app: app, plan, server)
    wrapped = contextvars.Context().run(serve, wrap, plan, server)
    assert wrapped == bare


@few
@given(plan=APPLICATION, server=SERVER)
def test_no_call_differs(monitor, plan, server):
    """Whatever my application and the server do, each sees of the other what it would see without the middleware."""
    check(monitor, plan, server)


@pytest.mark.once
@many
@given(plan=APPLICATION, server=SERVER)
def test_no_call_differs_in_many_cases(monitor, plan, server):
    """The same over thousands of applications and servers."""
    check(monitor, plan, server)
