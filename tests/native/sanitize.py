"""Runs the tests of native code with the extension built with gcc's AddressSanitizer and UndefinedBehaviorSanitizer.

    tox run -e sanitize

The extension is built into a temporary copy, the sources and the installed package stay as they are. Every report fails
the run. A census's child has no standard error any more: AddressSanitizer's reports are collected in files, and of
UndefinedBehaviorSanitizer's there is left that the child died, which fails its test.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
TESTS = ("tests/native", "tests/heap/test_holders.py", "tests/heap/test_census.py")
LEFT_OUT = (
    # Compares the pages of the process, and the sanitizer keeps what was freed: up to 256 MiB of it.
    "test_any_number_of_requests_takes_no_memory",
)


def library(name: str) -> str:
    """A library of gcc's, which has to be loaded before a Python that was not built with it."""
    return subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()


def build(copy: Path) -> None:
    """Copy the package there and build its extension in place."""
    shutil.copytree(ROOT / "heap_middleware", copy / "heap_middleware", ignore=shutil.ignore_patterns("*.so", "*.pyd"))
    for name in NEEDED:
        shutil.copy(ROOT / name, copy)
    environment = {"CC": "gcc", "CFLAGS": FLAGS, "LDFLAGS": FLAGS, "HEAP_MIDDLEWARE_REQUIRE_NATIVE": "1"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=copy, env=os.environ | environment, check=True)


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as directory:
        copy, reports = Path(directory, "copy"), Path(directory, "reports")
        copy.mkdir()
        reports.mkdir()
        build(copy)
        environment = {
            "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
            # What Python holds until it ends is no leak. With malloc each object is a block with watched ends.
            "ASAN_OPTIONS": f"detect_leaks=0:log_path={reports}/report",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
            "PYTHONPATH": str(copy),
            "PYTHONSAFEPATH": "1",
            "HEAP_MIDDLEWARE_REQUIRE_NATIVE": "1",
        }
        left_out = " and ".join(f"not {name}" for name in LEFT_OUT)
        command = [sys.executable, "-m", "pytest", "--capture=sys", *TESTS, "-k", left_out, *arguments]
        code = subprocess.run(command, cwd=ROOT, env=os.environ | environment).returncode
        found = sorted(reports.iterdir())
        for report in found:
            print(f"--- {report.name}\n{report.read_text(errors='replace')}")
        return code or len(found) > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
