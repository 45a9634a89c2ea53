"""The rules, alerts and the dashboard that come with the package, in a real Prometheus over the real example."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.once, pytest.mark.accelerator]
MONITORING = Path(__file__).parents[2] / "monitoring"
RULES = MONITORING / "rules.yml"
DASHBOARD = MONITORING / "grafana" / "heap.json"
ALERTS = {"HeapRouteLeaking", "HeapGrowing", "HeapCensusSlow", "HeapTargetMissing"}


def rules(kind: str) -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule[kind]: rule for group in groups for rule in group["rules"] if kind in rule}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def test_the_rules_are_sound(promtool: Callable[..., str], tmp_path: Path) -> None:
    """promtool accepts the rules, and each alert fires where it should and stays silent where it should."""
    shutil.copy(RULES, tmp_path)
    shutil.copy(Path(__file__).parent / "rules_test.yml", tmp_path)
    assert f"SUCCESS: {len(rules('record')) + len(rules('alert'))} rules found" in promtool(
        "check", "rules", "rules.yml", cwd=tmp_path
    )
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml", cwd=tmp_path)


def test_every_alert_says_what_to_do() -> None:
    """Each alert has a severity, a summary, a description, and steps for who is woken by it."""
    alerts = rules("alert")
    assert set(alerts) == ALERTS
    for alert in alerts.values():
        assert alert["labels"]["severity"] in ("info", "warning", "critical")
        assert {"summary", "description", "runbook"} <= set(alert["annotations"])
        assert alert["annotations"]["runbook"].startswith("1. ")


def test_a_fleet_is_summed_up() -> None:
    """What is recorded by route or type has no label of an instance, pod or process left."""
    for name, rule in rules("record").items():
        without = "(pid)" if name.startswith("instance:") else "(instance, pod, pid)"
        aggregations = re.findall(r"(?:sum|max|count|min|avg) (without|by) (\([^)]*\))", rule["expr"])
        assert aggregations
        assert set(aggregations) == {("without", without)}, name


@pytest.fixture
def observed(
    example: Callable[..., Any],
    warm_up: Callable[[str], int],
    watch: Callable[..., Any],
    traffic: Callable[[str], Any],
) -> Iterator[Any]:
    """A Prometheus with the rules, over the example with four workers and traffic."""
    url = example(workers=4).url
    warm_up(url)
    prometheus = watch(url, rules=RULES)
    with traffic(url):
        prometheus.wait("count(route:heap_endpoint_leak_objects_per_request:max)", lambda value: value == 1, seconds=60)
        yield prometheus


def test_a_real_prometheus_makes_use_of_all_of_it(observed: Any) -> None:
    """Each recording rule, query and variable of the dashboard has data; the leaking route raises the alert, alone."""
    deadline = time.monotonic() + 30
    missing = set(rules("record"))
    while missing and time.monotonic() < deadline:
        missing = {name for name in missing if not observed.query(name)}
        time.sleep(0.5)
    assert missing == set()
    assert list(observed.by_route("route:heap_endpoint_leak_objects_per_request:max")) == ["/leakable"]
    per_request = observed.by_route("route:heap_endpoint_objects_per_request:rate5m")
    assert max(per_request, key=lambda route: per_request[route]) == "/leakable"

    groups = observed.ask("rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
    while not (alerts := observed.ask("alerts")["alerts"]) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert [(alert["labels"]["alertname"], alert["labels"]["route"]) for alert in alerts] == [
        ("HeapRouteLeaking", "/leakable")
    ]
    assert re.match(r"GET /leakable leaks [12]\.\d\d objects with every request", alerts[0]["annotations"]["summary"])

    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    assert len(queries) > 12
    for query in queries:
        assert observed.query(chosen(query)), query
    the_variables_have_values(observed)


def chosen(query: str) -> str:
    """The query as Grafana sends it, with everything chosen."""
    values = {"$__rate_interval": "30s", "$__range": "60s", "$job": "example", "$instance": ".*", "$route": ".*"}
    for name, value in values.items():
        query = query.replace(name, value)
    assert "$" not in query
    return query


def the_variables_have_values(observed: Any) -> None:
    """Job, instance and route can be chosen: what Grafana offers for each comes from series that there are."""
    variables = {variable["name"]: variable for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]}
    assert set(variables) == {"datasource", "job", "instance", "route"}
    for name in ("job", "instance", "route"):
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variables[name]["query"]).groups()
        labels = {labels[label] for labels, _ in observed.query(f"group by ({label}) ({chosen(series)})")}
        assert labels, name
    assert labels == {"/leakable", "/clean", "/users/<int:user_id>", "/search"}


def test_every_panel_asks_the_chosen_source() -> None:
    """No panel is bound to a data source that others do not have, and none of its queries stand for another."""
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)
        assert all(letters)


def test_both_are_printed(tmp_path: Path) -> None:
    """`heap-middleware rules` and `heap-middleware dashboard` print the files, from the installed package, too."""
    for command, file in (("rules", RULES), ("dashboard", DASHBOARD)):
        done = subprocess.run(
            [sys.executable, "-m", "heap_middleware", command], capture_output=True, timeout=60, cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == file.read_bytes()
