"""The page that is scraped, as data in and data out."""

import gzip
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, gzip_accepted
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from heap_middleware.exposition.access import may_see
from heap_middleware.exposition.collector import HeapCollector
from heap_middleware.exposition.requests import PageRequest, PageResponse, plain

__all__ = ["MetricsPage"]

_ALLOWED: Final = ("GET", "HEAD")
_MAX_NAMES: Final = 1000
"""Names in a `name[]` filter beyond which the filter is refused: there are about twenty to choose from."""


class MetricsPage:
    """Answers scrapes of `path` with the families of `collector` and, if given, those of the user's registry."""

    def __init__(
        self,
        path: str | None,
        collector: HeapCollector,
        registry: Any = None,
        *,
        access: Any = None,
        fault: Callable[[], None] = lambda: None,
    ) -> None:
        self.paths: frozenset[str] = frozenset() if path is None else frozenset({path, path + "/"})
        """The paths answered here; `/metrics/` is `/metrics`, for scrapers that add the slash."""
        self._collector = collector
        self._registry = registry
        self._fault = fault
        self._access = access

    def respond(self, request: PageRequest) -> PageResponse:
        """The answer to a request for one of `paths`."""
        if request.method not in _ALLOWED:
            return plain(405, "only GET and HEAD are answered here\n", [("Allow", ", ".join(_ALLOWED))])
        if self._access is not None and not may_see(self._access, request.caller):
            return plain(403, "forbidden\n")
        names = _names(request.query)
        if names is not None and len(names) > _MAX_NAMES:
            return plain(400, f"at most {_MAX_NAMES} name[] filters\n")
        encoder, content_type = _encoder(request.accept)
        body = self._body(encoder, names)
        headers = [("Content-Type", content_type), ("Vary", "Accept, Accept-Encoding")]
        if gzip_accepted(request.accept_encoding):
            # Level 1: type names repeat so much that higher levels gain little.
            body = gzip.compress(body, compresslevel=1)
            headers.append(("Content-Encoding", "gzip"))
        return PageResponse(200, headers, body)

    def _body(self, encoder: Callable[[Collector], bytes], names: list[str] | None) -> bytes:
        joined = self._collector.joined()
        own = CollectorRegistry()
        own.register(self._collector if joined is None else joined.counters)
        # Of a collector of ours in the user's registry nothing is shown twice.
        ours = () if joined is None else (family.name for family in joined.describe())
        shown = _Both(own, self._registry, self._fault, frozenset(ours))
        body = encoder(shown if names is None else shown.restricted_registry(names))
        return body if joined is None else joined.render_gauges(encoder, names) + body


class _Both(Collector):
    """Our registry and the user's as one; of a family in both, such as a collector registered twice, ours is shown."""

    def __init__(self, own: Any, other: Any, fault: Callable[[], None], shown: frozenset[str] = frozenset()) -> None:
        self._own = own
        self._other = other
        self._fault = fault
        self._shown = shown
        """Families that are ours, whether or not they are in `own`."""

    def collect(self) -> Iterator[Metric]:
        shown = set(self._shown)
        for metric in self._own.collect():
            shown.add(metric.name)
            yield metric
        if self._other is not None:
            try:
                yield from [metric for metric in self._other.collect() if metric.name not in shown]
            except Exception:  # a collector of the user's: its metrics are lost, the heap's are not
                self._fault()

    def restricted_registry(self, names: Iterable[str]) -> "_Both":
        other = self._other
        if hasattr(other, "restricted_registry"):
            other = other.restricted_registry(names)
        return _Both(self._own.restricted_registry(names), other, self._fault, self._shown)


def _names(query: str) -> list[str] | None:
    try:
        return parse_qs(query, max_num_fields=_MAX_NAMES).get("name[]")
    except ValueError:  # more fields than that
        return [""] * (_MAX_NAMES + 1)


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """The encoder that `prometheus_client` chooses, and its content type; the plain text format if it cannot."""
    try:
        encoder, content_type = choose_encoder(accept)
    except (ValueError, TypeError):  # a version that is no version
        return generate_latest, CONTENT_TYPE_PLAIN_0_0_4
    if not (content_type.isascii() and content_type.isprintable()):
        return generate_latest, CONTENT_TYPE_PLAIN_0_0_4  # it repeats the client's version parameter
    return encoder, content_type
