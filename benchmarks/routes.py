"""What does finding a route cost, in CPU, with 10, 1 000 and 10 000 routes in the table?

python benchmarks/routes.py [--rounds 40]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from fastapi_mesh.api_gateway.choice import Conditions
from fastapi_mesh.api_gateway.table import Entry, RouteTable
from fastapi_mesh.config.edge.routing import ValueMatch

SIZES = (10, 1_000, 10_000)
LOOKUPS = 3_000
Table = RouteTable[str]


def scope(host: str, *headers: tuple[bytes, bytes]) -> dict[str, object]:
    return {"headers": [(b"host", host.encode()), *headers], "query_string": b""}


def tails(size: int) -> Callable[[], object]:
    """One path with `*` for each route."""
    table = Table(Entry(f"/api/v1/service-{n}/*", None, "") for n in range(size))
    path = f"/api/v1/service-{size // 2}/items/7".encode()
    return lambda: table.find(path, "GET")


def parameters(size: int) -> Callable[[], object]:
    """One path with two parameters for each."""
    table = Table(Entry(f"/api/v1/service-{n}/{{id}}/parts/{{part}}", ["GET"], "") for n in range(size))
    path = f"/api/v1/service-{size // 2}/7/parts/8".encode()
    return lambda: table.find(path, "GET")


def hosts(size: int) -> Callable[[], object]:
    """One path, another host for each."""
    table = Table(Entry("/api/*", None, "", Conditions([f"shop-{n}.example.com"])) for n in range(size))
    asked = scope(f"shop-{size // 2}.example.com:8080")
    return lambda: table.find(b"/api/items/7", "GET", asked)


def patterns(size: int) -> Callable[[], object]:
    """One path, another `*.host` for each."""
    table = Table(Entry("/api/*", None, "", Conditions([f"*.shop-{n}.example.com"])) for n in range(size))
    asked = scope(f"a.b.c.d.shop-{size // 2}.example.com")
    return lambda: table.find(b"/api/items/7", "GET", asked)


def headers(size: int) -> Callable[[], object]:
    """Half as many hosts, each also by header."""
    v2 = {"x-version": ValueMatch(exact="2")}
    names = [f"shop-{n}.example.com" for n in range(size // 2)]
    table = Table(
        Entry("/api/*", None, "", Conditions([name], headers=match)) for name in names for match in (None, v2)
    )
    asked = scope(names[size // 4], (b"accept", b"*/*"), (b"x-version", b"1"))
    return lambda: table.find(b"/api/items/7", "GET", asked)


def measure(find: Callable[[], object], rounds: int) -> float:
    """CPU nanoseconds of one look-up; the least of many short rounds, disturbed least by other work."""
    if find() is None:
        raise AssertionError("the route is not found")
    figures = []
    for _ in range(rounds):
        started = time.process_time_ns()
        for _ in range(LOOKUPS):
            find()
        figures.append((time.process_time_ns() - started) / LOOKUPS)
    return min(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    print("CPU nanoseconds per look-up (a call of an empty function included)\n")
    print(f"{'':42}" + "".join(f"{size:>10,} routes" for size in SIZES))
    for case in (tails, parameters, hosts, patterns, headers):
        figures = [measure(case(size), rounds) for size in SIZES]
        what = (case.__doc__ or "").splitlines()[0].strip(".")
        print(f"{what[:41]:42}" + "".join(f"{figure:>17,.0f}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()
