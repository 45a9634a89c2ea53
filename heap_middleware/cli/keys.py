"""Single keys from the terminal, while it shows something else."""

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Wait", "keys"]

Wait = Callable[[float], str]
"""Waits so many seconds for a key; the key, or an empty text if none was pressed."""
_STEP = 0.05


@contextmanager
def keys() -> Iterator[Wait]:
    """How to wait for a key. Where standard input is no terminal, none is ever pressed."""
    if not sys.stdin.isatty():
        yield _only_wait
    elif os.name == "nt":  # pragma: no cover - Windows
        yield _wait_on_windows
    else:
        with _cbreak(sys.stdin.fileno()):
            yield _wait


def _only_wait(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _wait(seconds: float) -> str:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    if not ready:
        return ""
    return os.read(sys.stdin.fileno(), 64).decode("utf-8", "replace")[:1] or "q"  # nothing: the terminal is gone


def _wait_on_windows(seconds: float) -> str:  # pragma: no cover - no test of ours runs there
    import msvcrt  # there is one on Windows only

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if msvcrt.kbhit():  # type: ignore[attr-defined]
            return str(msvcrt.getwch())  # type: ignore[attr-defined]
        time.sleep(_STEP)
    return ""


@contextmanager
def _cbreak(descriptor: int) -> Iterator[None]:
    import termios  # there is none on Windows
    import tty

    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
