"""The C extension, where it was built and runs.

`native` is `heap_middleware._native`, or None, and then `missing` says why. With HEAP_MIDDLEWARE_REQUIRE_NATIVE=1 in
the environment, as in CI, a missing extension is an ImportError.
"""

import logging
import os
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = ["missing", "native", "say_it_is_missing"]

_log = logging.getLogger("heap_middleware")

if TYPE_CHECKING:
    from heap_middleware import _native as native

    missing: str | None
else:
    native: ModuleType | None = None
    missing = None
    try:
        native = import_module("heap_middleware._native")  # a `from` import would blame a circular one
    except ImportError as error:
        if os.environ.get("HEAP_MIDDLEWARE_REQUIRE_NATIVE") == "1":
            raise
        missing = str(error)


@cache  # once a process
def say_it_is_missing() -> None:
    """Tell the log that pure Python serves, and why."""
    _log.warning("heap_middleware runs in pure Python: %s", missing)
