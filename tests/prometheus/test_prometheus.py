"""The service under traffic, a real Prometheus, and the queries people are told to ask it."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.once
LEAKED = 'object_count{module=~".*LeakObj"}'
GROWING = "topk(5, deriv(heap_endpoint_retained_objects[15m]))"
PER_REQUEST = (
    "sum by (route) (rate(heap_endpoint_objects_gained_total[5m]) - rate(heap_endpoint_objects_lost_total[5m]))"
    " / sum by (route) (rate(heap_endpoint_measured_requests_total[5m]))"
)
ROUTES = {"/leakable", "/clean", "/users/<int:user_id>", "/search"}
ARTICLE = {"heap_size_bytes_total", "heap_size_bytes", "object_count"}


def test_prometheus_finds_the_leaking_route(
    example: Callable[[], Any],
    warm_up: Callable[[str], int],
    watch: Callable[[str], Any],
    traffic: Callable[[str], Any],
) -> None:
    """Prometheus shows the leaked objects rise with the requests, and both queries name the route that leaks them."""
    url = example().url
    already = warm_up(url)
    prometheus = watch(url)
    with traffic(url) as sent:
        began = time.monotonic()
        first = prometheus.wait(LEAKED, lambda value: value is not None)
        prometheus.wait(LEAKED, lambda value: value is not None and value > first)
        while time.monotonic() - began < 10:  # enough scrapes for rates
            time.sleep(0.2)
    leaked = already + sent["/leakable"]
    assert prometheus.wait(LEAKED, lambda value: value == leaked) == leaked

    growing = prometheus.by_route(GROWING)
    assert next(iter(growing)) == "/leakable"
    assert growing["/leakable"] > 5 * max(value for route, value in growing.items() if route != "/leakable")

    per_request = prometheus.by_route(PER_REQUEST)
    assert set(per_request) == ROUTES
    assert per_request.pop("/leakable") > 0.9
    assert all(abs(value) < 0.3 for value in per_request.values()), per_request


def test_prometheus_finds_the_leaking_route_of_four_workers(
    example: Callable[..., Any],
    warm_up: Callable[[str], int],
    watch: Callable[[str], Any],
    traffic: Callable[[str], Any],
) -> None:
    """Each scrape reaches one worker of four, and Prometheus sees what all four leak, in the same queries."""
    url = example(workers=4).url
    already = warm_up(url)
    prometheus = watch(url)
    with traffic(url) as sent:
        began = time.monotonic()
        while time.monotonic() - began < 12:
            time.sleep(0.2)
    leaked = already + sent["/leakable"]
    assert prometheus.wait(f"sum({LEAKED})", lambda value: value == leaked) == leaked
    assert prometheus.scalar(f"count({LEAKED})") == 4

    growing = [labels["route"] for labels, _ in prometheus.query(GROWING)]
    assert growing[:4] == ["/leakable"] * 4
    per_request = prometheus.by_route(PER_REQUEST)
    assert set(per_request) == ROUTES
    assert per_request.pop("/leakable") > 0.9
    assert all(abs(value) < 0.3 for value in per_request.values()), per_request
    requests = prometheus.by_route("sum by (route) (heap_endpoint_requests_total)")
    assert requests["/leakable"] == leaked
    assert prometheus.scalar("sum(increase(heap_middleware_faults_total[1m]))") == 0


def test_restart_takes_the_leak_away(
    example: Callable[[], Any], watch: Callable[[str], Any], traffic: Callable[[str], Any]
) -> None:
    """After the service restarts, Prometheus sees it up and none of the leaked objects."""
    server = example()
    prometheus = watch(server.url)
    with traffic(server.url):
        assert prometheus.wait(LEAKED, lambda value: value is not None and value > 10)
    server.stop()
    prometheus.wait("up", lambda value: value == 0)
    example()
    prometheus.wait("up", lambda value: value == 1)
    assert prometheus.scalar("heap_census_objects")
    assert prometheus.scalar("heap_size_bytes_total") > 1e6
    assert prometheus.wait(LEAKED, lambda value: value is None) is None


def test_promtool_complains_of_the_old_names_only(
    example: Callable[[], Any], check_metrics: Callable[[str], list[str]]
) -> None:
    """promtool's only complaints are about names of the original article, which are kept on purpose."""
    url = example().url
    at_first = check_metrics(httpx.get(f"{url}/metrics").text)
    for path in ("/leakable", "/users/1", "/no/such/page"):
        httpx.get(url + path)
    later = check_metrics(httpx.get(f"{url}/metrics").text)
    for complaints in (at_first, later):
        assert {line.split()[0] for line in complaints} <= ARTICLE, complaints
        assert any(line.startswith("object_count ") for line in complaints)
