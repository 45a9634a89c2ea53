"""The same generated application and server, bare and wrapped: every ASGI message and step must come out the same.

Without an event loop: the server drives the application's coroutine by hand, as loops do, so that each suspension is
seen, and anything can be thrown in at each. `test_asgi_in_loops.py` has real loops, tasks and cancellation.
"""

import asyncio
import contextvars
import sys
import traceback
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_middleware.asgi import HeapMetricsMiddleware

SEEN = contextvars.ContextVar("seen", default="nothing")
ERRORS = [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, StopIteration]
KEPT = []
CALLERS = (
    "served",
    "__call__",
)  # the server, or we: an error that is raised by calling has no frame of the application
few, many = settings.get_profile("few cases"), settings.get_profile("many cases")

STEP = st.one_of(
    st.sampled_from(["receive", "send", "wait", "set context", "send again", "keep the request"]),
    st.sampled_from(["path", "method", "type", "clear", "state"]).map(lambda what: ("change", what)),
    st.sampled_from(ERRORS).map(lambda error: ("raise", error)),
)
APPLICATION = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["coroutine", "coroutine", "coroutine", "callable", "generator", "plain", "raises"]),
        "steps": st.lists(STEP, max_size=6),
        "goes_on": st.integers(0, 2),  # how many exceptions it survives
        "finally": st.sampled_from(["", "wait", "send", "raise"]),
        "returns": st.sampled_from([None, 0, "something"]),
    }
)
SCOPE = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["http", "http", "http", "websocket", "lifespan", "carrier pigeon"]),
        "missing": st.sampled_from(["", "", "", "type", "path", "method", "headers"]),
        "root_path": st.sampled_from(["", "/prefix"]),
    }
)
SERVER = st.fixed_dictionaries(
    {
        "messages": st.lists(st.sampled_from(["body", "more", "disconnect", "error"]), max_size=3),
        "send_fails_at": st.integers(0, 6),
        "interrupts_at": st.integers(0, 12),
        "interrupts_with": st.sampled_from(["close", *ERRORS[:-1]]),
    }
)


@types.coroutine
def suspended(token):
    """What an awaitable does at the bottom: hand something to the loop, and get its answer."""
    return (yield token)


def noted(error):
    """An exception as its receiver sees it, without the frames that lead to the application."""
    tail = traceback.extract_tb(error.__traceback__)[-1]
    where = () if tail.name in CALLERS else (tail.name, tail.lineno)
    return type(error).__name__, str(error), type(error.__context__).__name__, *where


def application(plan, trace, wait):
    """One that does as planned, and notes all that it sees."""
    survives = plan["goes_on"]

    async def step(what, scope, receive, send):
        if what == "receive":
            trace.append(("received", await receive()))
        elif what in ("send", "send again"):
            trace.append(("sent", await send(scope.get("a message") if what == "send again" else {"type": "x"})))
        elif what == "wait":
            trace.append(("waited", await wait()))
        elif what == "set context":
            SEEN.set("in the application")
        elif what == "keep the request":
            KEPT[:] = [scope, receive, send]
        elif what[0] == "raise":
            raise what[1]("mine")
        elif what[1] == "clear":
            scope.clear()
        elif what[1] == "state":
            scope.setdefault("state", {})["counted"] = True
        else:
            scope[what[1]] = "/other"

    async def app(scope, receive, send):
        nonlocal survives
        trace.append(("called", id(scope), id(receive), id(send), SEEN.get(), scope.get("path")))
        try:
            for what in plan["steps"]:
                try:
                    await step(what, scope, receive, send)
                except BaseException as error:
                    trace.append(("caught", *noted(error)))
                    survives -= 1
                    if survives < 0:
                        raise
            return plan["returns"]
        finally:
            trace.append(("finally", SEEN.get(), type(sys.exc_info()[1]).__name__))
            await ending(send)

    async def ending(send):
        if plan["finally"] == "wait":
            await wait()
        elif plan["finally"] == "send":
            await send({"type": "last"})
        elif plan["finally"] == "raise":
            raise LookupError("at the end")

    class Callable_:
        async def __call__(self, scope, receive, send):
            return await app(scope, receive, send)

    @types.coroutine
    def generator(scope, receive, send):
        return (yield from app(scope, receive, send).__await__())

    def plain(scope, receive, send):
        return plan["returns"]  # nothing that could be awaited

    def raises(scope, receive, send):
        raise LookupError("before any coroutine is there")

    kinds = {"coroutine": app, "callable": Callable_(), "generator": generator, "plain": plain, "raises": raises}
    return kinds[plan["kind"]]


def scope_for(plan):
    scope = {
        "type": plan["type"],
        "method": "GET",
        "path": plan["root_path"] + "/x",
        "root_path": plan["root_path"],
        "headers": [(b"host", b"here")],
        "a message": {"type": "the same"},
    }
    scope.pop(plan["missing"], None)
    return scope


def interface(server, scope, trace, wait):
    """The server's `receive` and `send`."""
    messages = iter(server["messages"])
    left = server["send_fails_at"]

    async def receive():
        trace.append(("receive", SEEN.get()))
        await wait()
        what = next(messages, "disconnect")
        if what == "error":
            raise ConnectionError("no more")
        return {"type": "http.request", "body": b"x", "more_body": what == "more", "what": what}

    async def send(message):
        nonlocal left
        trace.append(("send", message, message is scope.get("a message"), SEEN.get()))
        left -= 1
        if left == 0:
            raise ConnectionError("the client has left")
        await wait()
        return "sent"

    return receive, send


def after(trace, scope, same):
    """What was seen, and is left; identities, which differ from run to run, by their names."""
    left = {key: value for key, value in scope.items() if not key.startswith("heap_middleware.")}  # marks of our own
    trace.append(("after", SEEN.get(), left))
    names = {id(one): name for name, one in same.items()}
    return [tuple(names.get(one, one) if type(one) is int else one for one in row) for row in trace]


def drive(wrap, plan, asked, server):
    """Run the application's coroutine by hand; what both sides saw."""
    trace = []
    token = object()

    async def wait():
        return await suspended(token)

    scope = scope_for(asked)
    receive, send = interface(server, scope, trace, wait)
    app = wrap(application(plan, trace, wait))

    async def served():
        return await app(scope, receive, send)

    coroutine = served()
    try:
        given = coroutine.send(None)
        for number in range(40):
            trace.append(("suspended", given is token))
            if number + 1 != server["interrupts_at"]:
                given = coroutine.send(number)
            elif server["interrupts_with"] == "close":
                coroutine.close()
                trace.append(("closed",))
                break
            else:
                given = coroutine.throw(server["interrupts_with"]("of the server's"))
    except StopIteration as returned:
        trace.append(("returned", returned.value))
    except BaseException as error:
        trace.append(("raised", *noted(error)))
    coroutine.close()
    return after(trace, scope, {"scope": scope, "receive": receive, "send": send})


def unraised(monkeypatch):
    """What is raised when a coroutine that ignored its end is thrown away, which nobody can catch."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: found.append((what.exc_type.__name__, str(what.exc_value))))
    return found


def check(monitor, run):
    def wrap(app):
        return HeapMetricsMiddleware(app, monitor=monitor)

    with pytest.MonkeyPatch.context() as monkeypatch:
        thrown_away = unraised(monkeypatch)
        bare = contextvars.Context().run(run, lambda app: app), tuple(thrown_away)
        thrown_away.clear()
        wrapped = contextvars.Context().run(run, wrap), tuple(thrown_away)
    assert wrapped == bare


@few
@given(plan=APPLICATION, asked=SCOPE, server=SERVER)
def test_no_step_differs(monitor, plan, asked, server):
    """Whatever my application and the server do, each sees of the other what it would see without the middleware."""
    check(monitor, lambda wrap: drive(wrap, plan, asked, server))


@pytest.mark.once
@many
@given(plan=APPLICATION, asked=SCOPE, server=SERVER)
def test_no_step_differs_in_many_cases(monitor, plan, asked, server):
    """The same over thousands of applications and servers."""
    check(monitor, lambda wrap: drive(wrap, plan, asked, server))
