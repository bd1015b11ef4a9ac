"""A simulator: many clients and instances in virtual time, seeded, with the real layers over a scripted wire.

    async def scenario(sim: Simulation) -> Results:
        sim.service("users", [Server("a"), Server("b", latency=constant(0.5))])
        client = await sim.client()
        return await sim.load([client], "users", rate=100, seconds=60)

    results = simulate(scenario, seed=1)
    assert results.percentile(99) < 0.1

An hour of virtual time takes as long as the calls in it take to work out. Two runs with one seed are the same.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import selectors
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from math import inf, log
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi_mesh.config.policies import ServicePolicy
from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.message import Request, Response
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.exceptions import (
    MeshError,
    ServiceUnavailableError,
    UpstreamConnectionError,
    UpstreamTimeoutError,
)
from fastapi_mesh.service_mesh.mesh import ServiceMesh

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from fastapi_mesh.core.message import Header
    from fastapi_mesh.discovery.base import Discovery

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer instead of waiting for it. Sockets and threads do not work."""

    def __init__(self) -> None:
        self._virtual = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual

    def jump(self, seconds: float) -> None:
        self._virtual += seconds


class _Jumping(selectors.DefaultSelector):
    """Where the loop would wait for a timer, time passes."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("the simulation waits for something that will never happen: there is no timer left")
        if timeout > 0:
            self._loop.jump(timeout)
        return []


class LoopClock:
    """The clock of a mesh in a simulation: the running loop's virtual time."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def call_later(self, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay, callback)

    async def sleep(self, delay: float) -> None:
        await asyncio.sleep(delay)


def simulate(scenario: Callable[[Simulation], Awaitable[T]], *, seed: int = 0) -> T:
    """Run `scenario` in virtual time and return what it returns. The layers' own random choices are seeded too."""
    before = random.getstate()
    random.seed(seed)
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(_run(scenario, seed))
    finally:
        loop.close()
        random.setstate(before)


async def _run(scenario: Callable[[Simulation], Awaitable[T]], seed: int) -> T:
    simulation = Simulation(seed)
    try:
        return await scenario(simulation)
    finally:
        await simulation.aclose()


# What servers do


def constant(seconds: float) -> Callable[[random.Random, float], float]:
    """Every request takes as long."""
    return lambda random, now: seconds


def exponential(mean: float) -> Callable[[random.Random, float], float]:
    """Service times of a Poisson process, as queueing theory has them."""
    return lambda random, now: random.expovariate(1 / mean)


def lognormal(median: float, sigma: float = 0.5) -> Callable[[random.Random, float], float]:
    """What services look like: most answers near the median, some much later."""
    mu = log(median)
    return lambda random, now: random.lognormvariate(mu, sigma)


@dataclass(slots=True)
class Server:
    """One instance. Everything may be changed while a simulation runs.

    `latency` is how long a request is worked on; `capacity` how many are at once (None: all), the others wait in a
    queue of at most `queue`, beyond which they are answered 503. `status` may say another status than 200 for a
    request, of the random numbers and the time. `down` refuses connections. What a client has given up is worked on
    nevertheless, as by real servers, unless `cancels`. `calls` makes each request call another service first, and
    answer 503 where that fails.
    """

    id: str
    latency: Callable[[random.Random, float], float] = field(default_factory=lambda: constant(0.01))
    capacity: int | None = None
    queue: float = inf
    status: Callable[[random.Random, float], int] | None = None
    headers: list[Header] = field(default_factory=list)
    down: bool = False
    cancels: bool = False
    calls: tuple[ServiceMesh, str] | None = None
    weight: float = 1.0
    zone: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    served: int = 0
    """Requests that were worked on to their end."""
    accepted: int = 0
    """Requests that arrived."""
    most: int = 0
    """The most that were worked on or waiting at one time."""
    working: int = 0
    waiting: deque[_Job] = field(default_factory=deque)

    @property
    def load(self) -> int:
        """Requests here now."""
        return self.working + len(self.waiting)


@dataclass(slots=True)
class _Job:
    """A request at a server. `answer` is done when the client has gone."""

    request: Request
    answer: asyncio.Future[Response]


class SimulatedWire:
    """Implements `wire.base.Wire` over the servers of a simulation."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    async def __call__(self, request: Request) -> Response:
        state = request.context.instance
        assert state is not None, "Balance sets the instance before the wire is asked"
        simulation = self._simulation
        server = simulation.server(request.service, state.instance.id)
        loop = asyncio.get_running_loop()
        if server.down:
            raise UpstreamConnectionError("refused", request_sent=False, service=request.service)
        job = _Job(request, loop.create_future())
        simulation.arrive(server, job)
        deadline = request.context.attempt_deadline
        timer = None if deadline is None else loop.call_at(deadline, _late, job)
        try:
            return await job.answer
        finally:
            if timer is not None:
                timer.cancel()

    async def aclose(self) -> None:
        return None


def _late(job: _Job) -> None:
    if not job.answer.done():
        job.answer.set_exception(UpstreamTimeoutError("too late", service=job.request.service, phase="read"))


class Simulation:
    """The services, the clients and the time of one run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = LoopClock()
        self.supervisor = Supervisor(clock=self.clock)
        self.services: dict[str, list[Server]] = {}
        self._by_id: dict[tuple[str, str], Server] = {}
        self._meshes: list[ServiceMesh] = []

    @property
    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return self.clock.now()

    def service(self, name: str, servers: Sequence[Server]) -> list[Server]:
        """The instances of a service, from now on also for the clients there are."""
        self.services[name] = list(servers)
        self._by_id.update({(name, each.id): each for each in servers})
        for mesh in self._meshes:
            if not mesh.finds_services:
                mesh.add_service(name, self._instances(name))
        return self.services[name]

    def server(self, service: str, id: str) -> Server:
        return self._by_id[service, id]

    async def client(
        self,
        name: str = "client",
        *,
        policy: ServicePolicy | None = None,
        discovery: Discovery | None = None,
        **settings: Any,
    ) -> ServiceMesh:
        """A started mesh with the real layers; `policy` is its default one, `settings` are ServiceMesh's."""
        mesh = ServiceMesh(
            name,
            default_policy=policy or ServicePolicy(),
            discovery=discovery,
            discovery_backend=None if discovery is not None else "static",
            enable_metrics=False,
            enable_tracing=False,
            wire=SimulatedWire(self),
            clock=self.clock,
            **settings,
        )
        if discovery is None:
            for service in self.services:
                mesh.add_service(service, self._instances(service))
        self._meshes.append(mesh)
        await mesh.start()
        return mesh

    async def load(
        self,
        clients: Sequence[ServiceMesh],
        service: str,
        *,
        rate: float,
        seconds: float,
        method: bytes = b"GET",
        prepare: Callable[[Request], object] | None = None,
        into: Results | None = None,
    ) -> Results:
        """Call `service` `rate` times a second at random moments (a Poisson process), by the clients in turn.

        Calls do not wait for each other, as real users don't. Returns when the last one has ended.
        """
        results = Results() if into is None else into
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        running = [0]
        idle = asyncio.Event()
        count = 0
        while True:
            wait = self.random.expovariate(rate)
            if loop.time() + wait > end:
                break
            await asyncio.sleep(wait)
            running[0] += 1
            mesh = clients[count % len(clients)]
            count += 1
            work = self._call(mesh, service, method, prepare, results, running, idle)
            self.supervisor.start(work, name="call")
        idle.clear()
        if running[0]:
            await idle.wait()
        return results

    async def _call(
        self,
        mesh: ServiceMesh,
        service: str,
        method: bytes,
        prepare: Callable[[Request], object] | None,
        results: Results,
        running: list[int],
        idle: asyncio.Event,
    ) -> None:
        started = self.now
        request = Request(method, service, b"/", [], b"", mesh.new_context(service))
        if prepare is not None:
            prepare(request)
        try:
            response = await mesh.send(request)
            await response.read_all()
            results.add(started, self.now, response.status, None)
        except MeshError as error:
            results.add(started, self.now, error.status, error.reason)
        finally:
            running[0] -= 1
            if not running[0]:
                idle.set()

    async def aclose(self) -> None:
        """Stop all clients and calls."""
        for mesh in self._meshes:
            await mesh.stop()
        await self.supervisor.aclose()

    # Servers at work

    def arrive(self, server: Server, job: _Job) -> None:
        server.accepted += 1
        if server.capacity is None or server.working < server.capacity:
            self._begin(server, job)
        elif len(server.waiting) < server.queue:
            server.waiting.append(job)
        else:
            self._answer(job, 503, server.headers)
            return
        server.most = max(server.most, server.load)

    def _begin(self, server: Server, job: _Job) -> None:
        server.working += 1
        loop = asyncio.get_running_loop()
        seconds = server.latency(self.random, loop.time())
        if server.calls is not None:
            self.supervisor.start(self._call_first(server, job, seconds), name="hop")
        else:
            loop.call_later(seconds, self._end, server, job, None)

    async def _call_first(self, server: Server, job: _Job, seconds: float) -> None:
        """A server that calls another service: within the deadline that it was told, as a node's handler does."""
        assert server.calls is not None, "called for such only"
        mesh, service = server.calls
        await asyncio.sleep(seconds)
        context = mesh.new_context(service, deadline=job.request.context.attempt_deadline)
        headers: list[Header] = []
        try:
            response = await mesh.send(Request(job.request.method, service, b"/", [], b"", context))
            await response.read_all()
            status = response.status
            if status >= 500:  # `call_service` raises this, and it leaves the handler
                raise ServiceUnavailableError("failed", status_code=status)
        except MeshError as error:
            status, headers = error.status, [(b"x-mesh-reason", error.reason.encode())]
        self._end(server, job, (status, headers))

    def _end(self, server: Server, job: _Job, answer: tuple[int, list[Header]] | None) -> None:
        server.working -= 1
        server.served += 1
        if answer is None:
            status = 200 if server.status is None else server.status(self.random, self.now)
            answer = status, server.headers
        self._answer(job, *answer)
        while server.waiting and (server.capacity is None or server.working < server.capacity):
            following = server.waiting.popleft()
            if not (server.cancels and following.answer.done()):
                self._begin(server, following)

    @staticmethod
    def _answer(job: _Job, status: int, headers: list[Header]) -> None:
        if not job.answer.done():
            job.answer.set_result(Response.of(status, [*headers, (b"content-length", b"0")], b""))

    def _instances(self, service: str) -> list[Instance]:
        return [
            Instance(service, each.id, "simulated", 1 + n, weight=each.weight, zone=each.zone, metadata=each.metadata)
            for n, each in enumerate(self.services[service])
        ]


class Results:
    """What became of calls: when each ended, how long it took, and its status or error."""

    def __init__(self) -> None:
        self.ended = array("d")
        self.latencies = array("d")
        self.statuses = array("i")
        self.errors: Counter[str] = Counter()

    def add(self, started: float, ended: float, status: int, reason: str | None) -> None:
        self.ended.append(ended)
        self.latencies.append(ended - started)
        self.statuses.append(status)
        if reason is not None:
            self.errors[reason] += 1

    def __len__(self) -> int:
        return len(self.latencies)

    @property
    def succeeded(self) -> int:
        return sum(status < 500 for status in self.statuses)

    @property
    def success_rate(self) -> float:
        """From 0.0 to 1.0; 1.0 without calls."""
        return self.succeeded / len(self) if len(self) else 1.0

    def percentile(self, percent: float, *, since: float = 0.0) -> float:
        """Seconds within which so many percent of the calls that ended after `since` ended."""
        chosen = [each for at, each in zip(self.ended, self.latencies, strict=True) if at >= since]
        count = max(1, round(len(chosen) * (100 - percent) / 100))
        return heapq.nlargest(count, chosen)[-1]

    def between(self, begin: float, end: float) -> Results:
        """Those that ended in a span of virtual time."""
        part = Results()
        for at, latency, status in zip(self.ended, self.latencies, self.statuses, strict=True):
            if begin <= at < end:
                part.add(at - latency, at, status, None)
        return part
