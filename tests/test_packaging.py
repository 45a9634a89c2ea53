"""What is said of the package in more than one place, said the same everywhere."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from heap_middleware.exposition.families import package_version

ROOT = Path(__file__).parent.parent


def project() -> Any:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def test_the_version_is_in_one_place() -> None:
    """The version that is installed, and shown on /metrics and by --version, is that of pyproject.toml alone."""
    stands = project()["project"]["version"]
    assert version("heap_middleware") == package_version() == stands
    sources = [*(ROOT / "heap_middleware").rglob("*.py"), ROOT / "setup.py", ROOT / "mkdocs.yml"]
    assert not [path for path in sources if stands in path.read_text(encoding="utf-8")]


def test_the_changelog_has_the_version() -> None:
    """What is new in the version that I get is in the changelog, at its top."""
    first = re.search(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert first is not None
    assert first[1] == re.sub(r"\.dev\d+$", "", project()["project"]["version"])


def test_the_lowest_versions_are_those_that_are_tested() -> None:
    """The oldest versions that may be installed with the package are those of tox's environment `lowest`."""
    told = project()["project"]
    needed = [*told["dependencies"], *(one for extra in told["optional-dependencies"].values() for one in extra)]
    lowest = {line for line in (ROOT / "tests" / "lowest.txt").read_text().splitlines() if not line.startswith("#")}

    def padded(requirement: str) -> str:
        name, _, number = requirement.partition(">=")
        return f"{name}=={number}" + ".0" * (2 - number.count("."))

    assert {padded(requirement) for requirement in needed} == lowest


def test_every_python_that_is_supported_is_tested_and_built() -> None:
    """The Pythons of the classifiers are those of tox, of the workflow and of the wheels."""
    told = project()
    versions = re.findall(r"Python :: (3\.\d+)", " ".join(told["project"]["classifiers"]))
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    environments = {row["env"] for row in workflow["jobs"]["tox"]["strategy"]["matrix"]["include"]}
    tox = (ROOT / "tox.ini").read_text()
    for found in versions:
        short = found.replace(".", "")
        assert f"py{short}" in environments
        assert f"py{short}" in tox
        assert f"cp{short}-*" in told["tool"]["cibuildwheel"]["build"]
    assert told["project"]["requires-python"] == f">={versions[0]}"


def test_the_workflows_run_environments_that_there_are() -> None:
    """Each environment that a workflow runs is one of tox.ini."""
    tox = (ROOT / "tox.ini").read_text()
    known = {*re.findall(r"^\[testenv:([\w-]+)\]", tox, re.M), "py311", "py312", "py313"}
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            matrix = job.get("strategy", {}).get("matrix", {})
            named = [*(row.get("env") for row in matrix.get("include", [])), *matrix.get("env", [])]
            named += re.findall(r"tox run -e ([\w-]+)", " ".join(step.get("run", "") for step in job["steps"]))
            assert {name for name in named if name} <= known, path.name
