"""The life of a node in a server process: open, registered once its port answers, drained on a signal, closed.

Every door (the middleware, `FastAPI(lifespan=mesh.lifespan)`) goes through the one `NodeLife` of its mesh; the first
to open it owns it, and only that one closes it. Nothing here knows a web framework.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from fastapi_mesh.discovery.address import LOOPBACK, wait_listening, wait_own_address
from fastapi_mesh.exceptions import ConfigurationError, MeshError
from fastapi_mesh.service_mesh.marker import Marker
from fastapi_mesh.service_mesh.signals import SignalChain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi_mesh.health.checks import HealthReport
    from fastapi_mesh.service_mesh.marker import State
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

logger = logging.getLogger("fastapi_mesh.life")

WARN_AFTER = 10.0
"""Seconds without a port that accepts connections after which a line says so."""
FINISH_REGISTRATION = 2.0
"""Seconds that a registration on its way may take when the node is about to leave again."""
LOOK_EVERY = 0.5
"""Seconds between two looks for a first request, where only that tells the port."""


class NodeLife:
    """What a mesh's doors share.

    Order at the start: `open` (mesh started, signals chained), then `serving` (a background task waits until the
    process's own port accepts a connection, then registers). Order at the end, on the first SIGTERM or SIGINT:
    `draining` (readiness answers 503), deregister, `drain_delay` seconds, `end_streams`, then the signal goes to the
    server, whose shutdown ends in `close`. A second signal goes to the server at once (after `end_streams`); so does
    the first when nothing is registered.
    """

    def __init__(self, mesh: ServiceMesh) -> None:
        self._mesh = mesh
        self._signals = SignalChain(self._heard, self._asked_to_leave)
        self._marker = Marker()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started_here = False
        self._registering: asyncio.Task[object] | None = None
        self._port_found = False
        self._handed_on = False
        self._server: tuple[str, int] | None = None
        self._on_end_streams: list[Callable[[], object]] = []
        self.waits_unregistered = False
        """On SIGTERM the whole drain is waited for without a registration too: others look at readiness only."""
        self.default_address: Callable[[], Awaitable[str]] | None = None
        """Says the address of a server that listens on all interfaces; None: 127.0.0.1."""
        self.notes: dict[str, object] = {}
        """What `/health` shows beside the checks, and what fails nothing: details by name."""
        self.draining = False
        self.ending = False
        """Streams without an end of their own have been told to end; one that begins now ends at once."""

    @property
    def is_open(self) -> bool:
        """Whether a door has opened it in the running event loop."""
        return self._loop is not None and not self._loop.is_closed()

    @property
    def ready(self) -> bool:
        """Whether this node should get requests: started, its first lists are here, not draining."""
        return self._mesh.ready and not self.draining

    async def health(self) -> HealthReport:
        """What `/health` says: the registered checks, and whether the node drains."""
        report = (await self._mesh.health.report()).noting(self.notes)
        return report.also_failing("drain", "draining") if self.draining else report

    async def readiness(self) -> HealthReport:
        """What `/health/ready` says: the same, and whether the mesh is ready."""
        report = await self.health()
        if self.draining or self.ready:
            return report
        return report.also_failing("mesh", sorted(self._mesh.degraded) or "starting")

    async def open(self) -> bool:
        """Start the mesh and chain the signals; False when another door was first, which then owns it.

        Raises ConfigurationError and other MeshErrors for what waiting can't mend; `doors.explain_start` words them.
        """
        if self.is_open:
            return False
        if self._loop is not None:  # that event loop ended without closing it, as TestClient's does after each request
            await self._mesh.stop()
        self._loop = asyncio.get_running_loop()
        self._started_here = not self._mesh.started
        self.draining = self.ending = self._handed_on = self._port_found = False
        try:
            await self._mesh.start()
        except BaseException:
            self._loop = None
            raise
        if self._mesh.enabled:
            self._signals.install()
            self._mark("serving")
        if multiprocessing.parent_process() is not None:
            logger.info(
                "%s: this worker process is a node of its own: breakers, budgets and metrics are per worker",
                self._mesh.service_name,
            )
        return True

    def serving(self) -> None:
        """The application is up: register it as soon as its port accepts connections."""
        config = self._mesh.config
        if not self._mesh.enabled or not config.enable_service_discovery or self._registering is not None:
            return
        if config.service_name is None:
            logger.info("not registered: without service_name= (or SERVICE_NAME) there is no name to be found by")
            return
        self._registering = self._mesh.supervisor.keep(self._register, name="registration")

    def saw_server(self, server: tuple[str, int | None] | None) -> None:
        """Where a request came in (`scope["server"]`): the last resort for the own port."""
        if server is not None and server[1] is not None:
            self._server = server[0], server[1]

    async def drain(self) -> None:
        """Turn readiness to 503, leave the registry, and wait until others have noticed. Without a registration
        there is nobody to wait for, unless `waits_unregistered`.
        """
        self.draining = True
        self._mark("draining")
        if await self.leave() or self.waits_unregistered:
            await self._mesh.clock.sleep(self._mesh.config.drain_delay)
        self._mark("left")

    def on_end_streams(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call `callback()` in the event loop when the server is about to stop: a server waits for its running
        responses, so those that have no end of their own must be ended. Returns the function that unsubscribes.
        """
        self._on_end_streams.append(callback)

        def unsubscribe() -> None:
            if callback in self._on_end_streams:
                self._on_end_streams.remove(callback)

        return unsubscribe

    def end_streams(self) -> None:
        """End server-sent events, once; what was opened last hears it first, as it is the inner one. WebSockets are
        closed by the server itself (uvicorn: with 1012).
        """
        if self.ending:
            return
        self.ending = True
        for callback in reversed(self._on_end_streams):
            callback()

    async def close(self) -> None:
        """Leave the registry, stop the mesh if `open` started it, give the signals back. Safe to call twice."""
        if self._loop is None:
            return
        self.draining = True
        try:
            await self.leave()
            await self._mesh.health.aclose()
            if self._started_here:
                await self._mesh.stop()
        finally:
            self._loop = None
            self._signals.restore()
            self._marker.close()
            if self._mesh.metrics is not None:
                self._mesh.metrics.close()

    async def leave(self) -> bool:
        """Leave the registry, and end a registration that has not happened yet; whether there was one."""
        task, self._registering = self._registering, None
        if task is not None and not task.done():
            if self._port_found:  # a registration on its way is completed, so that it can be withdrawn
                await asyncio.wait((task,), timeout=FINISH_REGISTRATION)
            task.cancel()
            await asyncio.wait((task,))
        if not self._mesh.registrations:
            return False
        try:
            await self._mesh.deregister()
        except MeshError as error:
            logger.warning("leaving the registry failed, so the lease has to run out: %s", error)
        return True

    def _heard(self, number: int) -> bool:
        """In the signal handler. True: keep the signal, `_drain_first` passes it on."""
        loop = self._loop
        first = not self.draining
        self.draining = True
        if loop is None or loop.is_closed() or self._handed_on:
            return False
        if first and (self._mesh.registrations or (self.waits_unregistered and number == signal.SIGTERM)):
            loop.call_soon_threadsafe(self._begin_drain, number)
            return True
        self._handed_on = True
        loop.call_soon_threadsafe(self.end_streams)  # runs before the server's own loop has seen the signal
        return False

    def _asked_to_leave(self) -> None:
        """In the signal handler of SIGUSR1: what `fastapi-mesh drain` sends. The server goes on until it is ended."""
        loop = self._loop
        if loop is not None and not loop.is_closed() and not self.draining:
            self.draining = True
            loop.call_soon_threadsafe(self._begin_leaving)

    def _begin_leaving(self) -> None:
        logger.info("%s: asked to leave, draining; it goes on serving", self._mesh.service_name)
        with suppress(RuntimeError):  # the mesh was stopped meanwhile
            self._mesh.supervisor.start(self.drain(), name="drain")

    def _mark(self, state: State) -> None:
        if self._mesh.enabled:
            self._marker.say(self._mesh.service_name, state, drains=self._signals.hears_leaving)

    def _begin_drain(self, number: int) -> None:
        logger.info("%s: signal %d, draining", self._mesh.service_name, number)
        try:
            self._mesh.supervisor.start(self._drain_first(number), name="drain")
        except RuntimeError:  # the mesh was stopped meanwhile
            self._hand_on(number)

    async def _drain_first(self, number: int) -> None:
        try:
            await self.drain()
        finally:
            self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        if not self._handed_on:
            self._handed_on = True
            self.end_streams()
            self._signals.pass_on(number)

    async def _register(self) -> None:
        """Kept by the supervisor: wait for the own port, then register; a registry that fails is tried again."""
        mesh = self._mesh
        late = mesh.clock.call_later(WARN_AFTER, self._warn_of_no_port)
        try:
            address, port = await self._own_address()
        finally:
            late.cancel()
        self._port_found = True
        if mesh.registrations or self.draining:  # the application has registered itself, or it ends
            return
        try:
            await mesh.register_service(address=address, port=port, health_check=mesh.config.health_path)
        except ConfigurationError as error:
            logger.error("%s is not registered: %s", mesh.service_name, error)

    async def _own_address(self) -> tuple[str, int]:
        config, clock = self._mesh.config, self._mesh.clock
        default = LOOPBACK
        if config.address is None and self.default_address is not None:
            default = await self.default_address()
        found = await wait_own_address(address=config.address, port=config.port, default=default, clock=clock)
        if found is not None:
            return found
        while self._server is None:
            await clock.sleep(LOOK_EVERY)
        address, port = self._server
        return config.address or await wait_listening([address], port, clock=clock), port

    def _warn_of_no_port(self) -> None:
        logger.warning(
            "%s is not registered yet: %s; set address= and port= (MESH_ADDRESS, MESH_PORT) if that isn't where it "
            "serves, or enable_service_discovery=False if it needn't be found",
            self._mesh.service_name,
            f"nothing accepts connections on port {self._mesh.config.port}"
            if self._mesh.config.port is not None
            else "this process has no port that accepts connections",
        )
