"""The extension, and the folder monitoring/ as part of the package; everything else is in pyproject.toml.

Without a compiler the package installs all the same and serves in pure Python. HEAP_MIDDLEWARE_REQUIRE_NATIVE=1 makes
a failing build an error, and warnings too.
"""

import os
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

REQUIRED = os.environ.get("HEAP_MIDDLEWARE_REQUIRE_NATIVE") == "1"
UNIX = sys.platform != "win32"
# Hooks run a million times a second: they call the interpreter without the detour over a table of jumps.
FLAGS = ["-std=c11", "-O3", "-fvisibility=hidden", "-fno-plt"] if UNIX else []
if UNIX and REQUIRED:
    FLAGS += ["-Wall", "-Wextra", "-Werror"]

SHIPPED = [path.as_posix() for path in sorted(Path("monitoring").rglob("*")) if path.suffix in {".yml", ".json"}]


class BuildWithMonitoring(build_py):
    """Copies the rules and the dashboard into the package, where `heap-middleware rules` finds them."""

    def run(self):
        super().run()
        if not self.editable_mode:  # there they are beside it
            for path in SHIPPED:
                target = os.path.join(self.build_lib, "heap_middleware", path)
                self.mkpath(os.path.dirname(target))
                self.copy_file(path, target, preserve_mode=False)

    def get_source_files(self):
        return [*super().get_source_files(), *SHIPPED]


setup(
    cmdclass={"build_py": BuildWithMonitoring},
    ext_modules=[
        Extension(
            "heap_middleware._native",
            sorted(glob("heap_middleware/native/*.c")),
            depends=sorted(glob("heap_middleware/native/*.h")),
            optional=not REQUIRED,
            extra_compile_args=FLAGS,
            libraries=["m"] if UNIX else [],
        )
    ],
)
