"""A gateway's memory does not grow with the number of requests, clients, tokens, keys, URLs, names and errors."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.scenarios.memory_load import Shop, load
from tests.support.process import Processes, free_port

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-25", "X-26")]

SERVES = re.compile(r"gateway on http://")
EXPECTED = {200, 400, 401, 404, 429, 431, 502, 503}
"""Statuses that each run must meet, beside 0 for clients that left."""


@asynccontextmanager
async def gateway_process(folder: Path) -> AsyncIterator[tuple[int, int]]:
    """A service in this process, a gateway in another one: its port and its process id."""
    connections: set[asyncio.Transport] = set()
    server = await asyncio.get_running_loop().create_server(lambda: Shop(connections), "127.0.0.1", 0)
    try:
        with Processes(folder) as processes:
            child = processes.start(
                [
                    *(sys.executable, "-m", "fastapi_mesh.api_gateway"),
                    *("--app", "tests.scenarios.memory_gateway:gateway", "--host", "127.0.0.1", "--port", "{port}"),
                ],
                name="gateway",
                environment={
                    "UPSTREAM": f"127.0.0.1:{server.sockets[0].getsockname()[1]}",
                    "DEAD": f"127.0.0.1:{free_port()}",
                },
            )
            await child.ready(SERVES)
            yield child.port, child.pid
    finally:
        server.close()
        await server.wait_closed()
        for transport in tuple(connections):
            transport.abort()
        while connections:  # noqa: ASYNC110 - each goes in a turn of the loop
            await asyncio.sleep(0)


def resident(pid: int) -> int:
    """KiB of memory that the process has."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


def cpu(pid: int) -> float:
    """Seconds that the process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def growth(folder: Path, *, warm_up: int, requests: int, steps: int) -> tuple[list[int], Counter[int]]:
    """Resident memory in KiB after the warm-up and after each step, and how often which status came."""
    statuses: Counter[int] = Counter()
    async with gateway_process(folder) as (port, pid):
        before = resident(pid)
        await load(port, range(warm_up), statuses)
        sizes = [resident(pid)]
        for step in range(steps):
            start = warm_up + step * requests // steps
            await load(port, range(start, start + requests // steps), statuses)
            sizes.append(resident(pid))
            print(sizes, flush=True)
        print(f"{before} KiB at start, then {sizes}; {sorted(statuses.items())}; {cpu(pid):.1f} s of CPU")
    return sizes, statuses


async def test_memory_stays_the_same_once_all_bounds_are_reached(tmp_path: Path) -> None:
    """Finds what leaks about 2 KiB per request; the long version 30 bytes."""
    try:
        async with asyncio.timeout(80):
            sizes, statuses = await growth(tmp_path, warm_up=3000, requests=3000, steps=2)
    except TimeoutError:
        pytest.skip("6000 requests took more than 80 s here")

    assert set(statuses) >= EXPECTED | {0}
    assert sizes[-1] < sizes[0] * 1.06


@pytest.mark.soak
async def test_memory_stays_the_same_over_200_000_requests(tmp_path: Path) -> None:
    sizes, statuses = await growth(tmp_path, warm_up=40_000, requests=160_000, steps=8)

    assert set(statuses) >= EXPECTED | {0}
    assert sizes[-1] < sizes[0] * 1.05
