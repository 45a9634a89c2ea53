"""Write monitoring/grafana/heap.json, the Grafana dashboard: `python tools/make_dashboard.py [--check]`.

Made of typed builders, so that a misspelt option is an error here and no empty panel there. Every query is run against
a real Prometheus by tests/prometheus.

What is asked of a whole service, however many pods it has, is asked of the recording rules of rules.yml: there is one
series for each route, whatever the number of instances. Instances are chosen for what is below.
"""

import argparse
import sys
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TARGET = Path(__file__).parent.parent / "monitoring" / "grafana" / "heap.json"
UID = "heap-middleware"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
OF = 'job=~"$job", instance=~"$instance"'
ROUTE = f'{OF}, route=~"$route"'
FLEET = 'job=~"$job", route=~"$route"'
RECENT = "$__rate_interval"
HEIGHT, HALF, THIRD, WHOLE = 9, 12, 8, 24


def build() -> Dashboard:
    """The dashboard: from the leaking route to its types, to the heap as a whole, to what measuring costs."""
    dashboard = (
        Dashboard("Heap by route")
        .uid(UID)
        .description("Which route leaks, how much, of which type. Made for heap_middleware.")
        .tags(["heap", "python"])
        .editable()
        .refresh("30s")
        .time("now-3h", "now")
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for variable in variables():
        dashboard.with_variable(variable)
    rows = {
        "Which route leaks, of all instances together": [judged(), routes(), retained(), kept_per_request()],
        "Of which type, in the instances chosen": [types_of_route(), grown_types()],
        "The heap": [heap(), largest_types()],
        "What measuring costs": [own_time(), census(), sampling(), faults()],
    }
    for title, panels in rows.items():
        dashboard.with_row(Row(title))
        for panel in panels:
            dashboard.with_panel(panel.datasource(SOURCE))
    return dashboard


def variables() -> list[QueryVariable]:
    """Job, instance and route; each is asked for within the one before it."""
    queries = {
        "job": "label_values(heap_middleware_info, job)",
        "instance": 'label_values(heap_middleware_info{job=~"$job"}, instance)',
        "route": 'label_values(route:heap_endpoint_requests:rate5m{job=~"$job"}, route)',
    }
    return [
        QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
        for name, query in queries.items()
    ]


def judged() -> Stat:
    """How many routes leak."""
    steps = [Threshold(value=None, color="green"), Threshold(value=1, color="red")]
    return (
        Stat()
        .title("Routes judged to leak")
        .description("By the services' own verdict: growth with the requests that outlasts the filling of a cache.")
        .height(HEIGHT)
        .span(THIRD // 2)
        .thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(
            instant(f"count(max by (method, route) ({recorded('leak_objects_per_request:max')})) or vector(0)")
        )
    )


def routes() -> Table:
    """A row for each route, the leaking ones first."""
    per_request = recorded("objects_per_request:rate5m")
    columns = {
        "Leaks per request": f"max by (method, route) ({recorded('leak_objects_per_request:max')})",
        "Kept per request": f"max by (method, route) (avg_over_time({per_request}[$__range]))",
        "Retained": f"sum by (method, route) ({recorded('retained_objects:sum')})",
        "Bytes": f"sum by (method, route) ({recorded('retained_bytes:sum')})",
        "Requests per second": f"sum by (method, route) ({recorded('requests:rate5m')})",
    }
    letters = dict(zip("ABCDE", columns, strict=True))
    table = (
        Table()
        .title("Routes")
        .description(
            "Kept per request: memory blocks that a request left alive; the mean of the five-minute figures within the "
            "time shown, and of several jobs the largest. Nothing here: Prometheus has not loaded rules.yml."
        )
        .height(HEIGHT)
        .span(WHOLE - THIRD // 2)
        .decimals(2)
        .with_transformation(DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "renameByName": {
                        "method": "Method",
                        "route": "Route",
                        **{f"Value #{letter}": title for letter, title in letters.items()},
                    },
                },
            )
        )
        .with_transformation(
            DataTransformerConfig(id_val="sortBy", options={"sort": [{"field": "Leaks per request", "desc": True}]})
        )
        .override_by_name("Bytes", [DynamicConfigValue(id_val="unit", value="bytes")])
        .override_by_name("Retained", [DynamicConfigValue(id_val="decimals", value=0)])
        .override_by_name(
            "Leaks per request",
            [DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}), red_from_zero()],
        )
        .override_by_name("Route", [only_this_route()])
    )
    for letter, title in letters.items():
        table.with_target(instant(columns[title]).format(PromQueryFormat.TABLE).ref_id(letter))
    return table


def red_from_zero() -> DynamicConfigValue:
    """Whatever is above zero is red."""
    return DynamicConfigValue(
        id_val="thresholds",
        value={"mode": "absolute", "steps": [{"color": "text", "value": None}, {"color": "red", "value": 0}]},
    )


def only_this_route() -> DynamicConfigValue:
    """A click on a route shows its types below."""
    kept = "${job:queryparam}&${instance:queryparam}&${datasource:queryparam}&${__url_time_range}"
    link = {"title": "Only this route", "url": f"/d/{UID}?var-route=${{__value.raw}}&{kept}"}
    return DynamicConfigValue(id_val="links", value=[link])


def retained() -> TimeSeries:
    """What grows, over time."""
    return lines(
        "Retained objects",
        f"topk(10, sum by (method, route) ({recorded('retained_objects:sum')}))",
        "{{method}} {{route}}",
        about="Memory blocks attributed to the route and alive. A leak's line turns down at restarts only.",
    )


def kept_per_request() -> TimeSeries:
    """The rate of it."""
    return lines(
        "Objects kept per request",
        f"topk(10, max by (method, route) ({recorded('objects_per_request:rate5m')}))",
        "{{method}} {{route}}",
        about="Memory blocks that a request left alive, on average. A clean route is at zero once its caches are full.",
    )


def types_of_route() -> TimeSeries:
    """Of which type what is retained is."""
    return lines(
        "Retained objects by type, of the routes chosen above",
        f"topk(10, sum by (module) (heap_endpoint_retained_objects_by_type{{{ROUTE}}}))",
        "{{module}}",
        about="Empty where types_per_route is 0, or in pure Python: the report page of an instance shows them then.",
    )


def grown_types() -> Table:
    """The types that grew within the time shown."""
    return (
        Table()
        .title("Types that grew most within the time shown")
        .height(HEIGHT)
        .span(HALF)
        .with_target(
            instant(f"topk(15, sum by (module) (delta(object_count{{{OF}}}[$__range])))")
            .format(PromQueryFormat.TABLE)
            .ref_id("A")
        )
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": {"Time": True}, "renameByName": {"module": "Type", "Value": "Objects more"}},
            )
        )
        .override_by_name("Objects more", [DynamicConfigValue(id_val="decimals", value=0)])
    )


def heap() -> TimeSeries:
    """How much there is."""
    return lines(
        "Bytes of all objects", f"sum by (instance) (heap_size_bytes_total{{{OF}}})", "{{instance}}", unit="bytes"
    )


def largest_types() -> TimeSeries:
    """Of what."""
    return lines("Bytes by type", f"topk(10, sum by (module) (heap_size_bytes{{{OF}}}))", "{{module}}", unit="bytes")


def own_time() -> TimeSeries:
    """What it takes from the service."""
    return lines(
        "Own time, as a share of one core",
        f"sum by (part) (rate(heap_middleware_overhead_seconds_total{{{OF}}}[{RECENT}]))",
        "{{part}}",
        unit="percentunit",
        span=THIRD,
    )


def census() -> TimeSeries:
    """How long the service stands still for a census, and how long one takes."""
    return lines(
        "Longest census",
        f"max by (instance) (heap_census_pause_seconds{{{OF}}})",
        "{{instance}} stands still",
        unit="s",
        span=THIRD,
    ).with_target(
        Dataquery()
        .ref_id("B")
        .expr(f"max by (instance) (heap_census_duration_seconds{{{OF}}})")
        .legend_format("{{instance}} in all")
    )


def sampling() -> TimeSeries:
    """How coarse the figures are."""
    return lines(
        "One allocation in so many is recorded",
        f"max by (instance) (heap_tracker_sampling_interval{{{OF}}})",
        "{{instance}}",
        span=THIRD,
    )


def faults() -> Table:
    """What went wrong in the middleware itself."""
    return (
        Table()
        .title("Faults of the middleware within the time shown (its log says more)")
        .height(HEIGHT)
        .span(WHOLE)
        .with_target(
            instant(f"sum by (job, part) (increase(heap_middleware_faults_total{{{OF}}}[$__range]))")
            .format(PromQueryFormat.TABLE)
            .ref_id("A")
        )
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "renameByName": {"Value": "Faults", "part": "Part", "job": "Job"},
                },
            )
        )
    )


def recorded(rule: str) -> str:
    """What a rule has recorded of the chosen routes."""
    return f"route:heap_endpoint_{rule}{{{FLEET}}}"


def instant(expression: str) -> Dataquery:
    """The value now."""
    return Dataquery().expr(expression).instant().ref_id("A")


def lines(
    title: str, expression: str, legend: str, *, about: str = "", unit: str = "short", span: int = HALF
) -> TimeSeries:
    """Values over time."""
    panel = TimeSeries().title(title).height(HEIGHT).span(span).unit(unit).axis_soft_min(0).fill_opacity(5)
    if about:
        panel.description(about)
    return panel.with_target(Dataquery().expr(expression).legend_format(legend).ref_id("A"))


def main() -> int:
    """Write it, or say whether what is there is what would be written."""
    parser = argparse.ArgumentParser(description="write the Grafana dashboard")
    parser.add_argument("--check", action="store_true", help="only say whether the file is up to date")
    made = JSONEncoder(sort_keys=True, indent=2).encode(build().build()) + "\n"
    if not parser.parse_args().check:
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        TARGET.write_text(made, "utf-8")
        return 0
    if TARGET.read_text("utf-8") == made:
        return 0
    print(f"{TARGET} is not what this script makes: run it without --check", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
