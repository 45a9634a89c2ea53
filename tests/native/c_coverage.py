"""Which lines of C the tests never reach, as gcov counts them.

    tox run -e c-coverage [-- pytest options]

Each is in `unreached.txt`, with the reason, or the run fails: `file: source of the line -- reason`. A line that is
there and was reached is no failure: some are reached in one run of several.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from build import ROOT, build

TESTS = ("tests/native", "tests/heap", "tests/hazards")
KNOWN = Path(__file__).parent / "unreached.txt"


def unreached(place: Path) -> list[tuple[str, int, str]]:
    """File, number and source of each line that no test has reached."""
    counts: Counter[tuple[str, int]] = Counter()
    for notes in place.rglob("*.gcda"):
        said = subprocess.run(
            ["gcov", "--json-format", "--stdout", notes], cwd=place, capture_output=True, text=True, check=True
        ).stdout
        for document in said.splitlines():
            for file in json.loads(document)["files"]:
                for line in file["lines"]:
                    counts[file["file"], line["line_number"]] += line["count"]
    own = {name: number for name, number in counts.items() if "heap_middleware/native/" in name[0]}
    found = []
    for (name, number), count in sorted(own.items()):
        if count == 0:
            source = (place / name).read_text().splitlines()[number - 1].strip()
            found.append((Path(name).name, number, source))
    print(f"{len(own)} lines, {len(found)} unreached")
    return found


def known() -> dict[tuple[str, str], str]:
    """The reason for each file and source of a line."""
    found = {}
    for line in KNOWN.read_text().splitlines():
        if line and not line.startswith("#"):
            where, _, reason = line.rpartition(" -- ")
            name, _, source = where.partition(": ")
            found[name, source] = reason
    return found


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory, "copy")
        environment = build(place, "--coverage -O0 -g")
        command = [sys.executable, "-m", "pytest", "-q", *TESTS, *arguments]
        code = subprocess.run(command, cwd=ROOT, env=os.environ | environment).returncode
        lines = unreached(place)
    reasons = known()
    new = [line for line in lines if (line[0], line[2]) not in reasons]
    for name, number, source in new:
        print(f"{name}:{number}: {source}")
    print(f"{len(new)} of them neither tested nor justified in {KNOWN.name}")
    return int(code != 0 or bool(new))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
