"""One monitor of each backend for all cases, and how many cases there are."""

import os

import pytest
from hypothesis import HealthCheck, settings

from heap_middleware import HeapMonitor, HeapSettings

SOAK = int(os.environ.get("HEAP_MIDDLEWARE_DIFFERENTIAL_CASES", "0"))
FEW, MANY = 200, 1300  # 7,000 in all: with each backend, WSGI, ASGI, and ASGI in two loops

settings.register_profile(
    "few cases", max_examples=SOAK or FEW, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("many cases", settings.get_profile("few cases"), max_examples=SOAK or MANY)


@pytest.fixture(scope="module", params=["windows", pytest.param("native", marks=pytest.mark.accelerator)])
def monitor(request):
    return HeapMonitor(HeapSettings(attribution=request.param, sampling=1))
