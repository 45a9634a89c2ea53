"""The pages below `report_path`, as data in and data out.

All of them are known beforehand, so whether a request is for one of them is one look into a set.
"""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final
from urllib.parse import parse_qs

from prometheus_client.exposition import gzip_accepted

from heap_middleware.endpoints.ledger import Endpoint
from heap_middleware.errors import SettingsError
from heap_middleware.exposition.access import COOKIE, cookie_of, may_see
from heap_middleware.exposition.report import data
from heap_middleware.exposition.report.search import Searches
from heap_middleware.exposition.requests import PageRequest, PageResponse, plain

__all__ = ["ReportPage"]

_STATIC: Final = {
    "report.js": "text/javascript",
    "charts.js": "text/javascript",
    "route.js": "text/javascript",
    "heap.js": "text/javascript",
    "tools.js": "text/javascript",
    "login.js": "text/javascript",
    "report.css": "text/css",
    "echarts.min.js": "text/javascript",
}
_OPEN: Final = ("login.js", "report.css")
"""What the login page needs: nothing of the application is in it."""
_JSON: Final = "application/json"
_SAFE: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)
_HEADERS: Final = (("Cache-Control", "no-store"), *_SAFE)
_KEPT: Final = (("Cache-Control", "private, max-age=3600"), ("Vary", "Accept-Encoding, Cookie"), *_SAFE)
"""Of files that are the same for everybody: the charting library is a megabyte."""
_MAX_FIELDS: Final = 20
_MAX_DEPTH: Final = 20


class ReportPage:
    """Answers what is below `path`; with None, nothing. `access` is as in the setting."""

    def __init__(self, path: str | None, source: data.Source, access: Any, fault: Callable[[], None]) -> None:
        self._source = source
        self._access = access
        self._searches = Searches(fault)
        self._api: dict[str, Callable[[Mapping[str, str]], PageResponse]] = {
            "overview": lambda _: _json(data.overview(source)),
            "route": self._route,
            "heap": lambda _: _json(data.heap(source)),
            "report": lambda _: _json(data.report(source), attachment="heap-report.json"),
            "holders": self._holders,
        }
        names = ["", "/", *(f"/static/{name}" for name in _STATIC), *(f"/api/v1/{name}" for name in self._api)]
        self._path = path or ""
        self.paths = frozenset() if path is None else frozenset(path + name for name in [*names, "/api/v1/session"])

    def respond(self, request: PageRequest) -> PageResponse:
        """The answer to a request for one of `paths`."""
        place = request.path.removeprefix(self._path)
        if place == "/api/v1/session":
            return self._session(request)
        if request.method not in ("GET", "HEAD"):
            return plain(405, "only GET and HEAD are answered here\n", [("Allow", "GET, HEAD"), *_HEADERS])
        name = place.rpartition("/")[2]
        if not may_see(self._access, request.caller):
            return self._refused(place, name, request.accept_encoding)
        if place == "":
            return self._to_the_folder()
        if place == "/":
            return _file("report.html", "text/html")
        if place.startswith("/static/"):
            return _static(name, request.accept_encoding)
        return self._api[name](_fields(request.query))

    def _refused(self, place: str, name: str, accept_encoding: str) -> PageResponse:
        """Without a token there is nothing to log in with."""
        if isinstance(self._access, str):
            if place.startswith("/static/") and name in _OPEN:
                return _static(name, accept_encoding)
            if place == "":
                return self._to_the_folder()
            if place == "/":
                return _file("login.html", "text/html", status=403)
        return plain(403, "forbidden\n", _HEADERS)

    def _to_the_folder(self) -> PageResponse:
        """The page's own links are relative, so that they hold behind any prefix."""
        return plain(308, "see below\n", [("Location", self._path.rpartition("/")[2] + "/"), *_HEADERS])

    def _session(self, request: PageRequest) -> PageResponse:
        """Give the cookie to who has the token in a header, which no other site's page can send."""
        if request.method != "POST":
            return plain(405, "only POST is answered here\n", [("Allow", "POST"), *_HEADERS])
        if not isinstance(self._access, str) or not may_see(self._access, request.caller):
            return plain(403, "forbidden\n", _HEADERS)
        cookie = f"{COOKIE}={cookie_of(self._access)}; HttpOnly; SameSite=Strict; Path={request.mount}{self._path}"
        return PageResponse(204, [("Set-Cookie", cookie), *_HEADERS])

    def _route(self, fields: Mapping[str, str]) -> PageResponse:
        found = data.route(self._source, Endpoint(fields.get("method", ""), fields.get("route", "")))
        return _json({"error": "no such route"}, 404) if found is None else _json(found)

    def _holders(self, fields: Mapping[str, str]) -> PageResponse:
        depth = fields.get("depth", "8")
        if not depth.isascii() or not depth.isdigit() or not 0 < int(depth[:3]) <= _MAX_DEPTH or len(depth) > 2:
            return _json({"error": f"depth must be an integer from 1 to {_MAX_DEPTH}"}, 400)
        endpoint = (fields["method"], fields["route"]) if "method" in fields and "route" in fields else None
        module = fields.get("module") or None
        if module is None and endpoint is None:
            return _json({"error": "module=package.module.Type, or method= and route=, must be given"}, 400)

        def ask(progress: Any, cancelled: Any) -> Any:
            try:
                return self._source.holders(
                    module, endpoint=endpoint, max_depth=int(depth), progress=progress, cancelled=cancelled
                )
            except SettingsError:  # of a route that this worker has not served
                if module is None or endpoint is None:
                    raise
                return self._source.holders(module, max_depth=int(depth), progress=progress, cancelled=cancelled)

        lines: Iterator[bytes] | None = self._searches.start(ask)
        if lines is None:
            return _json({"error": "another search is under way in this process"}, 429)
        return PageResponse(200, [("Content-Type", "application/x-ndjson"), *_HEADERS], lines)


def _fields(query: str) -> dict[str, str]:
    try:
        return {name: values[-1] for name, values in parse_qs(query, max_num_fields=_MAX_FIELDS).items()}
    except ValueError:  # more fields than that
        return {}


def _json(found: Any, status: int = 200, *, attachment: str | None = None) -> PageResponse:
    headers = [("Content-Type", _JSON), *_HEADERS]
    if attachment is not None:
        headers.append(("Content-Disposition", f'attachment; filename="{attachment}"'))
    return PageResponse(status, headers, json.dumps(found).encode())


def _file(name: str, kind: str, *, status: int = 200) -> PageResponse:
    return PageResponse(status, [("Content-Type", f"{kind}; charset=utf-8"), *_HEADERS], _content(name))


def _static(name: str, accept_encoding: str) -> PageResponse:
    headers = [("Content-Type", f"{_STATIC[name]}; charset=utf-8"), *_KEPT]
    if not gzip_accepted(accept_encoding):
        return PageResponse(200, headers, _content(name))
    return PageResponse(200, [*headers, ("Content-Encoding", "gzip")], _compressed(name))


@cache
def _compressed(name: str) -> bytes:
    return gzip.compress(_content(name))


@cache
def _content(name: str) -> bytes:
    return files("heap_middleware.exposition.report").joinpath("static", name).read_bytes()
