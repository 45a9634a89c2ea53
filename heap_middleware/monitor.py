"""The one object behind both adapters: it owns the ledger, the recorder, the census and the metrics page."""

import gc
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import cast

from heap_middleware import accelerator
from heap_middleware.endpoints.chronicle import Chronicle, TypeKey
from heap_middleware.endpoints.history import HistoryView
from heap_middleware.endpoints.history import joined as joined_history
from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals, Ledger
from heap_middleware.endpoints.level import let_go
from heap_middleware.endpoints.recorder import FirstRequest, Recorder, RequestRecorder
from heap_middleware.endpoints.sites import Site
from heap_middleware.endpoints.suspects import Suspect, verdicts
from heap_middleware.endpoints.tracker import TrackerRecorder, reset_in_child
from heap_middleware.endpoints.windows import Level, WindowRecorder
from heap_middleware.endpoints.work import Work
from heap_middleware.errors import BackendUnavailable, SettingsError
from heap_middleware.exposition.collector import HeapCollector
from heap_middleware.exposition.details import ENDPOINTS, POINTS, Details, encode_details, largest, merged_sites
from heap_middleware.exposition.families import OwnFigures, package_version
from heap_middleware.exposition.joined import JoinedMetrics, own_part
from heap_middleware.exposition.pages import MetricsPage
from heap_middleware.exposition.report.page import ReportPage
from heap_middleware.exposition.requests import PageRequest, PageResponse
from heap_middleware.heap.accelerated import BUFFER, AcceleratedCensus, CensusProcess
from heap_middleware.heap.census import Census, CensusKind, TypeFilter, TypeRow, take_census
from heap_middleware.heap.held import Cancelled, Progress
from heap_middleware.heap.holders import HolderTree, asked, find_holders
from heap_middleware.heap.shared import SharedCensus
from heap_middleware.settings import HeapSettings
from heap_middleware.workers import publisher
from heap_middleware.workers.directory import Gathered
from heap_middleware.workers.pool import Known, WorkerPool
from heap_middleware.workers.ticker import Ticker

__all__ = ["HeapMonitor"]

_log = logging.getLogger("heap_middleware")
_FAILED = b"the census failed, see the log\n"


class HeapMonitor:
    """The census of this process and the totals of its endpoints.

    `HeapMonitor(settings)` makes one of its own; middleware built without `monitor=` shares one for equal settings,
    because frameworks build their stacks more than once. A forked child starts from zero.

    Raises `BackendUnavailable` if an attribution backend was asked for by name that cannot run here.
    """

    def __init__(self, settings: HeapSettings | None = None) -> None:
        self.settings = settings if settings is not None else HeapSettings.from_environment()
        if self.settings.enabled and accelerator.missing is not None:
            if self.settings.attribution == "native":
                raise BackendUnavailable(
                    f"attribution is 'native', and this installation has no accelerator ({accelerator.missing}); "
                    "allowed here: False, True or 'windows'"
                )
            accelerator.say_it_is_missing()
        self.key = f"heap_middleware.monitor.{id(self)}"
        """Where the adapters note in an environ or scope that this monitor measures the request already."""
        self._place = _free_place(self)
        """Which it is of the monitors of this process that are alike: the same in all its workers."""
        self._start()
        _monitors.add(self)

    @classmethod
    def shared(cls, settings: HeapSettings) -> "HeapMonitor":
        """The monitor of this process for these settings; made if there is none yet."""
        with _shared_lock:
            monitor = _shared.get(settings)
            if monitor is None:
                monitor = _shared[settings] = cls(settings)
            return monitor

    def census(self) -> Census:
        """Objects and bytes by type, now or at most `census_min_interval` seconds ago."""
        with self._disturbing():
            return self._census.get()

    def endpoints(self) -> Mapping[Endpoint, EndpointTotals]:
        """What is known of each (method, route) so far; empty without `attribution`.

        With `workers_dir`, of all workers together: what all counted, dead ones included, and what living ones retain;
        each worker tells the lines of its twenty largest routes.
        """
        joined = self._joined()
        if joined is not None:
            found, sites = joined.endpoints(), merged_sites(said.sites for said in joined.details())
        else:
            found, sites = self.totals(), self._sites()
        return {endpoint: replace(row, sites=sites.get(endpoint, ())) for endpoint, row in found.items()}

    def totals(self) -> dict[Endpoint, EndpointTotals]:
        """What this process knows of each endpoint, without the lines that allocated: what a scrape shows."""
        return {} if self._recorder is None else self._recorder.totals()

    def flush(self) -> None:
        """Let other workers know what this one has counted, at once, as a process does at its end. Raises nothing.

        For a process that ends without a word; with the ASGI middleware, the end of the lifespan does it.
        """
        if self._workers is not None:
            self._workers.flush()

    def verdicts(self) -> list[Suspect]:
        """The routes that leak, without their types: what a scrape shows. With `workers_dir`, of all workers."""
        joined = self._joined()
        if joined is not None:
            return joined.verdicts()
        if self._chronicle is None:
            return []
        self._chronicle.note()
        knows_bytes = self._recorder is not None and self._recorder.follows
        return verdicts({one: [said] for one, said in self._chronicle.evidence().items()}, knows_bytes=knows_bytes)

    def suspects(self) -> list[Suspect]:
        """The routes that leak, those that lose most first: how much, since when, of which types, and how sure that is.

        With `workers_dir`, by what all workers know together. Empty without `attribution`.
        """
        found = self.verdicts()
        types = self.retained_by_type() if found else {}
        return [
            replace(suspect, types=tuple(sorted(types.get(suspect.endpoint, {}).items(), key=lambda row: -row[1])))
            for suspect in found
        ]

    def history(self) -> HistoryView[Endpoint]:
        """What each route retained over time; with `workers_dir`, summed over living workers, of the largest routes."""
        joined = self._joined()
        if joined is not None:
            return joined_history([said.history for said in joined.details()], self.settings.history_points)
        if self._chronicle is None:
            return HistoryView([], {})
        self._chronicle.note()
        return self._chronicle.view()

    def types_history(self) -> HistoryView[TypeKey]:
        """What the largest routes retained of each type, whenever a census was taken; with `workers_dir`, summed."""
        joined = self._joined()
        if joined is not None:
            return joined_history([said.types for said in joined.details()], self.settings.history_points)
        return HistoryView([], {}) if self._chronicle is None else self._chronicle.types()

    def retained_types(self, census: Census) -> Mapping[Endpoint, tuple[TypeRow, ...]]:
        """What each endpoint's requests in this process left alive when the census was taken, by type.

        Only the accelerator knows: `types_per_route` types are named, the rest is `__other__`, and memory that is no
        object is `(buffer)`. Empty where `types_per_route` is 0.
        """
        if self._recorder is None or self.settings.types_per_route == 0:
            return {}
        types = TypeFilter(self.settings.types_per_route)
        numbered = self._recorder.numbered()
        return {
            numbered[number]: (
                *types.rows((row.module, row.objects, row.bytes) for row in rows if row.module != BUFFER),
                *(row for row in rows if row.module == BUFFER),
            )
            for number, rows in census.retained.items()
            if number in numbered
        }

    def retained_by_type(self) -> Mapping[Endpoint, Mapping[str, float]]:
        """Objects that each endpoint's requests left alive, by type; with `workers_dir`, of all living workers.

        Types beyond `types_per_route` of a worker are `__other__`.
        """
        joined = self._joined()
        if joined is not None:
            return joined.retained_by_type()
        types = self.retained_types(self.census())
        return {endpoint: {row.module: row.objects for row in rows} for endpoint, rows in types.items()}

    def holders(
        self,
        module: str | None = None,
        *,
        endpoint: tuple[str, str] | None = None,
        max_depth: int = 8,
        max_items: int = 200_000,
        ignore_types: Iterable[str] = (),
        ignore_modules: Iterable[str] = (),
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> HolderTree:
        """Who holds the objects of a type (`package.module.Type`, as in the census) in this process, level by level.

        With `endpoint`, a method and route template, only those that its requests left alive, as far as they were
        recorded (one allocation in `sampling`); without a type, all of these. `max_depth` is the number of levels,
        `max_items` that of objects followed. `progress(level, objects)` is told how far it is, `cancelled()` asked
        whether to stop. Raises `SettingsError` for a question that cannot be asked.
        """
        number = self._number_of(endpoint) if endpoint is not None else 0
        question = asked(module, number, max_depth, max_items, ignore_types, ignore_modules)
        with self._disturbing():
            fork = self.settings.census_process != "inline" and hasattr(os, "fork")
            return find_holders(question, fork=fork, progress=progress, cancelled=cancelled)

    def _number_of(self, endpoint: tuple[str, str]) -> int:
        numbered = self._recorder.numbered() if self._recorder is not None else {}
        for number, known in numbered.items():
            if known == endpoint:
                return number
        raise SettingsError(
            f"endpoint={endpoint!r} is none that the accelerator has followed in this process; there are "
            f"{', '.join(' '.join(known) for known in numbered.values())[:300] or 'none'}"
        )

    def collector(self) -> HeapCollector:
        """A collector for a `prometheus_client` registry of yours."""
        return HeapCollector(self, None if self._workers is None else self._gather)

    def own_figures(self) -> OwnFigures:
        """What the middleware itself costs, and which backend runs."""
        recorder = self._recorder
        return OwnFigures(
            version=package_version(),
            backend=recorder.name if recorder is not None else "none",
            census=self._census_kind(),
            overhead={
                "request": recorder.spent if recorder is not None else 0.0,
                "census": self._census.seconds,
                "render": self._render_seconds + (self._workers.spent if self._workers is not None else 0.0),
            },
            faults=dict(self._faults),
            tracker=recorder.tracked() if recorder is not None else None,
            rejected=self._workers.rejected if self._workers is not None else None,
        )

    def request(self, kind: str, name: str) -> Work:
        """Measure a block of work that is no HTTP request, as if it were one; also decorates a function or coroutine.

        `with monitor.request("task", "send_mail"):` counts under the method `task` and the route `send_mail`. A name is
        that of a kind of work, not of one piece of it: the first `max_routes` have series of their own. What happens
        inside the block of another request is this one's. Raises `SettingsError` for what cannot be a label.
        """
        for what, text in (("kind", kind), ("name", name)):
            if type(text) is not str or not text or not text.isprintable():
                raise SettingsError(f"{what} is {text!r}; allowed: a printable text such as 'task' or 'send_mail'")
        self.ledger.admit(kind)
        return Work(partial(self._measuring, kind, name))

    @contextmanager
    def _measuring(self, kind: str, name: str) -> Iterator[None]:
        held: dict[str, object] = {}
        window = begun = None
        try:
            recorder = self.recorder
            if recorder is not None:
                window, begun = recorder.begin(held, Level.RELEASE), recorder
        except Exception:
            self.fault("request")
        try:
            yield
        finally:
            try:
                if begun is not None:
                    begun.finish(window, held, Level.RELEASE, kind, name)
            except Exception:
                self.fault("request")

    def respond(self, request: PageRequest) -> PageResponse:
        """Answer a scrape. Never raises: a failing census is logged, counted, and answered with 503."""
        began = time.perf_counter()
        elsewhere = self._seconds_elsewhere()
        try:
            with self._disturbing():
                page = self._page if request.path in self._page.paths else self._report
                return page.respond(request)
        except Exception:
            self.fault("scrape")
            return PageResponse(503, [("Content-Type", "text/plain; charset=utf-8")], _FAILED)
        finally:
            spent = time.perf_counter() - began - (self._seconds_elsewhere() - elsewhere)
            self._render_seconds += max(0.0, spent)

    def fault(self, part: str) -> None:
        """Count a fault of our own and log the first of each part, with its traceback. Called while it is handled."""
        self._faults[part] = self._faults.get(part, 0) + 1
        if self._faults[part] == 1:
            _log.exception("heap_middleware failed in its own %s handling; the application is not affected", part)

    def _start(self) -> None:
        settings = self.settings
        self.ledger = Ledger(settings.max_routes, settings.exclude_routes)
        self._recorder = self._make_recorder() if settings.enabled and settings.attribution else None
        process = cast(CensusProcess, settings.census_process)
        self._accelerated = AcceleratedCensus(process) if accelerator.missing is None else None
        self._census = SharedCensus(self._take_census, settings.census_min_interval)
        self._chronicle = self._make_chronicle() if self._recorder is not None else None
        self._ticker = Ticker(self._tick, partial(self.fault, "history"))
        self._workers = self._make_workers() if settings.enabled and settings.workers_dir is not None else None
        self.recorder: RequestRecorder | None = (
            self._recorder
            if self._workers is None and self._recorder is None
            else FirstRequest(self._recorder, self._first_request)
        )
        """What the adapters tell of each request."""
        self._page = MetricsPage(
            settings.metrics_path,
            self.collector(),
            settings.registry,
            access=settings.metrics_access,
            fault=partial(self.fault, "registry"),
        )
        self._report = ReportPage(settings.report_path, self, settings.access, partial(self.fault, "report"))
        self.paths = self._page.paths | self._report.paths if settings.enabled else frozenset()
        """The paths whose requests `respond` answers instead of the application."""
        self._render_seconds = 0.0
        self._faults: dict[str, int] = {
            "request": 0,
            "scrape": 0,
            "registry": 0,
            "workers": 0,
            "history": 0,
            "report": 0,
        }

    def _make_recorder(self) -> Recorder:
        settings = self.settings
        if settings.attribution != "windows" and accelerator.missing is None:
            return TrackerRecorder(
                self.ledger,
                sampling=settings.sampling,
                budget=settings.overhead_budget,
                max_tracked=settings.max_tracked,
                max_sites=settings.max_sites,
                app_roots=settings.app_roots,
            )
        return WindowRecorder(
            self.ledger,
            sampling=settings.sampling,
            budget=settings.overhead_budget,
            fault=partial(self.fault, "request"),
        )

    def _make_workers(self) -> WorkerPool:
        settings = self.settings
        return WorkerPool(
            settings.workers_dir or "",
            f"{(settings.fingerprint() + self._place) % (1 << 32):08x}",
            take_census=self._census.get,
            describe=self._describe,
            disturbing=self._disturbing,
            interval=settings.publish_interval,
            wait=settings.workers_wait,
            recent=settings.census_min_interval,
            max_routes=settings.max_routes,
            fault=partial(self.fault, "workers"),
        )

    def _gather(self) -> Gathered:
        """Ask for `self._workers` each time: a forked child has others."""
        assert self._workers is not None
        return self._workers.gather()

    def _make_chronicle(self) -> Chronicle:
        settings = self.settings
        return Chronicle(
            self.totals,
            self._sampling_interval if self._recorder is not None and self._recorder.follows else None,
            points=settings.history_points,
            least=settings.leak_min_objects,
            clock=time.time,
        )

    def _sampling_interval(self) -> float:
        tracked = self._recorder.tracked() if self._recorder is not None else None
        return 1.0 if tracked is None else tracked[1]

    def _tick(self) -> None:
        assert self._chronicle is not None
        with self._disturbing():
            self._chronicle.note()

    def _sites(self) -> dict[Endpoint, tuple[Site, ...]]:
        return {} if self._recorder is None else self._recorder.sites()

    def _joined(self) -> JoinedMetrics | None:
        return None if self._workers is None else JoinedMetrics(self._gather())

    def _first_request(self) -> None:
        self.recorder = self._recorder
        if self._workers is not None:  # first: the thread that starts now publishes at once what it finds
            try:
                self._workers.start()
            except Exception:
                self.fault("workers")
        if self._chronicle is not None:
            try:
                publisher.add(self._ticker)
            except Exception:  # no thread can be started: scrapes note points all the same
                self.fault("history")

    def _describe(self) -> Known:
        census, taken = self._census.last() or (None, None)
        types = {} if census is None else self.retained_types(census)
        totals = self.totals()
        counters, gauges = own_part(self.own_figures(), census, totals, types)
        if self._chronicle is None:
            return Known(counters, gauges, taken)
        self._chronicle.note()
        endpoints = largest(totals)
        sites = self._sites()
        details = Details(
            self._chronicle.view(endpoints, POINTS),
            self._chronicle.types(),
            {endpoint: sites[endpoint] for endpoint in endpoints if endpoint in sites},
        )
        return Known(counters, gauges, taken, self._chronicle.evidence(), encode_details(details))

    def _seconds_elsewhere(self) -> float:
        """Time that passed in scrapes and was not spent on rendering."""
        return self._census.seconds + (self._workers.waited if self._workers is not None else 0.0)

    def _take_census(self) -> Census:
        settings = self.settings
        if settings.gc_collect:
            gc.collect()
        types = TypeFilter(settings.top_types, settings.include_types, settings.exclude_types)
        kind = self._census_kind()
        if self._accelerated is None:
            return take_census(kind, types)
        let_go()
        census = self._accelerated.take(kind, types)
        if self._chronicle is not None:
            self._chronicle.note_types(self._largest_types(census))
        return census

    def _largest_types(self, census: Census) -> dict[Endpoint, dict[str, float]]:
        types = self.retained_types(census)
        chosen = sorted(types, key=lambda endpoint: -sum(row.objects for row in types[endpoint]))[:ENDPOINTS]
        return {endpoint: {row.module: row.objects for row in types[endpoint]} for endpoint in chosen}

    def _census_kind(self) -> CensusKind:
        if self.settings.census == "auto":
            return "reachable" if self._accelerated is not None else "tracked"
        return cast(CensusKind, self.settings.census)

    @contextmanager
    def _disturbing(self) -> Iterator[None]:
        """What happens inside changes the heap, and is no request's doing."""
        if self._recorder is None:
            yield
            return
        with self._recorder.disturbing():
            yield


_monitors: "weakref.WeakSet[HeapMonitor]" = weakref.WeakSet()
_shared: "weakref.WeakValueDictionary[HeapSettings, HeapMonitor]" = weakref.WeakValueDictionary()
_shared_lock = threading.RLock()
_places: "weakref.WeakValueDictionary[tuple[str | None, int, int], HeapMonitor]" = weakref.WeakValueDictionary()


def _free_place(monitor: HeapMonitor) -> int:
    """The first number that no other monitor like it has: such are few, and workers build them in the same order."""
    alike = monitor.settings.workers_dir, monitor.settings.fingerprint()
    with _shared_lock:
        number = next(number for number in itertools.count() if (*alike, number) not in _places)
        _places[*alike, number] = monitor
    return number


def _after_fork() -> None:
    """A child serves and counts its own requests: it starts from zero, with locks that no lost thread holds."""
    global _shared_lock
    _shared_lock = threading.RLock()
    reset_in_child()
    publisher.forget_in_child()
    for monitor in list(_monitors):
        monitor._start()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has none
    os.register_at_fork(after_in_child=_after_fork)
