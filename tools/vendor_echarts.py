"""Fetch Apache ECharts as released on npm into the package: python tools/vendor_echarts.py [version]

The file, its licence and notice are kept as they are, and their checksums noted for the test that holds them.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

STATIC = Path(__file__).parent.parent / "heap_middleware" / "exposition" / "report" / "static"
FILES = {
    "package/dist/echarts.min.js": "echarts.min.js",
    "package/LICENSE": "echarts.LICENSE",
    "package/NOTICE": "echarts.NOTICE",
}
VERSION = "6.1.0"


def main(version: str) -> None:
    """Write the files and `echarts.json`, which says what they are."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["npm", "pack", f"echarts@{version}"], cwd=directory, check=True, capture_output=True)
        with tarfile.open(Path(directory, f"echarts-{version}.tgz")) as archive:
            for member, name in FILES.items():
                content = archive.extractfile(member)
                assert content is not None, member
                with (STATIC / name).open("wb") as target:
                    shutil.copyfileobj(content, target)
    sums = {name: hashlib.sha256((STATIC / name).read_bytes()).hexdigest() for name in FILES.values()}
    (STATIC / "echarts.json").write_text(json.dumps({"version": version, "sha256": sums}, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else VERSION)
