"""Native code under gcc's sanitizers, CPython's checking allocator and developer mode, and incessant collections.

    tox run -e sanitize [-- pytest options]

AddressSanitizer and UndefinedBehaviorSanitizer watch the tests, ThreadSanitizer watches threads.py. Every report fails
the run. A census's child has no standard error any more: reports are collected in files, and of
UndefinedBehaviorSanitizer's there is left that the child died, which fails its test.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from build import ROOT, build

FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
THREAD_FLAGS = "-fsanitize=thread -fno-omit-frame-pointer -g"
TESTS = ("tests/native", "tests/heap/test_holders.py", "tests/heap/test_census.py")
THREADS = Path(__file__).parent / "threads.py"
SECONDS = "60"
LEFT_OUT = (
    # Compares the pages of the process, and a sanitizer keeps what was freed: up to 256 MiB of it.
    "test_any_number_of_requests_takes_no_memory",
    # From 3.12 on CPython itself uses what it has freed when memory runs out for a frame or a function.
    *(["test_a_request_survives_each_allocation_that_fails"] if sys.version_info >= (3, 12) else []),
)
CHECKED = {
    "the checking allocator": {"PYTHONMALLOC": "debug"},
    "developer mode": {"PYTHONDEVMODE": "1"},
    "a collection at every object": {"HEAP_MIDDLEWARE_GC_THRESHOLD": "1"},
}
"""Environments in which the extension as it is goes through its tests."""


def library(name: str) -> str:
    """A library of gcc's, which has to be loaded before a Python that was not built with it."""
    return subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()


def run(what: str, command: Sequence[object], environment: Mapping[str, str]) -> bool:
    """Whether it ended well; says what it was."""
    print(f"--- {what}", flush=True)
    code = subprocess.run([str(part) for part in command], cwd=ROOT, env=os.environ | dict(environment)).returncode
    print(f"--- {what}: {'fine' if code == 0 else f'exit code {code}'}", flush=True)
    return code == 0


def no_reports(reports: Path) -> bool:
    found = sorted(reports.iterdir())
    for report in found:
        print(f"--- {report.name}\n{report.read_text(errors='replace')}")
    return not found


def under_address_sanitizer(place: Path, tests: Sequence[str]) -> bool:
    reports = place / "reports"
    reports.mkdir()
    environment = build(place / "copy", FLAGS) | {
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        # What Python holds until it ends is no leak. With malloc each object is a block with watched ends.
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={reports}/report",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }
    fine = run(
        "address and undefined behaviour", [sys.executable, "-m", "pytest", "--capture=sys", *tests], environment
    )
    return no_reports(reports) and fine


def under_thread_sanitizer(place: Path) -> bool:
    """Python itself is not built with it: of its lock the sanitizer sees what the system's library does."""
    reports = place / "races"
    reports.mkdir()
    environment = build(place / "threads", THREAD_FLAGS) | {
        "LD_PRELOAD": library("libtsan.so"),
        "TSAN_OPTIONS": f"log_path={reports}/report",
    }
    # Where the kernel spreads addresses widely, the sanitizer does not find room for its own.
    fine = run("threads", ["setarch", "-R", sys.executable, THREADS, SECONDS], environment)
    return no_reports(reports) and fine


def main(arguments: list[str]) -> int:
    tests = [*TESTS, "-q", "-k", " and ".join(f"not {name}" for name in LEFT_OUT), *arguments]
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        fine = [under_address_sanitizer(place, tests), under_thread_sanitizer(place)]
    for what, environment in CHECKED.items():
        fine.append(run(what, [sys.executable, "-m", "pytest", *tests], environment))
    print(f"{sum(fine)} of {len(fine)} runs without a report")
    return int(not all(fine))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
