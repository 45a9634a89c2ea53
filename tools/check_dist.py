"""Build sdist and wheels, and hold them to what is promised of them: `python tools/check_dist.py [directory]`.

- the wheel has the type marker, the page's files, rules and dashboard, and nothing of the tests or the C sources;
- the sdist has what is needed to build, test and document it;
- `twine check --strict` and `check-wheel-contents` find nothing;
- the wheel works in an empty environment; the sdist, where no compiler is, installs and works in pure Python;
- the wheel for every platform is one.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parent.parent
STATIC = ROOT / "heap_middleware" / "exposition" / "report" / "static"
IN_WHEEL = {
    "py.typed",
    "_native.pyi",
    "monitoring/rules.yml",
    "monitoring/grafana/heap.json",
    *(f"exposition/report/static/{path.name}" for path in STATIC.iterdir()),
}
IN_SDIST = {
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "setup.py",
    "tox.ini",
    "mkdocs.yml",
    "heap_middleware/native/module.c",
    "heap_middleware/native/home.h",
    "monitoring/rules.yml",
    "tests/conftest.py",
    "docs/index.md",
    "examples/flask_app/app.py",
    "tools/check_wheel.py",
}


def main(directory: Path) -> None:
    """All of it; the files stay in `directory`."""
    run("build", "--outdir", str(directory), str(ROOT))
    (sdist,), (wheel,) = directory.glob("*.tar.gz"), directory.glob("*.whl")
    run("build", "--wheel", "--outdir", str(directory / "any"), str(ROOT), HEAP_MIDDLEWARE_PURE="1", **NOT_REQUIRED)
    (anywhere,) = (directory / "any").glob("*.whl")
    assert anywhere.name.endswith("-py3-none-any.whl"), anywhere
    check_sdist(sdist)
    for path in (wheel, anywhere):
        check_wheel(path, native=path is wheel)
    run("twine", "check", "--strict", str(sdist), str(wheel), str(anywhere))
    run("check_wheel_contents", str(wheel), str(anywhere))
    works(wheel, "--native")
    works(anywhere, "--pure")
    works(sdist, "--pure", CC="false", CXX="false", **NOT_REQUIRED)


NOT_REQUIRED = {"HEAP_MIDDLEWARE_REQUIRE_NATIVE": "0"}


def check_wheel(path: Path, *, native: bool) -> None:
    """What is in it, and what is not."""
    with ZipFile(path) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    outside = {name for name in names if not name.startswith("heap_middleware/")}
    assert not outside, outside
    inside = {name.removeprefix("heap_middleware/") for name in names}
    assert inside >= IN_WHEEL, IN_WHEEL - inside
    foreign = {name for name in inside if name.endswith((".c", ".h", ".pyc")) or "test_" in name or "conftest" in name}
    assert not foreign, foreign
    extensions = {name for name in inside if name.startswith("_native.") and name.endswith((".so", ".pyd"))}
    assert len(extensions) == native, extensions


def check_sdist(path: Path) -> None:
    """What is in it, and nothing that was built."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= IN_SDIST, IN_SDIST - names
    built = {name for name in names if name.endswith((".so", ".pyd", ".pyc")) or ".heap_workers/" in name}
    assert not built, built


def works(path: Path, backend: str, **variables: str) -> None:
    """Install it where nothing else is, and ask it."""
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        python = Path(directory, "Scripts" if os.name == "nt" else "bin", "python")
        install = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", f"{path}[wsgi,asgi]"]
        subprocess.run(install, check=True, cwd=directory, env={**os.environ, **variables})
        asked = [python, ROOT / "tools" / "check_wheel.py", backend]
        subprocess.run(asked, check=True, cwd=directory, env={**os.environ, **NOT_REQUIRED})


def run(module: str, *arguments: str, **variables: str) -> None:
    """Run a tool of this environment."""
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, env={**os.environ, **variables})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).absolute())
    else:
        with tempfile.TemporaryDirectory() as built:
            main(Path(built))
