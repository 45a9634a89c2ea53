"""How good the verdict is: leaks and clean routes of many shapes, simulated, sampled, and judged as they go on.

    python benchmarks/verdict.py [--seeds 3] [--only leaks|clean|ages]

A shape is one or several parts, each of which says, for some requests that were served, how many objects came and how
many went. What is judged is what sampling sees of them: with an interval of N, each object is recorded with the chance
1 in N and stands for N; what a part gives back is of its own records. Sampling starts at every object, as the automatic
one does; an interval of 0 stands for one that swings from 16 to 512. At a concurrency of 32, requests in flight blur
each reading. What a simulation cannot tell apart, strings from buffers, classes or tasks, `verdict_traffic.py` serves.

A clean route has the first 40 % of its requests to warm up in. A route is judged at every 20th of 2,000 readings, or
of as many more as its shape takes to warm up: three days for what lives for half an hour while traffic comes and goes.
`ages` is a service that was clean for hours or days, then leaks, then is mended.

Exits with 1 if a clean route was named, or one of `ages` not named or not withdrawn; or if a leak was not named for
good where every object or one in 16 is recorded. Where sampling is coarser, 20,000 requests are not enough for the
small ones, which is printed: inf.
"""

import argparse
import itertools
import math
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from heap_middleware.endpoints.history import History
from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.endpoints.verdict import Evidence, judge

READINGS = 2_000
WARM_UP = 0.4
ROUTE = Endpoint("GET", "/route")
LEAST = 0.01
SECONDS = 15.0  # between two readings: a run is eight hours

Step = Callable[[random.Random, int, int, float], tuple[float, float]]
"""(random, requests served now, requests served before, objects alive) to objects that came and went."""


def steadily(reading: int) -> float:
    return 1.0


def by_day(reading: int) -> float:
    """Traffic of which an hour has five times as much as another."""
    return 1 + 0.7 * math.sin(reading / 150)


def by_real_days(reading: int) -> float:
    """Nights with a tenth of a day's traffic."""
    return 1 + 0.82 * math.sin(2 * math.pi * reading * SECONDS / 86400)


def in_rushes(reading: int) -> float:
    """A mix that changes: for a while most of the service's requests go elsewhere."""
    return 3.0 if reading // 120 % 4 == 0 else 0.3


@dataclass(frozen=True)
class Shape:
    name: str
    parts: Step | tuple[Step, ...]
    leaks: bool
    requests: float = 10
    """At each reading, on average."""
    traffic: Callable[[int], float] = steadily
    """Times that, at each reading."""
    readings: int = READINGS


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


def expiring(objects: float, readings: int) -> Step:
    """Objects that live for so many readings, that is, for a time, however many requests there are meanwhile."""
    own: deque[float] = deque()

    def step(rng: random.Random, n: int, before: int, alive: float) -> tuple[float, float]:
        if before == 0:
            own.clear()
        own.append(drawn(rng, objects * n))
        return own[-1], own.popleft() if len(own) > readings else 0

    return step


def asked_for(keys: int, size: int | None = None) -> Step:
    """An entry for each key, of which few are asked for often (Zipf); of more than `size` the one goes that was not
    asked for longest."""
    total = list(itertools.accumulate(1 / rank for rank in range(1, keys + 1)))
    known: OrderedDict[int, None] = OrderedDict()

    def step(rng: random.Random, n: int, before: int, alive: float) -> tuple[float, float]:
        if before == 0:
            known.clear()
        came = gone = 0
        for key in rng.choices(range(keys), cum_weights=total, k=n):
            if key in known:
                known.move_to_end(key)
                continue
            known[key] = None
            came += 1
            if size is not None and len(known) > size:
                known.popitem(last=False)
                gone += 1
        return came, gone

    return step


def both(*parts: Step) -> tuple[Step, ...]:
    """Several at once; each sees its own objects."""
    return parts


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
    Shape("1, few requests", leak(1), True, 3),
    Shape("2, many requests", leak(2), True, 30),
    Shape("1, by day and night", leak(1), True, traffic=by_day),
    Shape("1, in rushes", leak(1), True, traffic=in_rushes),
    Shape("tracebacks, 30 blocks in 1 % of requests", every(100, 30), True),
    Shape("a list cleared but not wholly", refilled(200, 0.2), True),
    Shape("half of it freed later", both(leak(1), sessions(1, 400)), True),
    Shape("with objects that expire, by day and night", both(leak(1), expiring(1, 40)), True, traffic=by_day),
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
    Shape("objects that expire", expiring(2, 60), False),
    Shape("objects that expire, by day and night", expiring(2, 60), False, traffic=by_day),
    Shape("objects that expire, in rushes", expiring(2, 60), False, traffic=in_rushes),
    Shape("a cache, in rushes", cache(500, 1500), False, traffic=in_rushes),
    Shape("sessions and garbage, in rushes", both(sessions(1, 300), sawtooth(20, 700)), False, traffic=in_rushes),
    # These take long to warm up, and are watched as much longer.
    Shape("what lives for half an hour, over days", expiring(2, 120), False, 10, by_real_days, readings=17_280),
    Shape("sessions of 5,000 requests", sessions(1, 5000), False, readings=8_000),
    Shape("a cache of 5,000, few keys often", asked_for(100_000, 5000), False, readings=8_000),
    Shape("a dict of 20,000, few keys often", asked_for(20_000), False, 125, readings=8_000),
]


class Outcome(NamedTuple):
    """When the route was named: requests served by then, each time it was judged."""

    named: list[int]
    judged: int
    requests: int
    for_good: float
    """Requests from which on it was named each time."""


class Route:
    """A shape that is served, and the history of what sampling sees of it."""

    def __init__(self, shape: Shape, seed: int, interval: int, concurrency: int) -> None:
        self.shape = shape
        self.parts = shape.parts if isinstance(shape.parts, tuple) else (shape.parts,)
        self.rng = random.Random(f"{shape.name} {seed} {interval} {concurrency}")
        self.interval, self.concurrency = interval, concurrency
        self.weight = 1
        self.alive = [0.0] * len(self.parts)
        self.seen = [0.0] * len(self.parts)
        self.requests = self.reading = 0
        self.history: History[Endpoint] = History(300)

    @property
    def now(self) -> float:
        return 1e9 + self.reading * SECONDS

    def serve(self) -> None:
        """What is between two readings, and the second of them."""
        rng = self.rng
        if self.reading % 50 == 20:
            self.weight = self.interval or 2 ** rng.randint(4, 9)
        served = int(drawn(rng, self.shape.requests * self.shape.traffic(self.reading)))
        for at, step in enumerate(self.parts):
            self._change(at, *step(rng, served, self.requests, self.alive[at]))
        self.requests += served
        self.reading += 1
        blur = rng.uniform(0, 2 * self.concurrency) if self.concurrency > 1 else 0.0
        row = EndpointTotals(self.requests, self.requests, 0, 0, sum(self.seen) + blur)
        self.history.note(self.now, {ROUTE: row}, self.weight)

    def _change(self, at: int, come: float, gone: float) -> None:
        rng, weight = self.rng, self.weight
        seen = self.seen[at] + (weight * drawn(rng, come / weight) if weight > 1 else come)
        share = min(1.0, gone / (self.alive[at] + come)) if self.alive[at] + come > 0 else 0.0
        whole = weight == 1 or share in (0.0, 1.0)
        self.seen[at] = seen - (share * seen if whole else min(seen, weight * drawn(rng, share * seen / weight)))
        self.alive[at] += come - gone

    def judge(self) -> Evidence | None:
        history = self.history
        return judge(history.times, history.intervals, history.series()[ROUTE], LEAST, now=self.now)


def run(shape: Shape, seed: int, interval: int, concurrency: int) -> Outcome:
    route = Route(shape, seed, interval, concurrency)
    named = []
    judged, for_good = 0, math.inf
    for reading in range(shape.readings):
        route.serve()
        if reading % 20 == 19:
            judged += 1
            if route.judge() is not None:
                named.append(route.requests)
                for_good = min(for_good, route.requests)
            else:
                for_good = math.inf
    return Outcome(named, judged, route.requests, for_good)


class Aged(NamedTuple):
    """Of a service that was clean, then leaked, then was mended."""

    hours: float
    """That it was clean."""
    named: float
    """Requests of the leak until it was named."""
    off: tuple[float, ...]
    """How far `since` was off, as a share of the leak's age, at a fourth, a half, three fourths and all of it."""
    withdrawn: float
    """Requests after it was mended until it was named no more."""


def aged(hours: float, seed: int, interval: int, leaking: int = READINGS) -> Aged:
    """Clean for some hours, leaking for 2,000 readings, and mended."""
    phase = [0.0]
    leaky: Step = lambda rng, n, before, alive: (drawn(rng, phase[0] * n), 0)  # noqa: E731
    route = Route(Shape("aged", (leaky, cache(500, 800), sessions(0.5, 300)), True), seed, interval, 32)
    for _ in range(round(hours * 3600 / SECONDS)):
        route.serve()
    phase[0] = 1.0
    began, requests, named, off = route.now, route.requests, math.inf, []
    for reading in range(leaking):
        route.serve()
        found = route.judge() if reading % 10 == 9 else None
        if found is not None:
            named = min(named, route.requests - requests)
            if (reading + 1) % (leaking // 4) == 0:
                off.append(abs(found.since - began) / (route.now - began))
    phase[0] = 0.0
    requests, withdrawn = route.requests, math.inf
    for reading in range(4 * leaking):
        route.serve()
        if reading % 10 == 9:
            named_still = route.judge() is not None
            withdrawn = math.inf if named_still else min(withdrawn, route.requests - requests)
    return Aged(hours, named, tuple(off), withdrawn)


WAYS = [(interval, concurrency) for interval in (1, 16, 64, 256, 0) for concurrency in (1, 32)]
HOURS = (1.0, 8.0, 96.0)


def main() -> None:
    parser = argparse.ArgumentParser(description="How good the verdict is.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("leaks", "clean", "ages"))
    arguments = parser.parse_args()
    print(f"{len(LEAKS)} leaks, {len(CLEAN)} clean; sampling and concurrency {WAYS}; {arguments.seeds} seeds each")
    failed = 0
    for what, show in (("leaks", show_leaks), ("clean", show_alarms), ("ages", show_ages)):
        if arguments.only in (None, what):
            failed += show(arguments.seeds)
    sys.exit(1 if failed else 0)


def show_leaks(seeds: int) -> int:
    print(f"{'leak':42} requests until it was named, and for good, worst of all seeds, per interval and concurrency")
    failed = 0
    for shape in LEAKS:
        cells = []
        for way in WAYS:
            found = [run(shape, seed, *way) for seed in range(seeds)]
            first = max(outcome.named[0] if outcome.named else math.inf for outcome in found)
            for_good = max(outcome.for_good for outcome in found)
            # With coarse sampling the small ones are not to be told from chance in so few requests.
            failed += 0 < way[0] <= 16 and for_good == math.inf
            cells.append(f"{first:>6.0f} {for_good:<6.0f}")
        print(f"{shape.name:42} {' '.join(cells)}", flush=True)
    return failed


def show_alarms(seeds: int) -> int:
    alarms = days = early = 0.0
    for shape in CLEAN:
        for way in WAYS:
            for seed in range(seeds):
                outcome = run(shape, seed, *way)
                late_names = [at for at in outcome.named if at > WARM_UP * outcome.requests]
                days += shape.readings * (1 - WARM_UP) * SECONDS / 86400
                early += bool(outcome.named) and not late_names
                if late_names:
                    alarms += 1
                    times = f"{len(late_names)} times from {late_names[0]}"
                    print(f"clean, but named: {shape.name}, {way}, seed {seed}, {times}", flush=True)
    upper = alarms + 3 if not alarms else alarms + 2 * math.sqrt(alarms) + 2
    rate = f"{alarms / days:.4f} a route-day (below {upper / days:.4f} at 95 %)"
    print(f"false alarms after warm-up: {alarms:.0f} in {days:.0f} route-days: {rate}")
    print(f"named while it warmed up, and withdrawn: {early:.0f} of {len(CLEAN) * len(WAYS) * seeds}")
    return int(alarms)


def show_ages(seeds: int) -> int:
    failed = 0
    for hours in HOURS:
        for interval in (1, 64):
            found = [aged(hours, seed, interval) for seed in range(seeds)]
            named, withdrawn = (max(one[at] for one in found) for at in (1, 3))
            off = max(max(one.off, default=math.inf) for one in found)
            failed += math.inf in (named, withdrawn, off)
            print(
                f"clean for {hours:.0f} h, one in {interval}: named after {named:.0f} requests; since when is off by "
                f"{off:.0%} of its age at most; after 20,000 it is mended: withdrawn after {withdrawn:.0f} (worst)",
                flush=True,
            )
    return failed


if __name__ == "__main__":
    main()
