"""The same application in a real event loop, bare and wrapped: tasks, their contexts, and how they are cancelled."""

import asyncio
import contextvars

import anyio
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_middleware.asgi import HeapMetricsMiddleware

SEEN = contextvars.ContextVar("seen", default="nothing")
few, many = settings.get_profile("few cases"), settings(settings.get_profile("many cases"), max_examples=500)

STEP = st.sampled_from(
    ["receive", "send", "sleep", "set context", "shielded", "timeout", "swallow", "raise", "thread", "gather"]
)
PLAN = st.fixed_dictionaries(
    {
        "steps": st.lists(STEP, max_size=5),
        "children": st.lists(st.lists(STEP, max_size=3), max_size=2),
        "finally": st.sampled_from(["", "sleep", "shielded"]),
    }
)
SERVER = st.fixed_dictionaries(
    {
        "cancels_at": st.integers(0, 6),
        "cancels": st.sampled_from(["scope", "task", "deadline"]),
        "type": st.sampled_from(["http", "http", "websocket", "lifespan"]),
    }
)


class Case:
    """One run: each task's trace is its own, since the order between tasks is not promised."""

    def __init__(self, backend, plan, server):
        self.backend, self.plan, self.server = backend, plan, server
        self.trace = {}
        self.seen = 0
        self.server_task = None

    def note(self, who, *what):
        here = anyio.get_current_task().id == self.server_task
        self.trace.setdefault(who, []).append((*what, here, SEEN.get(), len(anyio.get_running_tasks())))

    def count(self):
        """The server cancels the request at one of its calls."""
        self.seen += 1
        if self.seen == self.server["cancels_at"]:
            if self.server["cancels"] == "task" and self.task is not None:
                self.task.cancel("the client has left")
            elif self.server["cancels"] == "deadline":
                self.scope.deadline = anyio.current_time() - 1
            else:
                self.scope.cancel()

    async def receive(self):
        self.note("server", "receive")
        self.count()
        await anyio.sleep(0)
        return {"type": "http.request", "body": b"x", "more_body": False}

    async def send(self, message):
        self.note("server", "send", str(message))
        self.count()
        await anyio.sleep(0)

    async def step(self, who, what, receive, send):
        if what == "receive":
            self.note(who, "received", str(await receive()))
        elif what == "send":
            await send({"type": "http.response.start", "from": who})
        elif what == "sleep":
            await anyio.sleep(0)
        elif what == "set context":
            SEEN.set(f"set by {who}")
        elif what == "shielded":
            with anyio.CancelScope(shield=True):
                await send({"shielded": who})
        elif what == "timeout":
            with anyio.move_on_after(0) as scope:
                await anyio.sleep(10)
            self.note(who, "timed out", scope.cancelled_caught)
        elif what == "swallow":
            await self.swallow(who)
        elif what == "thread" and not self.plan["children"]:  # which go on meanwhile, nobody knows how far
            self.note(who, "in a thread", await anyio.to_thread.run_sync(SEEN.get))
        elif what in ("gather", "thread"):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 0)
        else:
            raise ValueError(who)
        self.note(who, what)

    async def swallow(self, who):
        """Go on in spite of a cancellation, as one may in asyncio."""
        try:
            await anyio.sleep(0)
        except asyncio.CancelledError as error:
            if self.server["cancels"] != "task":
                raise
            self.note(who, "swallowed", "the client has left" in str(error))

    async def steps(self, who, steps, receive, send):
        self.note(who, "begins")
        try:
            for what in steps:
                await self.step(who, what, receive, send)
        except BaseException as error:
            self.note(who, "ends with", type(error).__name__, type(error.__context__).__name__)
            raise
        finally:
            if self.plan["finally"]:
                await self.step(who, self.plan["finally"], receive, send)

    async def application(self, scope, receive, send):
        async with anyio.create_task_group() as group:
            for number, steps in enumerate(self.plan["children"]):
                group.start_soon(self.steps, f"child {number}", steps, receive, send)
            await self.steps("application", self.plan["steps"], receive, send)
        return "returned"

    async def serve(self, wrap):
        self.server_task = anyio.get_current_task().id
        self.task = asyncio.current_task() if self.backend == "asyncio" else None
        self.scope = anyio.CancelScope()
        scope = {"type": self.server["type"], "method": "GET", "path": "/x", "headers": []}
        try:
            with self.scope:
                self.note("server", await wrap(self.application)(scope, self.receive, self.send))
        except BaseException as error:
            self.note("server", "raised", names(error), type(error.__context__).__name__)
        self.note("server", "cancelled", self.scope.cancelled_caught, self.task and self.task.cancelling())
        self.note("server", [key for key in scope if not key.startswith("heap_middleware.")])


def names(error):
    """The kinds of an error, or of all in a group."""
    if isinstance(error, BaseExceptionGroup):
        return sorted(str(names(one)) for one in error.exceptions)
    return type(error).__name__, str(error)


def run(case, wrap):
    if case.backend == "trio":
        trio._core._run._r.seed(0)  # it shuffles what is ready; pytest-trio does the same
    anyio.run(case.serve, wrap, backend=case.backend)
    return case.trace


def check(monitor, *case):
    bare = run(Case(*case), lambda app: app)
    assert run(Case(*case), lambda app: HeapMetricsMiddleware(app, monitor=monitor)) == bare


@few
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(plan=PLAN, server=SERVER)
def test_no_task_differs(monitor, backend, plan, server):
    """My application runs in the server's task and context, and is cancelled as without the middleware."""
    check(monitor, backend, plan, server)


@pytest.mark.once
@many
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(plan=PLAN, server=SERVER)
def test_no_task_differs_in_many_cases(monitor, backend, plan, server):
    """The same over thousands of applications and servers."""
    check(monitor, backend, plan, server)
