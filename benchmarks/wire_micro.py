"""What one request through the HTTP/1.1 wire costs in CPU: a tight loop against a minimal server in another process.

Counts everything between "a handler wants to call" and "it has the body": Request, CallContext, the wire, Response.
Prints microseconds of CPU per request at several numbers of requests in flight; run it twice, the machine is noisy.

    python benchmarks/wire_micro.py [--requests 20000] [--loop uvloop|asyncio] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

from fastapi_mesh.config.policies import CallPolicy, ServicePolicy
from fastapi_mesh.core.context import CallContext
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.message import Request
from fastapi_mesh.core.state import ServiceState
from fastapi_mesh.wire.h1 import H1Wire

BODY = b"x" * 1024
HEADERS = [
    (b"user-agent", b"benchmark"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip"),
    (b"x-request-id", b"0192f0c0-1111-7222-8333-444455556666"),
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"x-forwarded-for", b"127.0.0.1"),
]
ANSWER = (
    b"HTTP/1.1 200 OK\r\ndate: Tue, 24 Nov 2026 04:00:00 GMT\r\nserver: benchmark\r\n"
    b"content-type: application/json\r\ncache-control: no-store\r\ncontent-length: 1024\r\n\r\n" + BODY
)


class Server(asyncio.Protocol):
    """Answers whatever ends in a blank line."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(ANSWER * data.count(b"\r\n\r\n"))  # type: ignore[attr-defined]


class FirstPicker:
    def pick(self, instances: tuple[InstanceState, ...], request: Request) -> InstanceState:
        return instances[0]


def serve(pipe: Connection, runner: str) -> None:
    """The server's process: says its port, ends when the other end of the pipe closes."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Server, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        ended = asyncio.Event()
        loop.add_reader(pipe.fileno(), ended.set)
        await ended.wait()
        server.close()

    run(main, runner)


def run(main: object, runner: str) -> None:
    if runner == "uvloop":
        import uvloop

        uvloop.run(main())  # type: ignore[operator]
    else:
        asyncio.run(main())  # type: ignore[operator]


async def measure(port: int, requests: int, in_flight: int) -> float:
    """Microseconds of CPU per request."""
    policy = CallPolicy.compile(ServicePolicy())
    state = InstanceState(Instance("users", "users-1", "127.0.0.1", port))
    service = ServiceState("users", instances=Live((state,)), picker=FirstPicker())
    wire = H1Wire()
    left = [0]

    async def caller() -> None:
        while left[0] > 0:
            left[0] -= 1
            context = CallContext(policy, service)
            context.instance = state
            context.attempt_deadline = time.monotonic() + 25.0
            response = await wire(Request(b"GET", "users", b"/things?page=1", list(HEADERS), b"", context))
            body = await response.read()
            assert response.at_end
            assert len(body) == 1024
            await response.aclose()

    async def burst(count: int) -> float:
        left[0] = count
        start = time.process_time()
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(caller())
        return (time.process_time() - start) / count * 1e6

    await burst(requests // 10)
    cost = await burst(requests)
    assert wire.statistics()["created"] <= in_flight
    await wire.aclose()
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--in-flight", type=int, nargs="*", default=[1, 64])
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    server = spawn.Process(target=serve, args=(theirs, options.loop), daemon=True)
    server.start()
    port = ours.recv()
    profile = cProfile.Profile() if options.profile else None
    if profile is not None:
        profile.enable()
    for in_flight in options.in_flight:
        costs: list[float] = []

        async def one(in_flight: int = in_flight, costs: list[float] = costs) -> None:
            costs.append(await measure(port, options.requests, in_flight))

        for _ in range(options.rounds):
            run(one, options.loop)
        spread = f"{min(costs):.1f} to {max(costs):.1f}"
        print(f"{options.loop}, {in_flight:3d} in flight: {statistics.median(costs):.1f} us CPU per request ({spread})")
    if profile is not None:
        profile.disable()
        profile.print_stats("tottime")
    ours.send("end")
    server.join()


if __name__ == "__main__":
    main()
