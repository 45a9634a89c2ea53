"""Route templates of WSGI requests, asked the way the adapter asks, on the real frameworks."""

import io
import sys
import types
from wsgiref.util import FileWrapper

import django
import flask
import pytest
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_started
from django.http import FileResponse, HttpResponse
from django.urls import include, path, re_path
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

from heap_middleware.endpoints.routes import WsgiRoutes, signals


class Asking:
    """A WSGI middleware that asks for the template like the adapter and remembers the answers."""

    def __init__(self, app, route_of=None):
        self.app = app
        self.routes = WsgiRoutes(route_of, app)
        self.answers = []

    def __call__(self, environ, start_response):
        arrival, found, response = environ.get("SCRIPT_NAME", ""), [], None

        def started(*arguments):
            found.append(self.routes.at_start(environ, arrival))
            return start_response(*arguments)

        try:
            response = self.app(environ, started)
            return response
        finally:
            at_start = found[-1] if found else None
            self.answers.append(at_start or self.routes.at_end(environ, response, arrival))

    def ask(self, url, **given):
        Client(self).open(url, **given)
        return self.answers[-1]


def flask_app():
    app = flask.Flask("shop", static_folder="/nowhere", static_url_path="/static")
    app.add_url_rule("/users/<int:id>", "user", lambda id: "a user", methods=["GET"])
    app.add_url_rule("/broken/<name>", "broken", lambda name: 1 / 0)
    app.add_url_rule("/stream/<name>", "stream", lambda name: (part for part in (b"a", b"b")))
    inner = flask.Blueprint("inner", "inner")
    inner.add_url_rule("/items/<path:where>", "item", lambda tenant, where: "an item")
    outer = flask.Blueprint("outer", "outer")
    outer.register_blueprint(inner, url_prefix="/inner")
    app.register_blueprint(outer, url_prefix="/outer/<tenant>")
    return app


@pytest.mark.parametrize(
    ("url", "template"),
    [
        ("/users/7", "/users/<int:id>"),
        ("/outer/acme/inner/items/a/b", "/outer/<tenant>/inner/items/<path:where>"),
        ("/broken/x", "/broken/<name>"),
        ("/stream/x", "/stream/<name>"),
        ("/static/no/such.css", "/static/<path:filename>"),
        ("/nothing/here", None),
    ],
)
def test_flask(url, template):
    """A Flask request is named by its rule, blueprints included, also when its handler fails."""
    assert Asking(flask_app()).ask(url) == template


def test_flask_method_not_allowed():
    """Flask matches no rule when the method is not allowed."""
    assert Asking(flask_app()).ask("/users/7", method="DELETE") is None


def test_flask_wrapped_from_inside():
    """`app.wsgi_app = Middleware(app.wsgi_app)` finds the rule like a wrapper around the application."""
    app = flask_app()
    app.wsgi_app = asking = Asking(app.wsgi_app)
    Client(app).get("/users/7")
    assert asking.answers == ["/users/<int:id>"]


def test_an_exception_that_leaves_flask():
    """A route whose exception Flask hands to the server is named."""
    app = flask_app()
    app.config["PROPAGATE_EXCEPTIONS"] = True
    app.wsgi_app = asking = Asking(app.wsgi_app)
    with pytest.raises(ZeroDivisionError):
        Client(app).get("/broken/x")
    assert asking.answers == ["/broken/<name>"]


def test_an_exception_before_any_rule_matched():
    """A path that no rule is for stays without one when something else fails."""
    app = flask_app()
    app.config["PROPAGATE_EXCEPTIONS"] = True
    app.before_request(lambda: 1 / 0)
    app.wsgi_app = asking = Asking(app.wsgi_app)
    with pytest.raises(ZeroDivisionError):
        Client(app).get("/nothing/here")
    assert asking.answers == [None]


def test_a_framework_that_another_thread_is_importing(monkeypatch):
    """Its signals are there a moment later: the next request looks again."""
    half, heard = types.ModuleType("half.signals"), []
    monkeypatch.setitem(sys.modules, "half.signals", half)
    monkeypatch.setitem(signals._pending, "half.signals", lambda module: heard.append(module.request_started))
    signals.watch()
    assert heard == []
    half.request_started = "now"
    signals.watch()
    signals.watch()
    assert heard == ["now"]


def test_djangos_signal_may_be_sent_by_anybody(django_app):
    """Without a request it says nothing, and disturbs nobody."""
    Asking(django_app)
    assert request_started.send(sender=None)


def test_dispatcher_mounts():
    """The same application mounted twice has two templates, nested mounts have all their prefixes."""
    inner = DispatcherMiddleware(flask_app(), {"/deep": flask_app()})
    asking = Asking(ProxyFix(DispatcherMiddleware(flask_app(), {"/a": inner, "/b": flask_app()})))
    asked = [asking.ask(url) for url in ("/a/users/1", "/b/users/1", "/a/deep/users/1", "/users/1", "/b/no")]
    user = "/users/<int:id>"
    assert asked == ["/a" + user, "/b" + user, "/a/deep" + user, user, None]
    assert asking.ask("/a/deep/users/2") == "/a/deep" + user


def test_prefix_from_a_header_is_no_mount():
    """A prefix that the client sends never becomes part of a template."""
    asking = Asking(ProxyFix(flask_app().wsgi_app, x_prefix=1))
    assert asking.ask("/users/7", headers={"X-Forwarded-Prefix": "/made/up"}) == "/users/<int:id>"


def test_prefix_from_the_path_is_no_mount():
    """An application that moves a tenant from the path to SCRIPT_NAME does not put the tenant into the template."""
    app = flask_app()

    def tenants(environ, start_response):
        _, tenant, rest = environ["PATH_INFO"].split("/", 2)
        environ.update(SCRIPT_NAME=f"/{tenant}", PATH_INFO=f"/{rest}")
        return app(environ, start_response)

    assert Asking(tenants).ask("/acme/users/7") == "/users/<int:id>"


def test_ring_of_applications():
    """Applications that refer to each other in a ring are looked through a limited number of times."""
    ring = types.SimpleNamespace()
    ring.app = ring
    routes = WsgiRoutes(app=ring)
    request = types.SimpleNamespace(url_rule=types.SimpleNamespace(rule="/x"))
    assert routes.at_start({"SCRIPT_NAME": "/no", "werkzeug.request": request}, "") == "/x"


@pytest.fixture(scope="module")
def django_app():
    def answer(request, **_):
        return HttpResponse("fine")

    def broken(request, **_):
        raise ValueError

    def file(request):
        return FileResponse(io.BytesIO(b"a file"))

    nested = [path("items/<slug:name>", answer), re_path(r"^old/(?P<year>[0-9]{4})/$", answer)]
    urls = types.ModuleType("urls_of_the_route_tests")
    urls.urlpatterns = [
        path("", answer),
        path("users/<int:id>/", answer),
        path("broken/<int:id>", broken),
        path("file", file),
        path("api/<int:version>/", include([path("inner/", include(nested))])),
        re_path(r"^plain/([a-z]+)$", lambda request, letters: HttpResponse("fine")),
    ]
    sys.modules[urls.__name__] = urls
    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"], MIDDLEWARE=["django.middleware.common.CommonMiddleware"], SECRET_KEY="x"
        )
        django.setup()
    settings.ROOT_URLCONF = urls.__name__
    return WSGIHandler()


DJANGO = [
    ("/", "/"),
    ("/users/7/", "/users/<int:id>/"),
    ("/users/7", None),  # redirected to the one with the slash
    ("/broken/7", "/broken/<int:id>"),
    ("/file", "/file"),
    ("/api/2/inner/items/a-b", "/api/<int:version>/inner/items/<slug:name>"),
    ("/api/2/inner/old/2020/", "/api/<int:version>/inner/old/(?P<year>[0-9]{4})/$"),
    ("/plain/abc", "/plain/([a-z]+)$"),
    ("/nothing/here", None),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("url", "template"), DJANGO)
def test_django(django_app, url, template):
    """A Django request is named by its route with a leading slash, with includes, regular expressions as written."""
    assert Asking(django_app).ask(url) == template


def test_django_and_what_else_is_closed_with_its_response(django_app):
    """A middleware that has a file closed with the response does not hide the route."""

    def closing(environ, start_response):
        response = django_app(environ, start_response)
        response._resource_closers.append(io.BytesIO().close)
        return response

    assert Asking(closing).ask("/users/7/") == "/users/<int:id>/"


@pytest.mark.filterwarnings("ignore")
def test_django_is_not_routed_twice(django_app, monkeypatch):
    """The template comes from Django's own match."""
    asking = Asking(django_app)
    monkeypatch.setattr("django.urls.resolve", None)
    assert asking.ask("/users/7/") == "/users/<int:id>/"


@pytest.mark.filterwarnings("ignore")
def test_django_file_wrapper(django_app):
    """A file handed to the server's file wrapper is named like any other response."""
    environ = EnvironBuilder("/file").get_environ() | {"wsgi.file_wrapper": FileWrapper}
    asking = Asking(django_app)
    run_wsgi_app(asking, environ)
    assert asking.answers == ["/file"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("url", "template"), DJANGO)
def test_django_behind_another_iterable(django_app, url, template):
    """When a middleware hides Django's response, the path is resolved once more."""

    def hiding(environ, start_response):
        return iter(list(django_app(environ, start_response)))

    assert Asking(hiding).ask(url) == template


@pytest.mark.filterwarnings("ignore")
def test_django_mounted(django_app):
    """A mounted Django has its mount's prefix."""
    asking = Asking(DispatcherMiddleware(flask_app(), {"/old": django_app}))
    assert asking.ask("/old/users/7/") == "/old/users/<int:id>/"
    assert asking.ask("/users/7") == "/users/<int:id>"


def bare(environ, start_response):
    start_response("200 OK", [])
    return [b"bare"]


def test_bare_wsgi():
    """An application without a framework matched no route."""
    assert Asking(bare).ask("/some/path") is None


def test_route_of_is_asked_first():
    """The user's own callable names the route; when it declines, the framework is asked."""
    asking = Asking(flask_app(), lambda environ: "/mine" if "mine" in environ["QUERY_STRING"] else None)
    assert asking.ask("/users/7?mine") == "/mine"
    assert asking.ask("/users/7") == "/users/<int:id>"
    assert Asking(bare, lambda environ: "/mine").ask("/some/path") == "/mine"


@pytest.mark.parametrize("route_of", [lambda _: 1 / 0, lambda _: 7, lambda _: "", lambda _: b"/x"])
def test_a_faulty_route_of_is_no_answer(route_of):
    """A callable that raises or returns no text is treated as if it had declined."""
    assert Asking(flask_app(), route_of).ask("/users/7") == "/users/<int:id>"
    assert Asking(bare, route_of).ask("/users/7") is None


class Hostile:
    def __getattr__(self, name):
        if name == "__name__":  # asked by pytest
            raise AttributeError(name)
        raise RuntimeError(name)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"werkzeug.request": None},
        {"werkzeug.request": Hostile()},
        {"werkzeug.request": types.SimpleNamespace(url_rule=types.SimpleNamespace(rule=7))},
        {"SCRIPT_NAME": 7, "PATH_INFO": 7, "heap_middleware.django": True},
        {"PATH_INFO": "\u2603", "heap_middleware.django": True},
    ],
)
@pytest.mark.parametrize("response", [None, 7, [b""], Hostile()])
def test_hostile_environs(environ, response):
    """Whatever an environ holds, the resolver answers "no route" and never raises."""
    routes = WsgiRoutes(app=Hostile())
    arrival = environ.get("SCRIPT_NAME", "")
    assert routes.at_start(environ, arrival) is None
    assert routes.at_end(environ, response, arrival) is None
