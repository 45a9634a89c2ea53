"""The extension only; everything else is in pyproject.toml.

Without a compiler the package installs all the same and serves in pure Python. HEAP_MIDDLEWARE_REQUIRE_NATIVE=1 makes
a failing build an error, and warnings too.
"""

import os
import sys
from glob import glob

from setuptools import Extension, setup

REQUIRED = os.environ.get("HEAP_MIDDLEWARE_REQUIRE_NATIVE") == "1"
UNIX = sys.platform != "win32"
FLAGS = ["-std=c11", "-O3", "-fvisibility=hidden"] if UNIX else []
if UNIX and REQUIRED:
    FLAGS += ["-Wall", "-Wextra", "-Werror"]

setup(
    ext_modules=[
        Extension(
            "heap_middleware._native",
            sorted(glob("heap_middleware/native/*.c")),
            depends=sorted(glob("heap_middleware/native/*.h")),
            optional=not REQUIRED,
            extra_compile_args=FLAGS,
            libraries=["m"] if UNIX else [],
        )
    ]
)
