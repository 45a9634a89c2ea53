"""README and docs: every block of code in them is run, or stands below with the reason why not."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from heap_middleware import HeapSettings
from heap_middleware.cli import _parser
from heap_middleware.exposition.families import described

pytestmark = pytest.mark.once
ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*/README.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)
NOT_RUN = {
    "docker compose up": "needs Docker; tests/test_examples.py holds the file it reads",
    "kubectl port-forward": "needs a cluster",
    "python -m pytest": "this is pytest; the files are checked here",
    "python find.py": "tests/report/test_worked_example.py runs it",
    "python load.py": "tests/test_examples.py runs it",
    "python -m pip install": "tox run -e dist installs it in an empty environment; the extras are checked here",
    "tox run-parallel": "all of the tests",
    "tox run": "this is tox; the names of the environments are checked here",
    "gunicorn": "tests/test_examples.py and tests/workers start it; its options are checked here",
    "uvicorn": "tests/test_examples.py and tests/workers start it; its options are checked here",
}
"""Commands in shell blocks that are not run here, by how they start, and why."""
NO_CODE = {"text": "output, or a line of another project", "": "a drawing in text"}
LEAKS = {"docs/worked-example.md": "dateparser.conf.Settings × 1 a request"}
"""Pages whose test is meant to fail, and what it says."""
ASKS = ROOT / "tests" / "asks_application.py"


class Block(NamedTuple):
    """A block of code, and where it is."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Any]:
    return [pytest.param(block, id=str(block)) for block in every_block() if block.language in languages]


def every_block() -> Iterator[Block]:
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for found in BLOCK.finditer(text):
            indent = found["indent"]
            code = "".join(line.removeprefix(indent) for line in found["text"].splitlines(keepends=True))
            line = text.count("\n", 0, found.start()) + 1
            yield Block(path.relative_to(ROOT).as_posix(), line, found["language"], code)


def run(command: list[Any], cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a reader's program where nothing of ours is set."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HEAP_MIDDLEWARE_", "COVERAGE_"))}
    environment = {**own, "PYTHONDONTWRITEBYTECODE": "1", "HEAP_MIDDLEWARE_SAMPLING": "1", **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(block: Block, tmp_path: Path) -> None:
    """What I copy runs as it stands; an application answers a request and /metrics, a test passes."""
    if "DJANGO_SETTINGS_MODULE" in block.text:
        run([sys.executable, "-m", "django", "startproject", "mysite", "."], tmp_path).check_returncode()
    if "\ndef test_" in block.text:
        (tmp_path / "test_copied.py").write_text(block.text, encoding="utf-8")
        done = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_copied.py"], tmp_path, CI="")
        says = LEAKS.get(block.page)
        assert (done.returncode == 0) == (says is None), done.stdout + done.stderr
        assert says is None or says in done.stdout, done.stdout
        return
    (tmp_path / "copied.py").write_text(block.text, encoding="utf-8")
    done = run([sys.executable, "-W", "error::UserWarning", ASKS, "copied"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    is_application = re.search(r"^(app|application)\b.*=", block.text, re.M) is not None
    assert ("answered" in done.stdout) == is_application, done.stdout


LINES = re.compile(r"^\| (?P<framework>[\w ,()]+) \| `(?P<line>app[^`]*HeapMetricsMiddleware[^`]*)` \|$", re.M)
BEFORE = {
    "Flask": "from flask import Flask\napp = Flask(__name__)\napp.route('/')(lambda: 'hello')\n",
    "Django": "import os\nos.environ['DJANGO_SETTINGS_MODULE'] = 'mysite.settings'\n"
    "from django.core.wsgi import get_wsgi_application\n",
    "FastAPI": "from fastapi import FastAPI\napp = FastAPI()\napp.get('/')(lambda: 'hello')\n",
    "Starlette": "from starlette.applications import Starlette\napp = Starlette()\n",
    "Quart": "from quart import Quart\napp = Quart(__name__)\n",
    "Litestar": "from litestar import Litestar\napp = Litestar([])\n",
    "any WSGI application": "def application(environ, start_response):\n"
    "    start_response('200 OK', [])\n"
    "    return [b'hello']\n",
    "any ASGI application": "async def app(scope, receive, send):\n"
    "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
    "    await send({'type': 'http.response.body', 'body': b'hello'})\n",
}


@pytest.mark.parametrize("framework", BEFORE)
def test_the_one_line_of_each_framework(framework: str, tmp_path: Path) -> None:
    """README's line for my framework, put into an application that has nothing else, answers /metrics."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = {name: found["line"] for found in LINES.finditer(readme) for name in found["framework"].split(", ")}
    assert set(lines) == set(BEFORE)
    kind = "wsgi" if framework in ("Flask", "Django", "any WSGI application") else "asgi"
    if framework == "Django":
        run([sys.executable, "-m", "django", "startproject", "mysite", "."], tmp_path).check_returncode()
    code = f"{BEFORE[framework]}from heap_middleware.{kind} import HeapMetricsMiddleware\n{lines[framework]}\n"
    (tmp_path / "copied.py").write_text(code, encoding="utf-8")
    done = run([sys.executable, ASKS, "copied"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "answered" in done.stdout


@pytest.mark.parametrize("block", blocks("sh"))
def test_commands_are_right(block: Block, tmp_path: Path) -> None:
    """Each command of ours that I copy runs; of others' programs, the options and names are theirs."""
    directory = (ROOT / block.page).parent if block.page.startswith("examples/") else ROOT
    for words in commands(block.text):
        if words[0] == "cd":
            directory = directory / words[1]
            assert directory.is_dir(), words
        elif words[:1] == ["heap-middleware"]:
            asked(words[1:], tmp_path)
        else:
            start = next((start for start in NOT_RUN if words[: len(start.split())] == start.split()), None)
            assert start is not None, f"{words} is neither run nor said not to be"
            CHECKS.get(start, lambda words, directory: None)(words, directory)


def commands(text: str) -> list[list[str]]:
    """The commands of a block, as words, without variables before and redirections behind."""
    found = []
    for part in (part for line in text.splitlines() for part in line.split("&&")):
        words = shlex.split(part, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words:
            found.append(words[: words.index(">")] if ">" in words else words)
    return found


def asked(arguments: list[str], cwd: Path) -> None:
    """Run what ends by itself; of `top`, which wants a service, read the arguments."""
    if arguments[0] == "top":
        assert isinstance(_parser().parse_args(arguments), argparse.Namespace)
        return
    done = run([sys.executable, "-m", "heap_middleware", *arguments], cwd)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 1000


def tox_knows(words: list[str], _: Path) -> None:
    known = set(re.findall(r"^\[testenv:([\w-]+)\]", (ROOT / "tox.ini").read_text(), re.M)) | {
        "py311",
        "py312",
        "py313",
    }
    for name in words[words.index("-e") + 1].split(",") if "-e" in words else ():
        assert name in known, name


def extras_are_ours(words: list[str], directory: Path) -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        known = set(tomllib.load(file)["project"]["optional-dependencies"])
    for word in words[4:]:
        if word.startswith((".", "heap")):
            assert set(re.findall(r"\w+", word.partition("[")[2])) <= known, word
        elif word.endswith(".txt"):
            assert (directory / word).is_file(), word


def files_exist(words: list[str], directory: Path) -> None:
    for word in words:
        assert not word.endswith(".py") or (directory / word).is_file(), word


def options_exist(words: list[str], _: Path) -> None:
    helped = run([sys.executable, "-m", words[0], "--help"], ROOT).stdout
    for option in (word for word in words if word.startswith("--")):
        assert option in helped, option


CHECKS = {
    "tox run": tox_knows,
    "python -m pytest": files_exist,
    "python -m pip install": extras_are_ours,
    "gunicorn": options_exist,
    "uvicorn": options_exist,
}


def queries(text: str) -> list[str]:
    """One a line; a line that is indented goes on with the one before."""
    return re.sub(r"\n[ \t]+", " ", text).strip().splitlines()


@pytest.mark.parametrize("block", blocks("promql"))
def test_queries_are_right(block: Block, tmp_path: Path) -> None:
    """Prometheus understands each query, and asks it of metrics that there are."""
    known = {family.name + ("_total" if family.type == "counter" else "") for family in described(workers=True)}
    rules = []
    for number, query in enumerate(queries(block.text)):
        named = set(re.findall(r"\b(?:heap_\w+|object_count)\b", query))
        assert named, query
        assert named <= known, named - known
        rules.append({"record": f"query:{number}", "expr": query})
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "docs", "rules": rules}]}))
    promtool("check", "rules", "rules.yml", cwd=tmp_path)


def promtool(*arguments: str, cwd: Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        missing = "promtool is not installed (Debian: apt-get install prometheus)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    done = run([program, *arguments], cwd)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", blocks("yaml", "json"))
def test_configuration_is_right(block: Block, tmp_path: Path) -> None:
    """Prometheus accepts its configuration; variables in a deployment are settings, its volumes are there."""
    told = json.loads(block.text) if block.language == "json" else yaml.safe_load(block.text)
    if "scrape_configs" in told:
        (tmp_path / "prometheus.yml").write_text(block.text)
        promtool("check", "config", "prometheus.yml", cwd=tmp_path)
    elif told.get("kind") == "Deployment":
        template = told["spec"]["template"]
        assert template["metadata"]["labels"] == told["spec"]["selector"]["matchLabels"]
        (container,) = template["spec"]["containers"]
        names = {variable["name"].removeprefix("HEAP_MIDDLEWARE_").lower() for variable in container["env"]}
        assert names <= {spec.name for spec in fields(HeapSettings)}, names
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}
    elif told.get("kind") == "ServiceMonitor":
        (endpoint,) = told["spec"]["endpoints"]
        assert endpoint["honorLabels"] is True
        assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    else:
        pytest.fail(f"nobody checks {block}")


def test_every_block_is_checked() -> None:
    """No block has a language that no test here knows, and no reason stands for a command that is gone."""
    known = {"python", "sh", "promql", "yaml", "json", *NO_CODE}
    assert {block.language for block in every_block()} <= known
    used = [words for block in every_block() if block.language == "sh" for words in commands(block.text)]
    for start in NOT_RUN:
        assert any(words[: len(start.split())] == start.split() for words in used), f"no page has {start} any more"


def test_the_reference_is_what_the_code_says() -> None:
    """Every setting and metric is in the docs as it is in the code."""
    done = run([sys.executable, ROOT / "tools" / "make_reference.py", "--check"], ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


LINK = re.compile(r"\[[^\]]{2,}\]\((?!https?://|#)([^)#\s]+)")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    """Links and pictures of a page are of files that there are."""
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
