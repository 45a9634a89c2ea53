import os
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heap_middleware.errors import SettingsError
from heap_middleware.settings import HeapSettings

NAMES = [spec.name for spec in fields(HeapSettings)]
GOOD = {
    "enabled": ("0", False),
    "metrics_path": ("/m/", "/m"),
    "attribution": ("windows", "windows"),
    "sampling": ("7", 7),
    "overhead_budget": ("0.5", 0.5),
    "max_tracked": ("16", 16),
    "max_sites": ("100", 100),
    "report_path": ("/heap", "/heap"),
    "access": ("0123456789abcdef", "0123456789abcdef"),
    "metrics_access": ("0123456789abcdef", "0123456789abcdef"),
    "leak_min_objects": ("0.5", 0.5),
    "history_points": ("100", 100),
    "app_roots": (f"/srv/shop{os.pathsep}/srv/lib", ("/srv/shop", "/srv/lib")),
    "max_routes": ("3", 3),
    "exclude_routes": ("^/a, ^/b", ("^/a", "^/b")),
    "top_types": ("4", 4),
    "include_types": ("x", ("x",)),
    "exclude_types": ("y", ("y",)),
    "gc_collect": ("yes", True),
    "census_min_interval": ("2", 2.0),
    "census": ("reachable", "reachable"),
    "census_process": ("fork", "fork"),
    "types_per_route": ("5", 5),
    "workers_dir": ("/run/../run/heap", "/run/heap"),
    "publish_interval": ("3", 3.0),
    "workers_wait": ("0", 0.0),
    "registry": ("prometheus_client:REGISTRY", None),
    "route_of": ("os.path:basename", None),
}


class Hostile:
    __hash__ = None

    def __repr__(self):
        raise RuntimeError("no repr")

    def __getattr__(self, name):
        raise RuntimeError("no attribute")


def test_every_field_is_tried():
    """A setting I can type is tested here."""
    assert set(GOOD) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_variable_sets_a_field(name):
    """Each setting can come from the environment."""
    text, value = GOOD[name]
    got = getattr(HeapSettings.from_environment({"HEAP_MIDDLEWARE_" + name.upper(): text}), name)
    assert got == value if value is not None else got is not None


def test_an_argument_wins():
    """What I pass wins over the environment."""
    settings = HeapSettings.from_environment({"HEAP_MIDDLEWARE_MAX_ROUTES": "nonsense"}, max_routes=9)
    assert settings.max_routes == 9


@pytest.mark.parametrize("name", NAMES)
def test_an_error_names_field_value_and_allowed(name):
    """A wrong value says which field, what it was and what is allowed."""
    with pytest.raises(SettingsError) as caught:
        HeapSettings(**{name: -17})
    assert str(caught.value).startswith(f"{name} is -17")
    assert "allowed: " in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text"),
    [("ENABLED", "perhaps"), ("REGISTRY", "no.such:thing"), ("ROUTE_OF", "os:no_such"), ("EXCLUDE_ROUTES", "(")],
)
def test_a_wrong_variable_is_named(variable, text):
    """A wrong variable is named in the error."""
    with pytest.raises(SettingsError, match=f"HEAP_MIDDLEWARE_{variable} is "):
        HeapSettings.from_environment({f"HEAP_MIDDLEWARE_{variable}": text})


@pytest.mark.parametrize(("text", "value"), [("1", True), ("false", False)])
def test_attribution_reads_words_for_booleans(text, value):
    """I can switch attribution on with 1 in the environment."""
    assert HeapSettings.from_environment({"HEAP_MIDDLEWARE_ATTRIBUTION": text}).attribution is value


def test_an_unknown_argument_is_an_error():
    """A misspelt setting is refused."""
    with pytest.raises(SettingsError, match="max_rutes is no setting"):
        HeapSettings.from_environment({}, max_rutes=1)


def test_an_unknown_variable_warns(caplog):
    """A misspelt variable is logged, the build's own is not."""
    HeapSettings.from_environment({"HEAP_MIDDLEWARE_MAX_RUTES": "1", "HEAP_MIDDLEWARE_REQUIRE_NATIVE": "1", "X": "1"})
    assert [r.args for r in caplog.records] == [("HEAP_MIDDLEWARE_MAX_RUTES",)]


@pytest.mark.parametrize("path", [7, "/", "//", "a", "/a b", "/a\x0b", "/a?b", ""])
def test_a_path_that_cannot_be_served_is_refused(path):
    """A path that would answer my root or never match is refused."""
    with pytest.raises(SettingsError):
        HeapSettings(metrics_path=path)


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.text()),
    st.dictionaries(st.text(), st.integers()), st.just(-(10**5000)), st.builds(Hostile), st.just(["a{9999999999999999}"]),  # noqa: E501
    st.just("x" * 10_000),
)  # fmt: skip


@given(st.sampled_from(NAMES), ANYTHING)
def test_only_settings_errors_come_out(name, value):
    """Whatever I pass, I get settings or a SettingsError of readable length."""
    try:
        first, second = HeapSettings(**{name: value}), HeapSettings(**{name: value})
    except SettingsError as error:
        assert name in str(error)
        assert len(str(error)) < 2000
    else:
        assert first == second
        assert hash(first) == hash(second)


@given(st.sampled_from([n for n in NAMES if n not in ("registry", "route_of")]), st.text())
def test_any_variable_text_is_safe(name, text):
    """Whatever the environment holds, I get settings or a SettingsError."""
    try:
        settings = HeapSettings.from_environment({"HEAP_MIDDLEWARE_" + name.upper(): text})
    except SettingsError as error:
        assert name.upper() in str(error)
    else:
        assert isinstance(hash(settings), int)


def test_no_path_switches_it_off():
    """With metrics_path=None, or an empty variable, the middleware answers no path."""
    assert HeapSettings(metrics_path=None).metrics_path is None
    assert HeapSettings.from_environment({"HEAP_MIDDLEWARE_METRICS_PATH": ""}).metrics_path is None


@pytest.mark.parametrize(
    ("text", "patterns"),
    [("^/a,^/b", ("^/a", "^/b")), ("^/a{1,2}$, /b", ("^/a{1,2}$", "/b")), ("x[,;]y,z", ("x[,;]y", "z"))],
)
def test_commas_of_a_pattern_stay_in_it(text, patterns):
    """In the environment commas separate patterns, except those inside braces and brackets."""
    settings = HeapSettings.from_environment({"HEAP_MIDDLEWARE_EXCLUDE_ROUTES": text})
    assert settings.exclude_routes == patterns


@pytest.mark.parametrize(("text", "value"), [("on", True), ("off", False), ("1", True), ("windows", "windows")])
def test_attribution_from_the_environment(text, value):
    """Attribution is switched by the same words as other switches, or names a backend."""
    assert HeapSettings.from_environment({"HEAP_MIDDLEWARE_ATTRIBUTION": text}).attribution == value


def test_workers_share_the_directory_of_prometheus_client():
    """Where only PROMETHEUS_MULTIPROC_DIR is set, workers_dir is a directory in it; what I set myself wins."""
    environ = {"PROMETHEUS_MULTIPROC_DIR": "/run/prometheus"}
    assert HeapSettings.from_environment(environ).workers_dir == "/run/prometheus/heap_middleware"
    assert HeapSettings.from_environment({**environ, "HEAP_MIDDLEWARE_WORKERS_DIR": "/x"}).workers_dir == "/x"
    assert HeapSettings.from_environment({**environ, "HEAP_MIDDLEWARE_WORKERS_DIR": ""}).workers_dir is None
    assert HeapSettings.from_environment(environ, workers_dir=None).workers_dir is None
    assert HeapSettings.from_environment({}).workers_dir is None


def test_a_relative_directory_is_that_of_the_start(tmp_path, monkeypatch):
    """Workers mean the same directory, wherever the application goes later."""
    monkeypatch.chdir(tmp_path)
    assert HeapSettings(workers_dir="shared").workers_dir == str(tmp_path / "shared")
    assert HeapSettings(workers_dir=tmp_path).workers_dir == str(tmp_path)


@pytest.mark.parametrize("path", ["", "a\0b", 7, b"/run", ["/run"]])
def test_a_directory_is_a_path(path):
    """Anything else than a path is refused."""
    with pytest.raises(SettingsError, match=r"workers_dir is .*; allowed: the path of a directory"):
        HeapSettings(workers_dir=path)
