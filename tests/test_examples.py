"""The examples that people copy: they start, serve, and stop."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytestmark = pytest.mark.one_python

EXAMPLES = Path(__file__).parent.parent / "examples"
VISITS = 200  # so many objects are among the `top_types`, which have a series of their own
BOTH = pytest.mark.parametrize("example", ["flask_app", "fastapi_app"])


@pytest.fixture
def start(serve: Callable[..., Any], tmp_path: Path) -> Callable[[str], Any]:
    """`start("flask_app")` runs a copy of an example as its README says, on a free port."""

    def run(example: str) -> Any:
        copy = shutil.copytree(EXAMPLES / example, tmp_path / example, ignore=shutil.ignore_patterns(".heap_workers"))
        # Or a scrape soon after the first has its census; and a busy machine needs more than half a second.
        every_time = {"HEAP_MIDDLEWARE_CENSUS_MIN_INTERVAL": "0", "HEAP_MIDDLEWARE_WORKERS_WAIT": "10"}
        if example == "flask_app":
            return serve("gunicorn", app="app:app", cwd=copy, env=every_time, args=["--workers", "4"])
        return serve("uvicorn", app="app:app", cwd=copy, env=every_time)

    return run


def test_flask_example_shows_its_routes(start: Callable[[str], Any]) -> None:
    """Any of the Flask example's workers lists the leaking route and route templates of all, no raw paths."""
    server = start("flask_app")
    metrics = _visit(server.url, "/leakable", "/clean", "/users/4711", "/search")
    for route in ("/leakable", "/clean", "/users/<int:user_id>", "/search"):
        assert f'heap_endpoint_requests_total{{method="GET",route="{route}"}} {VISITS}.0' in metrics
    leaked = re.findall(r'^object_count\{module="app.LeakObj",pid="\d+"\} (.*)$', metrics, re.M)
    assert len(leaked) > 1
    assert sum(map(float, leaked)) == VISITS
    assert not re.search(r'="[^"]*4711', metrics)


def test_fastapi_example_shows_its_routes(start: Callable[[str], Any]) -> None:
    """Under uvicorn, /metrics of the FastAPI example lists async, thread-pool and mounted routes as templates."""
    server = start("fastapi_app")
    metrics = _visit(server.url, "/leak/async", "/leak/thread", "/clean", "/users/4711", "/shop/items/4712")
    for route in ("/leak/async", "/leak/thread", "/clean", "/users/{user_id}", "/shop/items/{item_id}"):
        assert f'heap_endpoint_requests_total{{method="GET",route="{route}"}} {VISITS}.0' in metrics
    assert f'object_count{{module="app.AsyncLeak"}} {VISITS}.0' in metrics
    assert f'object_count{{module="app.ThreadLeak"}} {VISITS}.0' in metrics
    assert not re.search(r'="[^"]*471[12]', metrics)


@pytest.mark.once
@BOTH
def test_load_stops_by_itself(start: Callable[[str], Any], example: str) -> None:
    """load.py sends as many requests as it was asked for, and ends."""
    server = start(example)
    options = ["--url", server.url, "--requests", "60", "--concurrency", "3"]
    done = _load(example, options)
    assert done.returncode == 0, done.stderr
    assert "60 requests answered" in done.stdout
    served = re.findall(r"^heap_endpoint_requests_total\{.*\} (.*)$", httpx.get(server.url + "/metrics").text, re.M)
    assert sum(map(float, served)) == 60


@BOTH
def test_load_says_that_nobody_answers(example: str, free_port: Callable[[], int]) -> None:
    """Without a server, load.py ends with one line that names the URL."""
    url = f"http://127.0.0.1:{free_port()}"
    done = _load(example, ["--url", url, "--requests", "5"])
    assert done.returncode == 1
    assert url in done.stderr
    assert "Traceback" not in done.stderr


@BOTH
def test_prometheus_scrapes_the_example(example: str) -> None:
    """prometheus.yml scrapes the port that the README starts the example on."""
    config = yaml.safe_load((EXAMPLES / example / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["job_name"] == example
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8000"]}]
    assert "127.0.0.1:8000" in (EXAMPLES / example / "load.py").read_text()


@BOTH
def test_promtool_accepts_the_configuration(example: str) -> None:
    """Prometheus' own checker finds nothing wrong with prometheus.yml."""
    promtool = shutil.which("promtool")
    if promtool is None:
        missing = "promtool is not installed (Debian: apt-get install prometheus)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    config = EXAMPLES / example / "prometheus.yml"
    done = subprocess.run([promtool, "check", "config", config], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


@BOTH
def test_compose_starts_prometheus_and_grafana_on_the_host(example: str) -> None:
    """docker-compose.yml starts Prometheus with the file beside it, and Grafana reading from that Prometheus."""
    compose = yaml.safe_load((EXAMPLES / example / "docker-compose.yml").read_text())
    services = compose["services"]
    assert set(services) == {"prometheus", "grafana"}
    assert {service["network_mode"] for service in services.values()} == {"host"}
    assert services["prometheus"]["volumes"] == [
        "./prometheus.yml:/etc/prometheus/prometheus.yml:ro",
        "../../monitoring:/monitoring:ro",
    ]
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    (source,) = yaml.safe_load(compose["configs"]["datasource"]["content"])["datasources"]
    assert source["url"] == "http://127.0.0.1:9090"
    # The rules and the dashboard are mounted where Prometheus and Grafana look for them.
    assert "../../monitoring:/monitoring:ro" in services["grafana"]["volumes"]
    (provider,) = yaml.safe_load(compose["configs"]["dashboards"]["content"])["providers"]
    assert provider["options"]["path"] == "/monitoring/grafana"
    (rules,) = yaml.safe_load((EXAMPLES / example / "prometheus.yml").read_text())["rule_files"]
    assert (EXAMPLES / example / rules).resolve() == EXAMPLES.parent / "monitoring" / "rules.yml"
    assert (Path("/etc/prometheus") / rules).resolve() == Path("/monitoring/rules.yml")


def _visit(url: str, *paths: str) -> str:
    """Ask for each path `VISITS` times; the metrics after that."""
    with httpx.Client(base_url=url, timeout=10) as http:
        for path in paths:
            assert {http.get(path).status_code for _ in range(VISITS)} == {200}
        return http.get("/metrics").text


def _load(example: str, options: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / example / "load.py", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)
