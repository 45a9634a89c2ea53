"""What one process knows, as data that another can read. Checked on the way in, never trusted.

A file is a line with a checksum, a line of JSON, and behind it the counters as numbers and the gauges as lines of the
exposition format. Rendering is most of a scrape (13 us a sample here, and 32 workers with 500 routes and 200 types have
45,000 gauges), so each worker renders its own, beside the others; whoever answers joins them, and adds up the counters.

A file that was cut or spoiled does not match its checksum. Every value in it is checked, and whatever is not as it
should be makes the whole file a `DamagedSnapshot`. The format has a version, and another version is not guessed at.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from heap_middleware.endpoints.ledger import Endpoint
from heap_middleware.endpoints.verdict import Evidence
from heap_middleware.workers.counters import Counters, DamagedSnapshot, checked_numbers, checked_texts
from heap_middleware.workers.processes import Process

__all__ = ["FORMAT", "Snapshot", "decode", "encode"]

FORMAT: Final = 5
_LARGEST: Final = 1e50
"""Of evidence, whose squares are summed."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a process knows at one moment."""

    service: Process
    process: Process
    taken: float
    """Seconds on the monotonic clock, which all processes of a machine share."""
    counters: Counters
    gauges: Mapping[str, bytes] = field(default_factory=dict)
    """Lines of the exposition format, by family."""
    folded: tuple[str, ...] = ()
    """In an archive: the tags of those that `counters` contain."""
    evidence: Mapping[Endpoint, Evidence] = field(default_factory=dict)
    """What the process found out about the endpoints that leak."""
    details: bytes = b""
    """What only the report wants to know, as JSON: it is not parsed for a scrape."""


def encode(snapshot: Snapshot) -> bytes:
    """Write it down."""
    header = {
        "format": FORMAT,
        "service": snapshot.service,
        "process": snapshot.process,
        "taken": snapshot.taken,
        "folded": snapshot.folded,
        **snapshot.counters.as_data(),
        "evidence": [[*endpoint, *evidence] for endpoint, evidence in snapshot.evidence.items()],
        "details": len(snapshot.details),
        "gauges": {name: len(text) for name, text in snapshot.gauges.items()},
    }
    written = json.dumps(header, separators=(",", ":")).encode()
    numbers = snapshot.counters.as_bytes()
    body = b"".join((written, b"\n", numbers, snapshot.details, *snapshot.gauges.values()))
    return b"%08x %d\n" % (zlib.crc32(body), len(body)) + body


def decode(data: bytes) -> Snapshot:
    """Read it again. Raises `DamagedSnapshot`."""
    whole = memoryview(data)  # of which slices are no copies
    start = data.find(b"\n") + 1
    if data[:start] != b"%08x %d\n" % (zlib.crc32(whole[start:]), len(data) - start):
        raise DamagedSnapshot(f"{len(data)} bytes that do not match their checksum")
    end = data.find(b"\n", start) + 1 or len(data)
    try:
        found = json.loads(data[start:end])
        if found["format"] != FORMAT:
            raise DamagedSnapshot(f"it has the format {str(found['format'])[:20]}, known is {FORMAT}")
        counters, size = Counters.read(found, whole[end:])
        details, gauges = _split(whole[end + size :], found["details"])
        return Snapshot(
            service=_process(found["service"]),
            process=_process(found["process"]),
            taken=checked_numbers([found["taken"]])[0],
            counters=counters,
            gauges=_gauges(found["gauges"], gauges),
            folded=tuple(checked_texts(found["folded"])),
            evidence=dict(map(_evidence, found["evidence"])),
            details=bytes(details),
        )
    except DamagedSnapshot:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedSnapshot(f"{type(error).__name__}: {str(error)[:100]}") from error


def _split(data: memoryview, length: Any) -> tuple[memoryview, memoryview]:
    if type(length) is not int or not 0 <= length <= len(data):
        raise DamagedSnapshot(f"a length of {length!r:.20}")
    return data[:length], data[length:]


def _evidence(found: Any) -> tuple[Endpoint, Evidence]:
    method, route, *numbers = found
    checked_texts([method, route])
    if max(map(abs, numbers)) > _LARGEST:
        raise DamagedSnapshot("evidence that cannot be")
    return Endpoint(method, route), Evidence(*checked_numbers(numbers, below_zero=True))


def _gauges(lengths: Mapping[str, Any], text: memoryview) -> dict[str, bytes]:
    found = {}
    for name, length in lengths.items():
        block, text = _split(text, length)
        found[name] = lines = bytes(block)
        # A line that is another metric's, or none, would make the whole page unreadable to Prometheus.
        start = f"{name}{{".encode()
        if not (name.isidentifier() and lines.startswith(start) and lines.endswith(b"\n")):
            raise DamagedSnapshot(f"lines that are not those of {name[:60]!r}")
        if lines.count(b"\n" + start) + 1 != lines.count(b"\n"):
            raise DamagedSnapshot(f"lines of something else among those of {name[:60]!r}")
    if len(text):
        raise DamagedSnapshot(f"{len(text)} bytes behind the gauges that were announced")
    return found


def _process(found: Any) -> Process:
    pid, started, home = found
    checked_texts([started, home])
    if type(pid) is not int or not 0 < pid < 1 << 32:
        raise DamagedSnapshot("a process that is none")
    return Process(pid, started, home)
