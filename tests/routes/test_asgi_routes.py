"""Route templates of ASGI requests, asked the way the adapter asks, on the real frameworks."""

import asyncio
import gc
import sys
import types
import weakref
from typing import Any

import django
import fastapi
import litestar
import pytest
import quart
from asgiref.testing import ApplicationCommunicator
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse
from django.urls import include, path
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles

from heap_middleware.endpoints.routes import AsgiRoutes


class Asking:
    """An ASGI middleware that asks for the template like the adapter and remembers the answers."""

    def __init__(self, app, route_of=None):
        self.app = app
        self.routes = AsgiRoutes(route_of)
        self.answers = []

    async def __call__(self, scope, receive, send):
        arrival = scope.get("path")
        try:
            await self.app(scope, receive, send)
        finally:
            self.answers.append(self.routes.at_end(scope, arrival))

    def ask(self, path, kind="http", method="GET", **scope):
        asyncio.run(self._ask(path, kind, method, scope))
        return self.answers[-1]

    async def _ask(self, path, kind, method, changes):
        scope = {
            "type": kind,
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "path": path,
            "raw_path": path.encode(),
        }
        scope |= {"query_string": b"", "headers": [(b"host", b"here.test")], "root_path": "", "scheme": "http"}
        scope |= {"method": method} if kind == "http" else {"subprotocols": [], "scheme": "ws"}
        scope |= {"client": ("127.0.0.1", 1), "server": ("here.test", 80), "extensions": {}, "state": {}}
        communicator = ApplicationCommunicator(self, scope | changes)
        if kind == "http":
            await communicator.send_input({"type": "http.request", "body": b"", "more_body": False})
        else:
            await communicator.send_input({"type": "websocket.connect"})
            await communicator.send_input({"type": "websocket.disconnect", "code": 1000})
        try:
            while kind == "http" and not await _is_last(communicator):
                continue
            await communicator.send_input({"type": "http.disconnect"})
            await communicator.wait(timeout=5)
        except (ZeroDivisionError, RuntimeError):
            return


async def _is_last(communicator):
    message = await communicator.receive_output(timeout=5)
    return message["type"] == "http.response.body" and not message.get("more_body")


async def endpoint(request):
    return PlainTextResponse("fine")


async def other(request):
    return PlainTextResponse("fine")


async def broken(request):
    return 1 / 0


async def socket(websocket):
    await websocket.accept()
    await websocket.close()


class Through:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)


class Hidden:
    """A middleware whose application cannot be found by attribute."""

    def __init__(self, app):
        self._inner = app

    async def __call__(self, scope, receive, send):
        await self._inner(scope, receive, send)


def starlette_routes(directory):
    leaves = [
        Route("/users/{id:int}", other, methods=["GET"]),
        Route("/users/{name}/posts", other),
        WebSocketRoute("/socket/{room}", socket),
    ]
    sub = Starlette(routes=leaves)
    return [
        Route("/plain/{id:int}", endpoint, methods=["GET"]),
        Route("/broken/{id}", broken),
        WebSocketRoute("/socket/{room}", socket),
        Mount("/first", sub),
        Mount("/second", sub),
        Mount("/t/{tenant}", routes=[Mount("/deep", sub), *leaves]),
        Mount("/wrapped", Through(Through(sub)), middleware=[Middleware(Through)]),
        Mount("/hidden", Hidden(sub)),
        Mount("/static", StaticFiles(directory=directory)),
        Host("{who}.test", Router(routes=[Route("/hosted/{id}", other), Mount("/below", sub)])),
    ]


STARLETTE = [
    ("/plain/7", "/plain/{id:int}"),
    ("/broken/7", "/broken/{id}"),
    ("/first/users/7", "/first/users/{id:int}"),
    ("/second/users/7", "/second/users/{id:int}"),
    ("/second/users/x/posts", "/second/users/{name}/posts"),
    ("/t/acme/users/7", "/t/{tenant}/users/{id:int}"),
    ("/t/acme/deep/users/7", "/t/{tenant}/deep/users/{id:int}"),
    ("/wrapped/users/7", "/wrapped/users/{id:int}"),
    ("/hidden/users/7", "/hidden/users/{id:int}"),
    ("/static/a/b.css", "/static/{path:path}"),
    ("/hosted/7", "/hosted/{id}"),
    ("/below/users/7", "/below/users/{id:int}"),
    ("/first/nothing/here", None),
    ("/t/acme/nothing", None),
    ("/nothing/here", None),
    ("/plain/7/", None),  # redirected
]


@pytest.fixture
def starlette(tmp_path):
    return Asking(Starlette(routes=starlette_routes(tmp_path)))


@pytest.mark.parametrize(("url", "template"), STARLETTE)
def test_starlette(starlette, url, template):
    """A Starlette request is named by its mounts' and its route's paths, the second time as the first."""
    assert [starlette.ask(url), starlette.ask(url)] == [template, template]


def test_starlette_all_in_one_application(starlette):
    """What was remembered for one route never names another."""
    for _ in range(3):
        assert [starlette.ask(url) for url, _ in STARLETTE] == [template for _, template in STARLETTE]


def test_starlette_bare_host_and_pathless_mount(tmp_path):
    """Below a mount without a path the template is the leaf's own."""
    asking = Asking(Starlette(routes=[Mount("", routes=[Mount("/x", routes=[Route("/{id}", endpoint)])])]))
    assert asking.ask("/x/7") == "/x/{id}"


@pytest.mark.parametrize(("url", "template"), [case for case in STARLETTE if "hidden" not in case[0]])
def test_starlette_without_route_in_the_scope(tmp_path, monkeypatch, url, template):
    """Older releases, which leave no route in the scope, are served by the same templates."""

    class Forgetful(dict):
        def __setitem__(self, key, value):
            if key != "route":
                super().__setitem__(key, value)

    app = Starlette(routes=starlette_routes(tmp_path))

    async def forgetting(scope, receive, send):
        inner = Forgetful(scope)
        try:
            await app(inner, receive, send)
        finally:
            scope.update(inner)

    asking = Asking(forgetting)
    assert [asking.ask(url), asking.ask(url)] == [template, template]


@pytest.mark.parametrize(
    ("url", "template"),
    [
        ("/socket/a", "/socket/{room}"),
        ("/first/socket/a", "/first/socket/{room}"),
        ("/t/acme/socket/a", "/t/{tenant}/socket/{room}"),
        ("/nothing", None),
    ],
)
def test_starlette_websockets(starlette, url, template):
    """A websocket is named like a request."""
    assert starlette.ask(url, "websocket") == template


def test_starlette_method_not_allowed(starlette):
    """A refused method belongs to the route that refused it."""
    elsewhere = [(b"host", b"elsewhere.org")]  # a matching Host would take the request before the route refuses it
    assert starlette.ask("/plain/7", method="DELETE", headers=elsewhere) == "/plain/{id:int}"
    assert starlette.ask("/first/users/7", method="DELETE") == "/first/users/{id:int}"


def test_starlette_behind_a_proxy_prefix(starlette):
    """A `root_path` of the server is no part of the template."""
    assert starlette.ask("/proxy/plain/7", root_path="/proxy") == "/plain/{id:int}"
    assert starlette.ask("/proxy/first/users/7", root_path="/proxy") == "/first/users/{id:int}"


def test_middleware_inside_a_mount():
    """A middleware around a mounted application only still names the whole route."""
    asking = Asking(Starlette(routes=[Route("/users/{id}", endpoint)]))
    outer = Starlette(routes=[Mount("/{tenant}", asking)])
    around = Asking(outer)
    assert around.ask("/acme/users/7") == "/{tenant}/users/{id}"
    assert asking.answers == ["/{tenant}/users/{id}"]


def test_one_endpoint_on_two_routes():
    """Two routes with one handler keep their own templates, whatever was asked before."""
    routes = [Route("/a/{id}", endpoint), Route("/b/{id}", endpoint)]
    asking = Asking(Starlette(routes=[*routes, Mount("/m", routes=routes), Mount("/n", routes=routes)]))
    urls = ["/a/1", "/b/1", "/m/a/1", "/m/b/1", "/n/a/1", "/n/b/1"]
    for _ in range(2):
        assert [asking.ask(url) for url in urls] == [url[:-1] + "{id}" for url in urls]


def test_mounts_in_mounts_without_end():
    """A route below more mounts than anybody has is told from others, without those that are innermost."""
    routes = [Route("/users/{id}", endpoint)]
    for _ in range(40):
        routes = [Mount("/a", routes=routes)]
    assert Asking(Starlette(routes=routes)).ask("/a" * 40 + "/users/7") == "/a" * 32 + "/users/{id}"


def test_the_cache_is_bounded(starlette):
    """However many values a mount's parameter takes, what is remembered stays small."""
    cache = starlette.routes._starlette._cache

    async def ask_many():
        for number in range(700):
            await starlette._ask(f"/t/{number}/users/7", "http", "GET", {})
        await starlette._ask(f"/t/{'x' * 200}/users/7", "http", "GET", {})

    asyncio.run(ask_many())
    assert set(starlette.answers) == {"/t/{tenant}/users/{id:int}"}
    assert len(cache) <= 512
    assert max((len(root) for _, root, _ in cache), default=0) < 128


def test_the_cache_keeps_nothing_alive():
    """A dropped application is gone although its routes were asked for."""
    app = Starlette(routes=[Mount("/m", routes=[Route("/{id}", endpoint)])])
    asking = Asking(app)
    assert asking.ask("/m/1") == "/m/{id}"
    gone = weakref.ref(app.router)
    asking.app = app = None
    gc.collect()
    assert gone() is None


def test_endpoints_without_weak_references():
    """An endpoint that cannot be remembered is found again each time."""

    class Slotted:
        __slots__ = ()

        async def __call__(self, scope, receive, send):
            await PlainTextResponse("fine")(scope, receive, send)

    asking = Asking(Starlette(routes=[Mount("/m", Slotted())]))
    assert [asking.ask("/m/1"), asking.ask("/m/2")] == ["/m/{path:path}"] * 2


def fastapi_app(directory):
    (directory / "index.html").write_text("hello")
    leaf = fastapi.APIRouter(prefix="/leaf")
    leaf.add_api_route("/items/{id}", lambda id: id, methods=["GET"])
    leaf.add_api_route("/broken/{id}", lambda id: 1 / 0)
    leaf.add_route("/raw/{id}", endpoint)
    leaf.add_api_websocket_route("/socket/{room}", socket_of_fastapi)
    leaf.add_websocket_route("/rawsocket/{room}", socket)
    leaf.mount("/mounted", Starlette(routes=[Route("/x/{id}", endpoint)]))
    middle = fastapi.APIRouter()
    middle.include_router(leaf, prefix="/middle")
    sub = fastapi.FastAPI()
    sub.add_api_route("/users/{id}", lambda id: id)
    sub.include_router(leaf, prefix="/v1")
    app = fastapi.FastAPI()
    app.add_api_route("/plain/{id}", lambda id: id, methods=["GET"])
    app.add_api_websocket_route("/socket/{room}", socket_of_fastapi)
    app.include_router(middle, prefix="/api")
    app.include_router(leaf, prefix="/again")
    app.mount("/sub/{tenant}", sub)
    app.mount("/files", StaticFiles(directory=directory))
    if hasattr(app, "frontend"):
        app.frontend("/front", directory=directory)
    return app


async def socket_of_fastapi(websocket: fastapi.WebSocket):
    await websocket.accept()
    await websocket.close()


FASTAPI = [
    ("/plain/7", "/plain/{id}"),
    ("/api/middle/leaf/items/7", "/api/middle/leaf/items/{id}"),
    ("/again/leaf/items/7", "/again/leaf/items/{id}"),
    ("/again/leaf/broken/7", "/again/leaf/broken/{id}"),
    ("/again/raw/7", "/again/raw/{id}"),
    ("/api/middle/raw/7", "/api/middle/raw/{id}"),
    ("/sub/acme/users/7", "/sub/{tenant}/users/{id}"),
    ("/sub/acme/v1/leaf/items/7", "/sub/{tenant}/v1/leaf/items/{id}"),
    ("/sub/acme/v1/raw/7", "/sub/{tenant}/v1/raw/{id}"),
    ("/sub/acme/openapi.json", "/sub/{tenant}/openapi.json"),
    ("/files/index.html", "/files/{path:path}"),
    ("/docs", "/docs"),
    ("/sub/acme/nothing", None),
    ("/nothing/here", None),
]


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize(("url", "template"), FASTAPI)
def test_fastapi(tmp_path, url, template, outside):
    """A FastAPI request is named with its routers' prefixes and its mounts, alone and mounted in Starlette."""
    app = fastapi_app(tmp_path)
    if outside:
        asking = Asking(app)
        assert [asking.ask(url), asking.ask(url)] == [template] * 2
    else:
        asking = Asking(Starlette(routes=[Mount("/outer", app)]))
        assert [asking.ask("/outer" + url) for _ in "12"] == [template and "/outer" + template] * 2


@pytest.mark.skipif(not hasattr(fastapi.FastAPI, "frontend"), reason="this FastAPI mounts a copy without the prefix")
def test_fastapi_mount_in_a_router(tmp_path):
    """A mount in an included router has the router's prefixes."""
    asking = Asking(fastapi_app(tmp_path))
    assert asking.ask("/again/mounted/x/7") == "/again/mounted/x/{id}"


@pytest.mark.skipif(not hasattr(fastapi.FastAPI, "frontend"), reason="this FastAPI has no frontends")
@pytest.mark.parametrize("url", ["/front", "/front/index.html", "/front/a/b/c"])
def test_fastapi_frontend(tmp_path, url):
    """Files of a frontend are one route, mounted or not, whether they exist or not."""
    app = fastapi_app(tmp_path)
    assert Asking(app).ask(url) == "/front/{path}"
    assert Asking(Starlette(routes=[Mount("/{o}", app)])).ask("/outer" + url) == "/{o}/front/{path}"


@pytest.mark.skipif(not hasattr(fastapi.FastAPI, "frontend"), reason="this FastAPI has no frontends")
def test_fastapi_frontend_at_the_root(tmp_path):
    """No part of the path gets into the template of a frontend at the root."""
    (tmp_path / "index.html").write_text("hello")
    app = fastapi.FastAPI()
    router = fastapi.APIRouter()
    router.frontend("/", directory=tmp_path)
    app.include_router(router)
    asking = Asking(app)
    assert {asking.ask(url) for url in ("/", "/x", "//x/y", "/index.html")} == {"/{path}"}


@pytest.mark.parametrize(
    ("url", "template"),
    [
        ("/socket/a", "/socket/{room}"),
        ("/again/leaf/socket/a", "/again/leaf/socket/{room}"),
        ("/api/middle/leaf/socket/a", "/api/middle/leaf/socket/{room}"),
        ("/again/rawsocket/a", "/again/rawsocket/{room}"),
        ("/sub/acme/v1/leaf/socket/a", "/sub/{tenant}/v1/leaf/socket/{room}"),
    ],
)
def test_fastapi_websockets(tmp_path, url, template):
    """Websockets in included routers have their prefixes as well."""
    assert Asking(fastapi_app(tmp_path)).ask(url, "websocket") == template


def test_fastapi_method_not_allowed(tmp_path):
    """A refused method belongs to the route that refused it."""
    asking = Asking(fastapi_app(tmp_path))
    assert asking.ask("/plain/7", method="DELETE") == "/plain/{id}"
    assert asking.ask("/again/leaf/items/7", method="DELETE") == "/again/leaf/items/{id}"


@pytest.mark.filterwarnings("ignore:The `root_path` parameter")
def test_fastapi_root_path():
    """FastAPI's own `root_path` is no part of the template."""
    app = fastapi.FastAPI(root_path="/api")
    app.add_api_route("/plain/{id}", lambda id: id)
    app.mount("/m", Starlette(routes=[Route("/{id}", endpoint)]))
    asking = Asking(app)
    urls = ["/api/plain/7", "/plain/7", "/api/m/7"]
    assert [asking.ask(url) for url in urls] == ["/plain/{id}", "/plain/{id}", "/m/{id}"]


def test_middleware_added_by_the_framework(tmp_path):
    """`app.add_middleware(...)` finds what a wrapper around the application finds."""
    made = []

    class Added(Asking):
        def __init__(self, app):
            super().__init__(app)
            made.append(self)

    app = fastapi_app(tmp_path)
    app.add_middleware(Added)
    outside = Asking(app)
    assert outside.ask("/sub/acme/v1/leaf/items/7") == "/sub/{tenant}/v1/leaf/items/{id}"
    assert made[0].answers == outside.answers


def litestar_app():
    @litestar.get("/users/{user_id:int}")
    async def user(user_id: int) -> str:
        return "a user"

    @litestar.get("/")
    async def root() -> str:
        return "root"

    @litestar.get("/broken/{name:str}")
    async def failing(name: str) -> str:
        raise ValueError

    @litestar.websocket("/socket/{room:str}")
    async def room(socket: litestar.WebSocket, room: str) -> None:
        await socket.accept()
        await socket.close()

    @litestar.asgi("/foreign", is_mount=True, copy_scope=False)
    async def foreign(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("fine")(scope, receive, send)

    below = litestar.asgi("/below", is_mount=True, copy_scope=False)(
        Starlette(routes=[Route("/x/{id}/", endpoint), Mount("/y", routes=[Route("/{id}/", endpoint)])])
    )
    return litestar.Litestar([root, user, failing, room, litestar.Router("/r", route_handlers=[foreign]), below])


@pytest.mark.parametrize(
    ("url", "kind", "template"),
    [
        ("/", "http", "/"),
        ("/users/7", "http", "/users/{user_id}"),
        ("/broken/x", "http", "/broken/{name}"),
        ("/socket/a", "websocket", "/socket/{room}"),
        ("/r/foreign/some/path", "http", "/r/foreign/{path:path}"),
        ("/below/x/7", "http", "/below/x/{id}/"),
        ("/below/y/7", "http", "/below/y/{id}/"),
        ("/nothing/here", "http", None),
    ],
)
def test_litestar(url, kind, template):
    """A Litestar request is named by its path template, alone and mounted; what is mounted has its mount's path."""
    app = litestar_app()
    assert Asking(app).ask(url, kind) == template
    if "below" not in url and "foreign" not in url and template:
        assert Asking(Starlette(routes=[Mount("/outer", app)])).ask("/outer" + url, kind) == "/outer" + template


def quart_app():
    app = quart.Quart("shop")

    async def answer(**_):
        return "fine"

    async def failing(**_):
        raise ValueError

    async def talk(**_):
        await quart.websocket.accept()

    blueprint = quart.Blueprint("inner", "inner", url_prefix="/inner/<tenant>")
    blueprint.add_url_rule("/items/<int:id>", "item", answer)
    app.add_url_rule("/users/<int:id>", "user", answer, methods=["GET"])
    app.add_url_rule("/broken/<name>", "broken", failing)
    app.add_websocket("/socket/<room>", "socket", talk)
    app.register_blueprint(blueprint)
    return app


@pytest.mark.parametrize(
    ("url", "kind", "template"),
    [
        ("/users/7", "http", "/users/<int:id>"),
        ("/inner/acme/items/7", "http", "/inner/<tenant>/items/<int:id>"),
        ("/broken/x", "http", "/broken/<name>"),
        ("/socket/a", "websocket", "/socket/<room>"),
        ("/nothing/here", "http", None),
    ],
)
def test_quart(url, kind, template):
    """A Quart request is named by its rule, from outside, from `asgi_app` and mounted."""
    app = quart_app()
    assert Asking(app).ask(url, kind) == template
    mounted = Asking(Starlette(routes=[Mount("/outer", app)]))
    assert mounted.ask("/outer" + url, kind) == ("/outer" + (template or "/{path:path}"))
    outside = Asking(app)
    app.asgi_app = inside = Asking(app.asgi_app)
    outside.ask(url, kind)
    assert inside.answers == [template]


def test_quart_method_not_allowed():
    """Quart matches no rule when the method is not allowed."""
    assert Asking(quart_app()).ask("/users/7", method="DELETE") is None


def test_quart_test_client():
    """Quart's own test client gets the same templates."""
    app = quart_app()
    app.asgi_app = asking = Asking(app.asgi_app)
    asyncio.run(app.test_client().get("/users/7"))
    assert asking.answers == ["/users/<int:id>"]


@pytest.fixture(scope="module")
def django_app():
    def answer(request, **_):
        return HttpResponse("fine")

    urls = types.ModuleType("urls_of_the_asgi_route_tests")
    urls.urlpatterns = [path("users/<int:id>/", answer), path("api/", include([path("items/<slug:s>", answer)]))]
    sys.modules[urls.__name__] = urls
    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"], MIDDLEWARE=["django.middleware.common.CommonMiddleware"], SECRET_KEY="x"
        )
        django.setup()
    settings.ROOT_URLCONF = urls.__name__
    return ASGIHandler()


@pytest.mark.parametrize(
    ("url", "template"),
    [("/users/7/", "/users/<int:id>/"), ("/api/items/a-b", "/api/items/<slug:s>"), ("/nothing", None)],
)
def test_django(django_app, url, template):
    """A Django request under ASGI is named by its route, also mounted."""
    assert Asking(django_app).ask(url) == template
    mounted = Asking(Starlette(routes=[Mount("/outer", django_app)]))
    assert mounted.ask("/outer" + url) == ("/outer" + (template or "/{path:path}"))


async def bare(scope, receive, send):
    await PlainTextResponse("fine")(scope, receive, send)


def test_a_route_that_is_none_of_starlettes():
    """An application that routes for itself may use the same names in the scope; what is there is no template."""

    async def app(scope, receive, send):
        scope.update(endpoint=endpoint, route=types.SimpleNamespace(endpoint=other, path_regex="x", path=scope["path"]))
        await bare(scope, receive, send)

    assert Asking(app).ask("/some/path") is None


def test_a_frontend_that_answers_with_another_file():
    """What is left of the path is no template then: it is what the client sent."""

    async def app(scope, receive, send):
        scope.update(router=types.SimpleNamespace(routes=[]), fastapi={"frontend_path": "index.html"})
        await bare(scope, receive, send)

    assert Asking(app).ask("/some/path") is None


def test_bare_asgi():
    """An application without a framework matched no route."""
    assert Asking(bare).ask("/some/path") is None


def test_route_of_is_asked_first(starlette):
    """The user's own callable names the route; when it declines, the framework is asked."""
    asking = Asking(starlette.app, lambda scope: "/mine" if scope["query_string"] else None)
    assert asking.ask("/plain/7", query_string=b"x") == "/mine"
    assert asking.ask("/plain/7") == "/plain/{id:int}"


@pytest.mark.parametrize("route_of", [lambda scope: 1 / 0, lambda scope: 7, lambda scope: "", lambda scope: b"/x"])
def test_a_faulty_route_of_is_no_answer(starlette, route_of):
    """A callable that raises or returns no text is treated as if it had declined."""
    assert Asking(starlette.app, route_of).ask("/plain/7") == "/plain/{id:int}"


class Hostile:
    def __getattr__(self, name):
        if name == "__name__":  # asked by pytest
            raise AttributeError(name)
        raise RuntimeError(name)


KEYS = ["path", "root_path", "app_root_path", "router", "route", "endpoint", "fastapi", "path_template", "type"]
KEYS += ["route_handler", "litestar_app", "heap_middleware.quart_route", "heap_middleware.django"]
ODD = [None, 7, b"/raw", (), {}, [], {"frontend_path": 7}, {"effective_route_context": Hostile()}, Hostile()]
ODD += [types.SimpleNamespace(routes=[Hostile()]), types.SimpleNamespace(path="/raw/7", endpoint=None, is_mount=True)]


@given(scope=st.dictionaries(st.sampled_from(KEYS), st.sampled_from([*ODD, "/raw/7"])))
def test_hostile_scopes(scope):
    """Whatever a scope holds, the resolver never raises, and no path of the request comes out."""
    routes = AsgiRoutes()
    asked = dict(scope)
    for own in ("path_template", "heap_middleware.quart_route"):  # where a text is a template by contract
        if asked.get(own) == "/raw/7":
            del asked[own]
    answer = routes.at_end(asked, asked.get("path"))
    assert answer is None or "raw" not in answer
