"""Traffic for the example: a fixed number of requests in random order, then it stops.

Every visit asks for the same route a few times in a row, as browsers and dashboards do.
"""

import argparse
import asyncio
import random
from collections.abc import Iterator

import httpx

ROUTES = ["/leakable", "/clean", "/users/{number}", "/search"]


def paths(requests: int) -> Iterator[str]:
    """As many paths as requested."""
    while requests > 0:
        visit = min(requests, random.randint(3, 5))
        path = random.choice(ROUTES).format(number=random.randint(1, 1000))
        yield from [path] * visit
        requests -= visit


async def client(url: str, work: Iterator[str]) -> int:
    """Send requests until there is no work left; returns how many were answered."""
    answered = 0
    async with httpx.AsyncClient(base_url=url, timeout=10) as http:
        for path in work:
            (await http.get(path)).raise_for_status()
            answered += 1
    return answered


async def run(url: str, requests: int, concurrency: int) -> int:
    """Share the work among `concurrency` clients."""
    work = paths(requests)
    return sum(await asyncio.gather(*(client(url, work) for _ in range(concurrency))))


def main() -> None:
    """Read the options and send the traffic."""
    parser = argparse.ArgumentParser(description="traffic for the example, which stops by itself")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the example runs (%(default)s)")
    parser.add_argument("--requests", type=int, default=5000, help="how many in total (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=1, help="how many at the same time (%(default)s)")
    options = parser.parse_args()
    try:
        answered = asyncio.run(run(options.url, options.requests, max(1, options.concurrency)))
    except httpx.HTTPError as error:
        raise SystemExit(f"{options.url} did not answer as it should: {error}") from error
    print(f"{answered} requests answered by {options.url}")


if __name__ == "__main__":
    main()
