"""The extension, built with other flags into a temporary copy; sources and installed package stay as they are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_NEEDED = ("setup.py", "pyproject.toml", "README.md", "LICENSE")


def build(copy: Path, flags: str) -> dict[str, str]:
    """Copy the package into an empty folder and build it there; the environment in which Python imports that one."""
    shutil.copytree(ROOT / "heap_middleware", copy / "heap_middleware", ignore=shutil.ignore_patterns("*.so", "*.pyd"))
    for name in _NEEDED:
        shutil.copy(ROOT / name, copy)
    environment = {"CC": "gcc", "CFLAGS": flags, "LDFLAGS": flags, "HEAP_MIDDLEWARE_REQUIRE_NATIVE": "1"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=copy, env=os.environ | environment, check=True)
    return {"PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1", "HEAP_MIDDLEWARE_REQUIRE_NATIVE": "1"}
