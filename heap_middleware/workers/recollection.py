"""What a worker last read in the directory, in case somebody removes it: counters must not fall then.

The living will say again what they counted, but each in its own time, and the dead will not. So whoever has read it
writes down what is missing. What is there, written by the worker itself or by another that remembers, stays.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from heap_middleware.workers.files import remove, write_whole
from heap_middleware.workers.snapshot import Snapshot, decode, encode

__all__ = ["Recollection"]


@dataclass(slots=True)
class Recollection:
    """The counts that were read: those of the dead, and of each living worker."""

    of: object = None
    """Which directory that was: it changes when all is removed and made anew."""
    archive: Snapshot | None = None
    workers: list[Snapshot] = field(default_factory=list)

    def note_archive(self, archive: Snapshot | None) -> None:
        """Before it is added to."""
        if archive is None or self.archive is None or archive.folded != self.archive.folded:
            self.archive = None if archive is None else decode(encode(archive))

    def note_workers(self, workers: Iterable[Snapshot]) -> None:
        """Their counts, and not what fills the most of their files."""
        self.workers = [replace(said, gauges={}, evidence={}, details=b"") for said in workers]

    def write_missing(self, archive: Path, file: Callable[[str, str], Path], folded: Iterable[str]) -> int:
        """Write the files that are not there; returns how many. `folded` are tags that an archive has meanwhile.

        `file` gives the path of that kind and tag. Raises OSError.
        """
        missing = [
            (file("worker", said.process.tag), file("again", said.process.tag), said)
            for said in self.workers
            if said.process.tag not in folded
        ]
        if self.archive is not None:
            missing.append((archive, archive.with_suffix(".fold"), self.archive))
        return sum(_write_missing(*one) for one in missing)


def _write_missing(path: Path, scratch: Path, said: Snapshot) -> bool:
    if os.path.lexists(path):
        return False
    write_whole(scratch, encode(said), scratch.with_suffix(".half"))
    try:
        os.link(scratch, path)  # which does not replace what the worker itself has written this very moment
    except FileExistsError:
        return False
    finally:
        remove(scratch)
    return True
