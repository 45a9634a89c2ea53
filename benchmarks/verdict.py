"""How good the verdict is: leaks and clean routes of many shapes, simulated, sampled, and judged as they go on.

    python benchmarks/verdict.py [--seeds 3]

A shape says, for some requests that were served, how many objects came and how many went. What is judged is what
sampling sees of it: with an interval of N, each object is recorded with the chance 1 in N and stands for N. Sampling
starts at every object, as the automatic one does; an interval of 0 stands for one that swings from 16 to 512. At a
concurrency of 32, requests in flight blur each reading.

A clean route has the first 40 % of its requests to warm up in. A route is judged at every 20th of 2,000 readings.
"""

import argparse
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from heap_middleware.endpoints.history import History
from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.endpoints.verdict import combined, judge

READINGS = 2_000
WARM_UP = 0.4
ROUTE = Endpoint("GET", "/route")
LEAST = 0.01
SECONDS = 15.0  # between two readings: a run is eight hours

Step = Callable[[random.Random, int, int, float], tuple[float, float]]
"""(random, requests served now, requests served before, objects alive) to objects that came and went."""


@dataclass(frozen=True)
class Shape:
    name: str
    step: Step
    leaks: bool
    requests: int = 10
    """At each reading, on average."""


def leak(objects: float) -> Step:
    return lambda rng, n, before, alive: (drawn(rng, objects * n), 0)


def every(requests: int, objects: int) -> Step:
    """So many objects stay of each so-manieth request."""
    return lambda rng, n, before, alive: (((before + n) // requests - before // requests) * objects, 0)


def cache(size: int, keys: int) -> Step:
    """A cache of `size` entries, asked for keys drawn from `keys`; two objects an entry, one goes when one comes."""

    def step(rng: random.Random, n: int, before: int, alive: float) -> tuple[float, float]:
        unknown = max(0.0, 1 - alive / 2 / keys)
        new = 2 * drawn(rng, n * unknown)
        return new, max(0.0, alive + new - 2 * size)

    return step


def sessions(objects: float, life: float, swing: float = 0.0) -> Step:
    """Objects that live for `life` requests on average; their number swings by a share, over the day."""

    def step(rng: random.Random, n: int, before: int, alive: float) -> tuple[float, float]:
        wave = 1 + swing * math.sin(before / 3000)
        return drawn(rng, objects * n * wave), min(alive, drawn(rng, alive * (1 - math.exp(-n / life))))

    return step


def sawtooth(objects: float, collected: int) -> Step:
    """Garbage in cycles that goes every `collected` requests."""

    def step(rng: random.Random, n: int, before: int, alive: float) -> tuple[float, float]:
        gone = alive if before // collected != (before + n) // collected else 0
        return drawn(rng, objects * n), gone

    return step


def steps(objects: int, chance: float) -> Step:
    """Modules that are loaded when first needed: ever rarer."""
    return lambda rng, n, before, alive: (
        objects if rng.random() < chance * n * math.exp(-before / 1500) else 0,
        0,
    )


def start_up(objects: int, requests: int) -> Step:
    return lambda rng, n, before, alive: (objects * n / requests if before < requests else 0, 0)


def pool(most: int) -> Step:
    """Connections, made when more are needed than there are, at ever new peaks."""

    def step(rng: random.Random, n: int, before: int, alive: float) -> tuple[float, float]:
        return max(0.0, 40 * min(most, int(rng.expovariate(1 / 3))) - alive), 0

    return step


def refilled(size: int, grows: float = 0.0) -> Step:
    """A list that fills up and is cleared; `grows`: what is left of it each time."""

    def step(rng: random.Random, n: int, before: int, alive: float) -> tuple[float, float]:
        floor = grows * before
        return drawn(rng, n), alive - floor if alive - floor > size else 0

    return step


def burst(objects: int, at: int, length: int, life: float) -> Step:
    """For a while much more is kept, then it goes."""

    def step(rng: random.Random, n: int, before: int, alive: float) -> tuple[float, float]:
        come = drawn(rng, objects * n) if at <= before < at + length else 0
        return come, min(alive, drawn(rng, alive * (1 - math.exp(-n / life))))

    return step


def both(*parts: Step) -> Step:
    """Several at once; each sees its own objects."""

    def step(rng: random.Random, n: int, before: int, alive: float) -> tuple[float, float]:
        if before == 0:
            own[:] = [0.0] * len(parts)
        come = gone = 0.0
        for at, part in enumerate(parts):
            a, b = part(rng, n, before, own[at])
            own[at] += a - b
            come, gone = come + a, gone + b
        return come, gone

    own = [0.0] * len(parts)
    return step


def late(part: Step, at: int) -> Step:
    return lambda rng, n, before, alive: part(rng, n, before, alive) if before >= at else (0, 0)


def drawn(rng: random.Random, mean: float) -> float:
    """About Poisson, fast for any mean."""
    if mean <= 0:
        return 0
    if mean < 20:
        count, product, limit = 0, rng.random(), math.exp(-mean)
        while product > limit:
            count, product = count + 1, product * rng.random()
        return count
    return max(0, round(rng.gauss(mean, math.sqrt(mean))))


LEAKS = [
    Shape("1 an object a request", leak(1), True),
    Shape("object and dict, 2", leak(2), True),
    Shape("5", leak(5), True),
    Shape("20, parsed documents", leak(20), True),
    Shape("100", leak(100), True),
    Shape("0.5", leak(0.5), True),
    Shape("0.1", leak(0.1), True),
    Shape("0.05", leak(0.05), True),
    Shape("1 in 50 requests", every(50, 1), True, 40),
    Shape("2 in 50 requests", every(50, 2), True, 40),
    Shape("100 every 100 requests", every(100, 100), True),
    Shape("1,000 every 1,000 requests", every(1000, 1000), True),
    Shape("strings", leak(1), True, 3),
    Shape("byte buffers, 2 blocks", leak(2), True, 30),
    Shape("dynamic classes, 12 blocks", leak(12), True),
    Shape("unfinished tasks, 8 blocks", leak(8), True),
    Shape("tracebacks, 30 blocks in 1 % of requests", every(100, 30), True),
    Shape("a list cleared but not wholly", refilled(200, 0.2), True),
    Shape("half of it freed later", sessions(1, 1e9), True),
    Shape("with garbage cycles", both(leak(1), sawtooth(20, 700)), True),
    Shape("with large garbage cycles", both(leak(2), sawtooth(50, 2000)), True, 40),
    Shape("with a cache that fills", both(leak(1), cache(500, 800)), True),
    Shape("with sessions", both(leak(1), sessions(0.5, 500)), True),
    Shape("with sessions that swing", both(leak(1), sessions(1, 500, 0.5)), True),
    Shape("after a start-up", both(leak(1), start_up(20_000, 300)), True),
    Shape("that begins late", late(leak(2), 10_000), True),
    Shape("that begins late and small", late(leak(0.5), 8_000), True),
    Shape("with modules loaded", both(leak(1), steps(2000, 0.01)), True),
    Shape("with a pool", both(leak(0.5), pool(20)), True),
    Shape("after a burst", both(leak(1), burst(20, 3000, 1000, 400)), True),
    Shape("with a cleared list", both(leak(0.5), refilled(300)), True),
    Shape("with everything", both(leak(1), cache(300, 500), sessions(0.3, 300), sawtooth(10, 500)), True),
]

CLEAN = [
    Shape("nothing", leak(0), False),
    *(Shape(f"a cache of {size}", cache(size, size * 3), False) for size in (32, 128, 500, 1000, 2000)),
    *(Shape(f"a cache of {size}, all keys fit", cache(size * 2, size), False) for size in (50, 300, 1000)),
    Shape("a full cache that churns", both(cache(100, 100_000)), False),
    *(Shape(f"sessions of {life} requests", sessions(1, life), False) for life in (20, 100, 500, 1500)),
    *(Shape(f"sessions that swing by {swing}", sessions(1, 300, swing), False) for swing in (0.2, 0.5, 0.9)),
    Shape("large sessions", sessions(20, 300), False),
    Shape("rare sessions", sessions(0.02, 2000), False),
    *(Shape(f"garbage every {every_}", sawtooth(20, every_), False) for every_ in (50, 300, 700, 1500)),
    Shape("little garbage", sawtooth(1, 700), False),
    Shape("much garbage", sawtooth(200, 700), False),
    *(Shape(f"modules loaded, {size} objects", steps(size, 0.01), False) for size in (100, 2000, 20_000)),
    Shape("start-up growth", start_up(50_000, 500), False),
    Shape("slow start-up growth", start_up(5_000, 5_000), False),
    *(Shape(f"a pool of {most}", pool(most), False) for most in (5, 20)),
    Shape("a burst", burst(50, 10_000, 300, 500), False),
    Shape("a small burst", burst(5, 12_000, 1000, 500), False),
    *(Shape(f"a list cleared at {size}", refilled(size), False) for size in (50, 300, 1500)),
    Shape("cache and sessions", both(cache(300, 900), sessions(1, 200, 0.3)), False),
    Shape("cache and garbage", both(cache(300, 900), sawtooth(20, 700)), False),
    Shape("sessions and garbage", both(sessions(1, 300, 0.4), sawtooth(30, 500)), False),
    Shape("pool, cache, modules", both(pool(10), cache(200, 500), steps(500, 0.005)), False),
    Shape("everything", both(pool(10), cache(200, 500), sessions(1, 200, 0.3), sawtooth(20, 700)), False),
    Shape("few requests", sessions(1, 50), False, 1),
]


class Outcome(NamedTuple):
    """When the route was named: requests served by then, each time it was judged."""

    named: list[int]
    judged: int
    requests: int


def run(shape: Shape, seed: int, interval: int, concurrency: int) -> Outcome:
    rng = random.Random(f"{shape.name} {seed} {interval} {concurrency}")
    history = History(300)
    alive = seen = 0.0
    requests = 0
    named = []
    judged = 0
    weight = 1
    for reading in range(READINGS):
        if reading % 50 == 20:
            weight = interval or 2 ** rng.randint(4, 9)
        served = int(drawn(rng, shape.requests))
        come, gone = shape.step(rng, served, requests, alive)
        requests += served
        seen += weight * drawn(rng, come / weight) if weight > 1 else come
        share = min(1.0, gone / (alive + come)) if alive + come > 0 else 0.0
        whole = weight == 1 or share in (0.0, 1.0)
        seen -= share * seen if whole else min(seen, weight * drawn(rng, share * seen / weight))
        alive += come - gone
        blur = rng.uniform(0, 2 * concurrency) if concurrency > 1 else 0.0
        now = 1e9 + reading * SECONDS
        history.note(now, {ROUTE: EndpointTotals(requests, requests, 0, 0, seen + blur)}, weight)
        if reading % 20 == 19:
            judged += 1
            evidence = judge(history.times, history.intervals, history.series()[ROUTE], LEAST, now=now)
            if evidence is not None and combined(ROUTE, [evidence], knows_bytes=False) is not None:
                named.append(requests)
    return Outcome(named, judged, requests)


WAYS = [(interval, concurrency) for interval in (1, 16, 64, 256, 0) for concurrency in (1, 32)]


def main() -> None:
    parser = argparse.ArgumentParser(description="How good the verdict is.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("leaks", "clean"))
    arguments = parser.parse_args()
    print(f"{len(LEAKS)} leaks, {len(CLEAN)} clean; sampling and concurrency {WAYS}; {arguments.seeds} seeds each")
    if arguments.only != "clean":
        show_leaks(arguments.seeds)
    if arguments.only != "leaks":
        show_alarms(arguments.seeds)


def show_leaks(seeds: int) -> None:
    print(f"{'leak':45} requests until it is named, median (worst), per interval and concurrency")
    for shape in LEAKS:
        cells = []
        for way in WAYS:
            found = [run(shape, seed, *way) for seed in range(seeds)]
            firsts = sorted(outcome.named[0] if outcome.named else math.inf for outcome in found)
            held = all(outcome.named and outcome.named[-1] == outcome.requests for outcome in found)
            cells.append(f"{statistics.median(firsts):>6.0f} ({firsts[-1]:.0f}){'' if held else '*'}")
        print(f"{shape.name:45} {'  '.join(cells)}")


def show_alarms(seeds: int) -> None:
    alarms = days = 0.0
    for shape in CLEAN:
        for way in WAYS:
            for seed in range(seeds):
                outcome = run(shape, seed, *way)
                late_names = [at for at in outcome.named if at > WARM_UP * outcome.requests]
                days += READINGS * (1 - WARM_UP) * SECONDS / 86400
                if late_names:
                    alarms += 1
                    times = f"{len(late_names)} times from {late_names[0]}"
                    print(f"clean, but named: {shape.name}, {way}, seed {seed}, {times}")
    upper = alarms + 3 if not alarms else alarms + 2 * math.sqrt(alarms) + 2
    rate = f"{alarms / days:.4f} a route-day (below {upper / days:.4f} at 95 %)"
    print(f"false alarms: {alarms:.0f} in {days:.0f} route-days: {rate}")


if __name__ == "__main__":
    main()
