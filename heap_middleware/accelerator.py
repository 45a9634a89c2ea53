"""The C extension, where it was built and runs.

`native` is `heap_middleware._native`, or None, and then `missing` says why. With HEAP_MIDDLEWARE_REQUIRE_NATIVE=1 in
the environment, as in CI, a missing extension is an ImportError.
"""

import os
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = ["missing", "native"]

if TYPE_CHECKING:
    from heap_middleware import _native as native

    missing: str | None
else:
    native: ModuleType | None = None
    missing = None
    try:
        from heap_middleware import _native as native
    except ImportError as error:
        if os.environ.get("HEAP_MIDDLEWARE_REQUIRE_NATIVE") == "1":
            raise
        missing = str(error)
