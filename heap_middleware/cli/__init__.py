"""The command line: `heap-middleware top URL`, `heap-middleware rules`, `heap-middleware dashboard`.

Exit codes: 0 for done, 2 for what cannot be done, said in one line on standard error, 130 for Ctrl-C.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final

from heap_middleware.cli.comparison import SORTS
from heap_middleware.cli.shipped import DASHBOARD, RULES, shipped
from heap_middleware.errors import CommandError
from heap_middleware.exposition.families import package_version

__all__ = ["main"]

_NEEDED: Final = ("httpx", "rich")
_TOKEN_VARIABLE: Final = "HEAP_MIDDLEWARE_METRICS_ACCESS"  # noqa: S105 - a name, the same as the service's own
_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without dots and crosses shows question marks
    try:
        if options.command == "top":
            _top(options)
        else:
            sys.stdout.write(shipped(RULES if options.command == "rules" else DASHBOARD))
        sys.stdout.flush()
    except CommandError as error:
        print(f"heap-middleware: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"heap-middleware: cannot write: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries once more at its end
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _top(options: argparse.Namespace) -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise CommandError(f"top needs {' and '.join(missing)}: pip install 'heap_middleware[cli]'")
    # What only this command needs: the others run without it.
    from heap_middleware.cli.page import Page
    from heap_middleware.cli.top import once, watch

    token = options.token or os.environ.get(_TOKEN_VARIABLE) or None
    with Page(options.url, token=token, timeout=options.timeout) as page:
        if options.once:
            once(page, as_json=options.json, sort=options.sort, limit=options.limit)
        else:
            watch(page, as_json=options.json, sort=options.sort, interval=options.interval)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="heap-middleware", description="Which route leaks, from a service with heap_middleware around it."
    )
    parser.add_argument("--version", action="version", version=package_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    top = commands.add_parser(
        "top",
        help="routes by leak and types by growth, live",
        description="Routes by leak and types by growth, read from a service's metrics page again and again.",
    )
    top.add_argument("url", help="the metrics page, http://127.0.0.1:8000/metrics say; without a path, /metrics")
    top.add_argument("--once", action="store_true", help="print what is known now, and end")
    top.add_argument("--json", action="store_true", help="print JSON, one line each time")
    top.add_argument("--sort", choices=tuple(SORTS), default="leak", help="(%(default)s)")
    top.add_argument("--limit", type=_positive_integer, default=20, help="rows with --once (%(default)s)")
    top.add_argument("--interval", type=_seconds, default=5.0, help="seconds between two readings (%(default)s)")
    top.add_argument("--timeout", type=_seconds, default=10.0, help="seconds to wait for an answer (%(default)s)")
    top.add_argument("--token", help=f"if the page wants one; better in {_TOKEN_VARIABLE}, where ps does not show it")
    commands.add_parser("rules", help="print recording rules and alerts for Prometheus")
    commands.add_parser("dashboard", help="print the Grafana dashboard")
    return parser


def _positive_integer(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows of 1 or more")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 86400")
    return seconds
