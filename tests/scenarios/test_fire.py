"""Node processes behind a proxy that makes their connections slow, cut, silent or nonsense, under steady load."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.scenarios.load import Connection
from tests.support.fault_proxy import PASS, Blackhole, Cut, Delay, Drip, FaultProxy, Garbage, HalfClose

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.fault_proxy import Fault
    from tests.support.process import Processes

pytestmark = pytest.mark.anyio

FAILURE = Garbage(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\nconnection: close\r\n\r\noops")
NONSENSE = Garbage(b"SSH-2.0-OpenSSH_9.6\r\n")
TOO_SHORT = Garbage(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{}")
NO_LENGTH = Garbage(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{}")


@dataclass
class Journal:
    """What became of the requests: when each began, how long it took, and why it failed."""

    requests: list[tuple[float, float, str]] = field(default_factory=list)

    def add(self, began: float, seconds: float, failure: str) -> None:
        self.requests.append((began, seconds, failure))

    def p99(self, since: float, until: float = float("inf")) -> float:
        """Seconds, of those that began in a span of the loop's time."""
        taken = sorted(seconds for began, seconds, _ in self.requests if since <= began < until)
        return taken[int(len(taken) * 0.99)]

    @property
    def failures(self) -> Counter[str]:
        return Counter(failure for *_, failure in self.requests if failure)

    def budget(self, objective: float) -> str:
        """What is left of the failures that an objective (a success rate) allows, to be printed."""
        allowed = (1 - objective) * len(self.requests)
        failed = self.failures.total()
        lines = [
            f"{len(self.requests)} requests, {failed} failed: {100 * (1 - failed / len(self.requests)):.3f} % success",
            f"error budget of {objective:.1%}: {failed / allowed:.0%} used ({failed} of {allowed:.0f})",
            *(f"  {count:6} {why}" for why, count in self.failures.most_common()),
        ]
        return "\n".join(lines)


class Stage:
    """A gateway over three instances, each behind a proxy."""

    def __init__(self, port: int, proxies: list[FaultProxy]) -> None:
        self.port = port
        self.proxies = proxies
        self.journal = Journal()

    async def load(self, rate: float, stop: asyncio.Event, connections: int = 100) -> None:
        """Requests at fixed times, so that slow answers don't thin them out (no coordinated omission)."""
        now = asyncio.get_running_loop().time
        started = now()
        turns = iter(range(10**9))

        async def client() -> None:
            connection = Connection(self.port)
            for turn in turns:
                begin = started + turn / rate
                await asyncio.sleep(max(0.0, begin - now()))
                if stop.is_set():
                    break
                failure = await self._one(connection, turn)
                self.journal.add(begin, now() - begin, failure)
            connection.close()

        await asyncio.gather(*[client() for _ in range(connections)])

    @staticmethod
    async def _one(connection: Connection, turn: int) -> str:
        size = (turn * 997) % 4096
        try:
            status, headers, content = await connection.request("GET", f"/item?size={size}")
        except (OSError, ValueError, KeyError, asyncio.IncompleteReadError) as error:
            connection.close()
            return f"the gateway's own answer: {type(error).__name__}"
        if status != 200:
            return f"{status} {headers.get('x-mesh-reason')}"
        return "" if json.loads(content) == {"item": "i" * size} else "another answer"


@asynccontextmanager
async def stage(processes: Processes, nodes: int) -> AsyncIterator[Stage]:
    """Three proxies over one or three node processes."""
    running = [
        processes.app("tests.scenarios.fire_node:app", "--no-access-log", name=f"node-{n}") for n in range(nodes)
    ]
    for each in running:
        await each.ready()
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(FaultProxy(running[n % nodes].port)) for n in range(3)]
        environment = {"INSTANCES": ",".join(each.url for each in proxies)}
        gateway = processes.app("tests.scenarios.fire_gateway:app", "--no-access-log", environment=environment)
        await gateway.ready()
        yield Stage(gateway.port, proxies)


async def one_of_three_is_well(on: Stage, *, rate: float, before: float, seconds: float) -> tuple[float, float]:
    """p99 in seconds before, and from 5 s after the others began to fail."""
    now = asyncio.get_running_loop().time
    stop = asyncio.Event()
    started = now()
    load = asyncio.ensure_future(on.load(rate, stop))  # noqa: TID251 - the test's own task
    await asyncio.sleep(before)
    failing = now()
    on.proxies[0].fault, on.proxies[1].fault = FAILURE, Blackhole()
    await asyncio.sleep(seconds)
    stop.set()
    await load
    print(on.journal.budget(0.999))
    return on.journal.p99(started + 1, failing), on.journal.p99(failing + 5)


@pytest.mark.spec("X-02", "X-04")
async def test_one_of_three_failing_and_one_hanging_is_hardly_noticed(processes: Processes) -> None:
    async with stage(processes, nodes=1) as on:
        await one_of_three_is_well(on, rate=40, before=2, seconds=8)

        assert len(on.journal.requests) > 300
        assert on.journal.failures.total() <= 1


@pytest.mark.soak
@pytest.mark.spec("X-02", "X-04")
async def test_a_minute_of_one_failing_and_one_hanging(processes: Processes) -> None:
    async with stage(processes, nodes=3) as on:
        healthy, since = await one_of_three_is_well(on, rate=200, before=10, seconds=60)

        print(f"p99: {1000 * healthy:.1f} ms while all were well, {1000 * since:.1f} ms from the sixth second on")
        assert on.journal.failures.total() <= 0.001 * len(on.journal.requests)
        assert since < 2 * max(healthy, 0.02)


SCRIPT: tuple[tuple[str, Fault | None, Fault | None], ...] = (
    ("all is well", PASS, PASS),
    ("one is slow", Delay(0.3), PASS),
    ("one answers 500", FAILURE, PASS),
    ("one hangs", Blackhole(), PASS),
    ("one is reset in the middle of answers", Cut(after=50), PASS),
    ("one ends in the middle of answers", HalfClose(after=150), PASS),
    ("one answers a byte a second", Drip(size=1, pause=1.0), PASS),
    ("one speaks another protocol, one is gone", NONSENSE, None),
    ("one promises more than it sends, one hangs", TOO_SHORT, Blackhole()),
    ("one answers what is no HTTP, one is reset", NO_LENGTH, Cut(after=0)),
    ("one is gone", None, PASS),
    ("all is well again", PASS, PASS),
)
"""What happens, and the faults of the first two instances meanwhile; None: it refuses connections."""


async def storm(on: Stage, *, rate: float, step: float) -> None:
    stop = asyncio.Event()
    load = asyncio.ensure_future(on.load(rate, stop))  # noqa: TID251 - the test's own task
    for turn, (_, *faults) in enumerate(SCRIPT):
        for number, fault in enumerate(faults):
            proxy = on.proxies[(turn + number) % 3]  # each has its turn
            if fault is None:
                await proxy.refuse()
            else:
                proxy.fault = fault
        await asyncio.sleep(step)
        for proxy in on.proxies:
            await proxy.accept()
            proxy.fault = PASS
    stop.set()
    await load
    print(on.journal.budget(0.999))


@pytest.mark.spec("X-02", "X-04")
async def test_a_storm_of_all_faults(processes: Processes) -> None:
    async with stage(processes, nodes=1) as on:
        await storm(on, rate=30, step=1.5)

        assert len(on.journal.requests) > 400
        assert on.journal.failures.total() <= 0.01 * len(on.journal.requests)


@pytest.mark.soak
@pytest.mark.spec("X-02", "X-04")
async def test_five_minutes_of_storm(processes: Processes) -> None:
    async with stage(processes, nodes=3) as on:
        await storm(on, rate=100, step=300 / len(SCRIPT))

        assert on.journal.failures.total() <= 0.001 * len(on.journal.requests)
