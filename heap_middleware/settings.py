"""Every setting: its name, default, what is allowed, and the environment variable that sets it.

A setting is one line in `HeapSettings`; its kind checks a Python value and parses the text of an environment variable.
The variable of the field `max_routes` is `HEAP_MIDDLEWARE_MAX_ROUTES`; an explicit argument wins over it.
"""

import logging
import os
import pkgutil
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from heap_middleware.errors import SettingsError

__all__ = ["HeapSettings"]

_PREFIX: Final = "HEAP_MIDDLEWARE_"
_NOT_FIELDS: Final = frozenset({"REQUIRE_NATIVE", "PURE"})  # read by the build and by CI, no setting of the middleware
_MULTIPROC_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"  # of prometheus_client, whose own files have other names
_WHICH: Final = ("metrics_path",)
"""Settings that tell which monitor of a process it is: a service that is reloaded with others goes on counting."""
_MAX_SHOWN: Final = 300
"""Characters of a wrong value that an error quotes: enough to recognise it, and a log line stays one."""
_LEAST_TOKEN: Final = 16
"""Characters: sixteen random ones are guessed by nobody."""
_SECRET: Final = frozenset({"access", "metrics_access"})
_BOOLEANS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
_BETWEEN_PATTERNS: Final = re.compile(r",(?![^{]*\})(?![^\[]*\])")  # not the commas of {1,2} and [,;]
_log = logging.getLogger("heap_middleware")


@dataclass(frozen=True)
class _Kind:
    """How a setting's value is checked, and parsed when it comes as text. `check` and `parse` raise ValueError."""

    allowed: str
    check: Callable[[Any], Any]
    parse: Callable[[str], Any]


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError


def _boolean() -> _Kind:
    def check(value: Any) -> bool:
        _require(type(value) is bool)
        return bool(value)

    def parse(text: str) -> bool:
        _require(text.lower() in _BOOLEANS)
        return _BOOLEANS[text.lower()]

    return _Kind("True or False (in the environment 1, true, yes, on, 0, false, no, off)", check, parse)


def _integer(least: int, most: int | None = None) -> _Kind:
    def check(value: Any) -> int:
        _require(type(value) is int and value >= least and (most is None or value <= most))
        return int(value)

    return _Kind(f"an integer {_from_to(least, most)}", check, lambda text: check(int(text)))


def _from_to(least: int, most: int | None) -> str:
    return f"of {least} or more" if most is None else f"from {least} to {most}"


def _number(least: float, most: float) -> _Kind:
    def check(value: Any) -> float:
        _require(type(value) in (int, float) and least <= value <= most)
        return float(value)

    return _Kind(f"a number from {least:g} to {most:g}", check, lambda text: check(float(text)))


def _choice(*words: Any, integers: tuple[int, int] | None = None) -> _Kind:
    allowed = " or ".join(repr(word) for word in words)
    if integers is not None:
        allowed += f" or an integer {_from_to(*integers)}"

    def check(value: Any) -> Any:
        if integers is not None and type(value) is int and integers[0] <= value <= integers[1]:
            return value
        _require(any(type(value) is type(word) and value == word for word in words))
        return value

    def parse(text: str) -> Any:
        if text.isascii() and text.isdigit() and integers is not None:
            return check(int(text))
        if any(type(word) is bool for word in words) and text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        return check(text)

    return _Kind(allowed, check, parse)


def _path() -> _Kind:
    def check(value: Any) -> str | None:
        if value is None:
            return None
        _require(type(value) is str and value.startswith("/") and not any(c in "?#" or c.isspace() for c in value))
        path = str(value).rstrip("/")
        _require(path != "")
        return path

    return _Kind(
        "a path such as '/metrics', starting with '/' and longer than it, without '?', '#' or white space, or None",
        check,
        lambda text: check(text or None),
    )


def _directory() -> _Kind:
    def check(value: Any) -> str | None:
        if value is None:
            return None
        path = os.fspath(value)
        _require(type(path) is str and path != "" and "\0" not in path)
        return os.path.abspath(str(path))

    return _Kind("the path of a directory, made if it is missing, or None", check, lambda text: check(text or None))


def _directories() -> _Kind:
    def check(value: Any) -> tuple[str, ...]:
        _require(type(value) in (tuple, list))  # a bare string would be one directory a letter
        return tuple(_directory().check(path) for path in value if path is not None)

    return _Kind(
        f"a tuple or list of paths of directories (in the environment separated by {os.pathsep!r})",
        check,
        lambda text: check([part for part in text.split(os.pathsep) if part]),
    )


def _patterns() -> _Kind:
    def check(value: Any) -> tuple[str, ...]:
        # A bare string is iterable too, and would silently become one pattern a letter; an iterator may never end.
        _require(type(value) in (tuple, list))
        patterns = tuple(value)
        for pattern in patterns:
            _require(type(pattern) is str)
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r}: {error}") from error
        return patterns

    return _Kind(
        "a tuple or list of regular expressions (in the environment separated by commas)",
        check,
        lambda text: check([part.strip() for part in _BETWEEN_PATTERNS.split(text) if part.strip()]),
    )


def _object(what: str, holds: Callable[[Any], bool]) -> _Kind:
    def check(value: Any) -> Any:
        _require(value is None or holds(value))
        hash(value)  # equal settings share one monitor, found by their hash
        return value

    return _Kind(
        f"{what} (hashable) or None (in the environment 'package.module:name')",
        check,
        lambda text: check(pkgutil.resolve_name(text)),
    )


def _access() -> _Kind:
    def check(value: Any) -> Any:
        _require(
            value is None or callable(value) or (type(value) is str and len(value) >= _LEAST_TOKEN and value.isascii())
        )
        hash(value)
        return value

    return _Kind(f"a token of {_LEAST_TOKEN} or more ASCII characters, a callable (hashable), or None", check, check)


def _setting(default: Any, kind: _Kind) -> Any:
    return field(default=default, metadata={"kind": kind})


@dataclass(frozen=True, kw_only=True)
class HeapSettings:
    """The settings of one monitor; equal settings share one monitor.

    Raises `SettingsError` for a value that is not allowed, naming the field, the value and what is.
    """

    enabled: bool = _setting(True, _boolean())
    """False makes the middleware a pass-through, `/metrics` included."""
    metrics_path: str | None = _setting("/metrics", _path())
    """Where the middleware answers a scrape itself; None when you serve `HeapCollector` from a registry of yours."""
    attribution: bool | str = _setting(False, _choice(False, True, "native", "windows"))
    """Whether requests are measured: True, with the accelerator where it is there; "native" insists on it, "windows"
    does without, in pure Python."""
    sampling: int | str = _setting("auto", _choice("auto", integers=(1, 1 << 20)))
    """How much is measured: "auto" keeps to `overhead_budget`, N measures one in N."""
    overhead_budget: float = _setting(0.01, _number(0.0001, 1.0))
    """Share of one core that automatic sampling may use. 1 % is below what a service's own noise hides."""
    max_tracked: int = _setting(262_144, _integer(16, 1 << 28))
    """Live records that the accelerator keeps; beyond, half are dropped and the others count twice."""
    max_sites: int = _setting(2000, _integer(0, 8000))
    """Lines that are named as having allocated what is alive, a route's largest 20 of them; 0: none is looked for."""
    app_roots: tuple[str, ...] = _setting((), _directories())
    """Directories of the application's own files. Without any, they are all but Python's and installed packages'."""
    max_routes: int = _setting(500, _integer(1))
    """Routes with a series of their own; the rest is summed as `__other__`."""
    exclude_routes: tuple[str, ...] = _setting((), _patterns())
    """Regular expressions, searched in the route template: those routes are not recorded."""
    top_types: int = _setting(200, _integer(1))
    """Types with a series of their own; the rest is summed as `__other__`."""
    include_types: tuple[str, ...] = _setting((), _patterns())
    """Regular expressions, searched in `module.Type`: if there are any, only those types are counted."""
    exclude_types: tuple[str, ...] = _setting((), _patterns())
    """Regular expressions, searched in `module.Type`: those types are not counted."""
    gc_collect: bool = _setting(False, _boolean())
    """Whether each census runs a full garbage collection first. Off: it stops the service, a census need not."""
    census_min_interval: float = _setting(1.0, _number(0.0, 86400.0))
    """Seconds; a scrape sooner than that after a census gets the same census again."""
    census: str = _setting("auto", _choice("auto", "tracked", "reachable"))
    """Which objects are counted: those the garbage collector tracks, or those reachable from them as well. "auto":
    reachable with the accelerator, which is fast enough for it, tracked in pure Python."""
    census_process: str = _setting("auto", _choice("auto", "inline", "fork"))
    """Where the accelerator walks the heap: in the application, in a forked child, or, "auto", in a child once a walk
    kept the application waiting for more than 10 ms. Pure Python walks in slices, in the application."""
    types_per_route: int = _setting(10, _integer(0))
    """Types of which a route's retained objects are shown. Ten name a leak, and 500 routes stay below 6,000 series.
    0: they are not told apart."""
    workers_dir: str | None = _setting(None, _directory())
    """Where the workers of a service leave what they know for each other, so that whichever is scraped answers for all.
    Without it, but with the variable PROMETHEUS_MULTIPROC_DIR, a subdirectory of that."""
    publish_interval: float = _setting(15.0, _number(0.1, 3600))
    """Seconds between two notes that a worker leaves unasked: what it counts in between is lost if it is killed."""
    workers_wait: float = _setting(0.5, _number(0, 60))
    """Seconds that a scrape waits for the other workers' censuses before it serves their last ones."""
    leak_min_objects: float = _setting(0.01, _number(0.0001, 1e6))
    """Objects per request from which a growth is said to be a leak: one object in a hundred requests."""
    history_points: int = _setting(300, _integer(16, 10_000))
    """Points of each route's history that are kept: fine ones of late, coarse ones of long ago."""
    report_path: str | None = _setting(None, _path())
    """Where the report is shown: a page, and what is on it as JSON. None: nowhere. `access` says to whom."""
    access: Any = _setting(None, _access())
    """Who may see the report: without it, whoever asks from this machine. A token, or a callable that is given the
    environ or scope and returns True or False."""
    metrics_access: Any = _setting(None, _access())
    """Who may see `/metrics`; without it, everybody."""
    registry: Any = _setting(None, _object("a prometheus_client registry", lambda value: hasattr(value, "collect")))
    """A registry of yours whose metrics `/metrics` shows as well."""
    route_of: Callable[..., str | None] | None = _setting(
        None, _object("a callable that takes the environ or scope and returns a route template or None", callable)
    )
    """Asked first for the route template; None from it means that the framework is asked."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            object.__setattr__(self, spec.name, _checked(spec.name, value, spec.metadata["kind"].check, spec))

    def fingerprint(self) -> int:
        """The same in every process for a monitor, and after a reload with other settings, but for its page."""
        return zlib.crc32(repr([getattr(self, name) for name in _WHICH]).encode())

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, /, **explicit: Any) -> "HeapSettings":
        """Settings from `explicit` arguments, then from environment variables, then the defaults.

        Raises `SettingsError` for an unknown argument and for a value that is not allowed. A variable that starts
        with `HEAP_MIDDLEWARE_` and names no setting is logged as a warning: it may belong to another version.
        """
        specs = {spec.name: spec for spec in fields(cls)}
        for name in explicit:
            if name not in specs:
                raise SettingsError(f"{name} is no setting of heap_middleware; there are {', '.join(sorted(specs))}")
        values = dict(explicit)
        for variable in sorted(environ):
            name = variable.removeprefix(_PREFIX)
            if name == variable or name in _NOT_FIELDS:
                continue
            spec = specs.get(name.lower())
            if spec is None:
                _log.warning("the environment variable %s names no setting of heap_middleware", variable)
            elif spec.name not in explicit:
                values[spec.name] = _checked(variable, environ[variable], spec.metadata["kind"].parse, spec)
        shared = environ.get(_MULTIPROC_DIR)
        if shared and "workers_dir" not in values:
            values["workers_dir"] = os.path.join(shared, "heap_middleware")
        return cls(**values)


def _checked(name: str, value: Any, convert: Callable[[Any], Any], spec: Any) -> Any:
    try:
        return convert(value)
    except Exception as error:  # a value of any class may raise anything, and so may the import of a named object
        reason = _shown(error, str)
        because = f" ({reason})" if reason else ""
        allowed = spec.metadata["kind"].allowed
        secret = spec.name in _SECRET and isinstance(value, str)
        shown = "a str that is no good" if secret else _shown(value, repr)
        raise SettingsError(f"{name} is {shown}{because}; allowed: {allowed}") from error


def _shown(value: Any, how: Callable[[Any], str]) -> str:
    try:
        text = how(value)
    except Exception:  # `repr` of an integer of more than 4,300 digits is one
        return f"a value of the type {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
