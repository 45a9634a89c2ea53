"""The extension, and the folder monitoring/ as part of the package; everything else is in pyproject.toml.

Without a compiler the package installs all the same and serves in pure Python. HEAP_MIDDLEWARE_REQUIRE_NATIVE=1 makes
a failing build an error, and warnings too. HEAP_MIDDLEWARE_PURE=1 builds none, into a wheel for every platform.

Where the extension is built:
- Linux, glibc and musl: here it is tested.
- macOS: Clang knows GCC's builtins that the sources use, and there are fork, mmap and poll; what only Linux has
  (clone, prctl, close_range) is between `#ifdef __linux__`. Nobody has run it yet but the release workflow.
- Windows: not. The census forks, the records are mapped memory, the hooks are written for GCC's builtins, and MSVC has
  none of the three. Pure Python serves there, from the wheel for every platform.
- Free-threaded CPython: module.c refuses to load, and pure Python serves.
"""

import os
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

REQUIRED = os.environ.get("HEAP_MIDDLEWARE_REQUIRE_NATIVE") == "1"
PURE = os.environ.get("HEAP_MIDDLEWARE_PURE") == "1" or sys.platform == "win32"
FLAGS = ["-std=c11", "-O3", "-fvisibility=hidden"]
if sys.platform == "linux":
    # Hooks run a million times a second: they call the interpreter without the detour over a table of jumps.
    FLAGS.append("-fno-plt")
if REQUIRED:
    FLAGS += ["-Wall", "-Wextra", "-Werror"]
if REQUIRED and PURE:
    raise SystemExit("HEAP_MIDDLEWARE_REQUIRE_NATIVE=1, but on Windows and with HEAP_MIDDLEWARE_PURE=1 none is built")

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
    ext_modules=[]
    if PURE
    else [
        Extension(
            "heap_middleware._native",
            sorted(glob("heap_middleware/native/*.c")),
            depends=sorted(glob("heap_middleware/native/*.h")),
            optional=not REQUIRED,
            extra_compile_args=FLAGS,
            libraries=["m"],
        )
    ],
)
