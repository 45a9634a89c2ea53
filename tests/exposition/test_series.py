"""How many series a target has: what docs/deploying.md computes for a fleet."""

import re
from collections import Counter

import pytest

from heap_middleware import HeapMonitor, HeapSettings
from heap_middleware.exposition.requests import PageRequest

ROUTES = 5
TYPES = [type(f"Leak{number}", (), {}) for number in range(30)]


def series(tmp_path, **settings):
    """Series by metric of a worker that is scraped for the second time."""
    monitor = HeapMonitor(
        HeapSettings(attribution=True, sampling=1, workers_dir=str(tmp_path), census_min_interval=0, **settings)
    )
    kept = []
    for number in range(ROUTES):
        with monitor.request("GET", f"/{number}"):
            kept += [kind() for kind in TYPES]
    monitor.respond(PageRequest("GET", "/metrics"))
    page = monitor.respond(PageRequest("GET", "/metrics")).body.decode()
    return Counter(re.split("[ {]", line)[0] for line in page.splitlines() if line[0] != "#")


@pytest.mark.accelerator
@pytest.mark.parametrize(("top_types", "types_per_route"), [(200, 10), (30, 0), (30, 3)])
def test_there_are_as_many_as_the_docs_say(own_sampling, tmp_path, top_types, types_per_route):
    """Series by type, by route, by both, and of the middleware itself are what the formulas in the docs say."""
    found = series(tmp_path, top_types=top_types, types_per_route=types_per_route)
    assert found.pop("object_count") + found.pop("heap_size_bytes") == 2 * (top_types + 1)
    by_type = found.pop("heap_endpoint_retained_objects_by_type", 0)
    # Less `(buffer)` where objects have none: from Python 3.13 on, what has no dict of its own.
    most = ROUTES * (types_per_route + 2) if types_per_route else 0
    assert most - ROUTES <= by_type <= most
    of_routes = sum(count for name, count in found.items() if name.startswith("heap_endpoint_"))
    assert of_routes == 6 * ROUTES + 2 * ROUTES
    assert sum(found.values()) - of_routes == 10 + 8
