import ast
from pathlib import Path

import heap_middleware

ROOT = Path(heap_middleware.__file__).parent
FLOORS = [
    {"_native"},
    {"errors", "settings", "accelerator"},
    {"heap", "endpoints"},
    {"workers"},
    {"exposition"},
    {"monitor"},
    {"wsgi", "asgi", "cli", "testing"},
    {"__main__"},
]
WEB = {"flask", "django", "fastapi", "quart", "litestar"}


def level(part):
    return next(n for n, names in enumerate(FLOORS) if part in names)


def names_of(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [node.module]
    return []


def imports(top_only=False):
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part != "__init__":
            tree = ast.parse(path.read_text())
            for node in tree.body if top_only else ast.walk(tree):
                for name in names_of(node):
                    yield part, name


def test_every_floor_imports_only_those_below():
    """The core can be used without the adapters, and the adapters without each other."""
    pairs = {(a, b.split(".")[1]) for a, b in imports() if b.startswith("heap_middleware.")}
    wrong = {(a, b) for a, b in pairs if a != b and level(a) <= level(b) and (a, b) != ("settings", "errors")}
    assert len(pairs) > 5
    assert wrong == set()


def test_the_core_knows_no_web_and_no_prometheus():
    """heap/ and endpoints/ can be used without a web framework and without prometheus_client."""
    found = {b.split(".")[0] for a, b in imports() if a in ("heap", "endpoints")}
    assert not found & (WEB | {"prometheus_client", "starlette", "werkzeug"})


def test_no_framework_is_imported_with_the_package():
    """Importing the package imports no framework that I do not use."""
    assert not {b.split(".")[0] for _, b in imports(top_only=True)} & WEB
