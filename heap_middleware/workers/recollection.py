"""What a worker last read in the directory, in case somebody removes it: counters must not fall then.

The living will say again what they counted, but each in its own time, and the dead will not. So whoever has read it
writes down what is missing. What is there, written by the worker itself or by another that remembers, stays; an archive
that was begun anew meanwhile gets what the one before had, unless it has some of it.
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

    def knows(self, tag: str | None) -> bool:
        """Whether a worker was read before."""
        return any(said.process.tag == tag for said in self.workers)

    def note_archive(self, archive: Snapshot | None) -> None:
        """Before it is added to."""
        if archive is not None and (self.archive is None or archive.folded != self.archive.folded):
            self.archive = decode(encode(archive))

    def note_workers(self, workers: Iterable[Snapshot]) -> None:
        """Their counts, and not what fills the most of their files."""
        self.workers = [replace(said, gauges={}, evidence={}, details=b"") for said in workers]

    def write_missing(self, path: Path, archive: Snapshot | None, file: Callable[[str, str], Path], names: int) -> int:
        """Write what is not there; returns how many files that are.

        `path` is that of the archive, `archive` what it says by now, if there is one; it keeps so many `names`. `file`
        gives the path of a kind and tag. For who holds the directory's lock. Raises OSError.
        """
        folded = () if archive is None else archive.folded
        count = 0
        if self.archive is not None and set(folded).isdisjoint(self.archive.folded):
            whole = decode(encode(self.archive))
            if archive is not None:
                whole.counters.add(archive.counters, alive=False)
            whole = replace(whole, folded=(*whole.folded, *folded)[-names:])
            write_whole(path, encode(whole), path.with_suffix(".fold"))
            count, folded = 1, whole.folded
        for said in self.workers:
            tag = said.process.tag
            if tag not in folded:
                count += _write_missing(file("worker", tag), file("again", tag), said)
        return count


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
