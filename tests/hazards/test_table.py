"""The table of hazards: every row names the tests that hold it, and they are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| (.+?) \| (.+?) \|$", (Path(__file__).parent / "hazards.md").read_text(), re.MULTILINE)[2:]


def names_in(path):
    """The functions of a file."""
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("hazard", "tests"), ROWS, ids=[hazard[:40] for hazard, _ in ROWS])
def test_a_row_is_held(hazard, tests):
    """Each hazard has tests, and each that is named exists."""
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
    assert named
    assert len(named) == tests.count("::")
    for path, name in named:
        assert name.startswith("test_")
        assert name in names_in(ROOT / "tests" / path), f"{path}::{name}"


def test_the_table_is_whole():
    """There are all twenty-seven hazards, and every test file of this folder is in the table."""
    text = (Path(__file__).parent / "hazards.md").read_text()
    assert len(ROWS) == 27
    files = {path.name for path in Path(__file__).parent.glob("test_*.py")} - {Path(__file__).name}
    assert {name for name in files if f"hazards/{name}::" not in text} == set()
