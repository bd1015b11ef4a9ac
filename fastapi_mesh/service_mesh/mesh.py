"""ServiceMesh: owns everything a node needs, from one `start` to one `stop`, and hands out its parts.

It opens and closes; what it does for a call is in the parts (`stack`, `calls`, `client`, `decorators`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self, TypeVar, overload

from fastapi_mesh.balancing.preference import Place
from fastapi_mesh.config.later import missing_attribute
from fastapi_mesh.config.load import load_mesh_config
from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.core.context import CallContext, current_inbound
from fastapi_mesh.core.events import Observers
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.exceptions import ConfigurationError, ServiceDiscoveryError
from fastapi_mesh.health.checks import HealthChecks
from fastapi_mesh.health.probe import Probes
from fastapi_mesh.layers.resolve import FIRST_SNAPSHOT
from fastapi_mesh.observability.event_log import log_changes
from fastapi_mesh.service_mesh.call_service import CallsServices
from fastapi_mesh.service_mesh.calls import Caller
from fastapi_mesh.service_mesh.configuration import Configuration
from fastapi_mesh.service_mesh.decorators import Decorators, open_meshes
from fastapi_mesh.service_mesh.doors import HasState, Lifespan, lifespan_of
from fastapi_mesh.service_mesh.fallback import LastAnswers
from fastapi_mesh.service_mesh.in_code import SetUpInCode
from fastapi_mesh.service_mesh.life import NodeLife
from fastapi_mesh.service_mesh.live_settings import LiveSettings
from fastapi_mesh.service_mesh.policy_table import PolicyTable
from fastapi_mesh.service_mesh.shared_circuits import SharedCircuits
from fastapi_mesh.service_mesh.sources import Sources
from fastapi_mesh.service_mesh.stack import Parts, Stack
from fastapi_mesh.service_mesh.state import StateTable
from fastapi_mesh.service_mesh.statistics import MeshStatistics, gather
from fastapi_mesh.service_mesh.watching import ServiceWatches
from fastapi_mesh.service_mesh.wires import Wires

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    import httpx2

    from fastapi_mesh.config.mesh import MeshConfig
    from fastapi_mesh.config.policies import BulkheadPolicy, CallPolicy, ServicePolicy
    from fastapi_mesh.configstore.base import ConfigStore
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.events import CallRecord, Observer
    from fastapi_mesh.core.instance import ASGIApp, Instance, InstanceState
    from fastapi_mesh.core.message import Request, Response
    from fastapi_mesh.core.state import Breaker
    from fastapi_mesh.discovery.base import Discovery, KnownService
    from fastapi_mesh.observability.metrics import MeshMetrics
    from fastapi_mesh.observability.tracing import Tracing
    from fastapi_mesh.wire.base import Wire

    ServiceTarget = str | Sequence[str] | Sequence[Instance] | ASGIApp

logger = logging.getLogger("fastapi_mesh")
REQUEST_ID = b"x-request-id"
T = TypeVar("T")
A = TypeVar("A")


def _is_urls(target: object) -> bool:
    return isinstance(target, str) or (
        isinstance(target, Sequence) and all(isinstance(each, str) for each in target) and bool(target)
    )


class ServiceMesh(SetUpInCode, CallsServices):
    """One node's view of the mesh.

    Settings not given here come from `MESH_*` environment variables, then from `config_file`, then from the defaults
    (see the configuration reference). Raises ConfigurationError with every problem at once.

        mesh = ServiceMesh("user-service", services={"profile-service": "http://127.0.0.1:8001"})
        async with mesh:
            profile = await mesh.call_service("profile-service", "/profiles/{}", 3)

    `services` are fixed instances, looked up before discovery: a URL, several, or an ASGI application that is called
    in this process without a socket. `default_policy` and `policies` are ServicePolicy objects. `discovery_backend`
    and `discovery_config` say where others are found; lists of both are asked in turn. `discovery` is a backend of your
    own instead, or several, and `config_store` a store of your own; `wire`, `clock` and `observers` are for tests and
    extensions.
    """

    def __init__(
        self,
        service_name: str | None = None,
        *,
        service_version: str | None = None,
        namespace: str | None = None,
        address: str | None = None,
        port: int | None = None,
        zone: str | None = None,
        client_number: int | None = None,
        services: Mapping[str, ServiceTarget] | None = None,
        discovery_backend: str | Sequence[str] | None = None,
        discovery_config: Mapping[str, object] | Sequence[Mapping[str, object]] | None = None,
        discovery: Discovery | Sequence[Discovery] | None = None,
        config_store: ConfigStore | None = None,
        default_policy: ServicePolicy | None = None,
        policies: Mapping[str, ServicePolicy] | None = None,
        config: MeshConfig | None = None,
        config_file: str | None = None,
        enable_metrics: bool | None = None,
        enable_tracing: bool | None = None,
        enable_service_discovery: bool | None = None,
        metrics_path: str | None = None,
        health_path: str | None = None,
        drain_delay: float | None = None,
        inbound_limit: BulkheadPolicy | Mapping[str, object] | None = None,
        start_policy: str | None = None,
        metrics_registry: object | None = None,
        enable_mtls: bool | None = None,
        cert_path: str | None = None,
        key_path: str | None = None,
        ca_path: str | None = None,
        auto_cert_renewal: bool | None = None,
        cert_authority: str | None = None,
        security_policies: Mapping[str, object] | None = None,
        wire: Wire | None = None,
        clock: Clock | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        fixed = dict(services or {})
        plain = {name: target for name, target in fixed.items() if _is_urls(target)}
        settings: dict[str, object | None] = {
            "service_name": service_name,
            "service_version": service_version,
            "namespace": namespace,
            "address": address,
            "port": port,
            "zone": zone,
            "client_number": client_number,
            "services": plain or None,
            "discovery_backend": discovery_backend,
            "discovery_config": discovery_config,
            "defaults": default_policy,
            "policies": dict(policies) if policies else None,
            "enable_metrics": enable_metrics,
            "enable_tracing": enable_tracing,
            "enable_service_discovery": enable_service_discovery,
            "metrics_path": metrics_path,
            "health_path": health_path,
            "drain_delay": drain_delay,
            "inbound_limit": inbound_limit,
            "start_policy": start_policy,
            "enable_mtls": enable_mtls,
            "cert_path": cert_path,
            "key_path": key_path,
            "ca_path": ca_path,
            "auto_cert_renewal": auto_cert_renewal,
            "cert_authority": cert_authority,
            "security_policies": security_policies,
        }
        code = {name: value for name, value in settings.items() if value is not None}
        if config is not None and code:
            raise ConfigurationError(f"config= is the whole configuration; it can't be joined with {', '.join(code)}")
        self.config = config if config is not None else load_mesh_config(code, file=config_file)
        self.clock: Clock = clock or SystemClock()
        self.observers = Observers((log_changes, *observers))
        self.supervisor = Supervisor(clock=self.clock, observer=self.observers)
        self.health = HealthChecks()
        self.metrics = self._new_metrics(metrics_registry)
        self.tracing = self._new_tracing()
        self.policies = PolicyTable(self.config)
        self.life = NodeLife(self)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock: asyncio.Lock | None = None
        self._resources: AsyncExitStack | None = None
        wires = Wires(self.supervisor, clock=self.clock, observer=self.observers) if wire is None else None
        self._wire: Wire = wires if wire is None else wire  # type: ignore[assignment]  # one of them is there
        self._sources = Sources(
            self.config,
            discovery,
            supervisor=self.supervisor,
            clock=self.clock,
            observer=self.observers,
            lifespan_of=None if wires is None else wires.lifespan_of,
        )
        self.life.waits_unregistered = self._sources.found_by_readiness
        self.life.default_address = self._sources.default_address
        for name, target in fixed.items():
            if name not in plain:
                self.add_service(name, target)
        self.probes = Probes(self._wire, self.supervisor, clock=self.clock, observer=self.observers)
        self._circuits = SharedCircuits(self.namespace, self.service_name, self.supervisor)
        self.states = StateTable(
            self._sources.directory,
            self.policies,
            clock=self.clock,
            observer=self.observers,
            probes=self.probes,
            place=Place(self.service_name, self.config.zone, self.config.client_number),
            circuits=self._circuits,
        )
        self.stack = Stack(self._wire, Parts(self.clock, self.observers, self.service_name, self.tracing))
        self._caller = Caller(self.send, clock=self.clock)
        self._last_answers = LastAnswers(clock=self.clock)
        self.configuration = Configuration(
            self.config, store=config_store, supervisor=self.supervisor, clock=self.clock, open_mesh=self.start
        )
        self.get_config = self.configuration.get
        self.watch_config = self.configuration.watch
        self._live_settings = LiveSettings(
            self, code if config is None else config.model_dump(exclude_unset=True), config_file
        )
        self._watches = ServiceWatches(self._sources.chain, self.supervisor)
        self.watch_service = self._watches.watch
        decorators = Decorators(self)
        self.circuit_breaker = decorators.circuit_breaker
        self.retry_policy = decorators.retry_policy
        self.trace_calls = decorators.trace_calls

    def _new_metrics(self, registry: object | None) -> MeshMetrics | None:
        if not self.config.enable_metrics or not self.config.enabled:
            return None
        from fastapi_mesh.observability.metrics import MeshMetrics  # imported late: only where metrics are on

        metrics = MeshMetrics(self.config.service_name, registry)
        self.observers.add(metrics)
        return metrics

    def _new_tracing(self) -> Tracing | None:
        if not self.config.enable_tracing or not self.config.enabled:
            return None
        from fastapi_mesh.observability.tracing import Tracing  # imported late: only where tracing is on

        return Tracing()

    if not TYPE_CHECKING:  # to a type checker a method that isn't there must stay an error

        def __getattr__(self, name: str) -> object:
            raise missing_attribute(self, name)

    def __repr__(self) -> str:
        state = "started" if self.started else "stopped"
        return f"<ServiceMesh {self.service_name!r} in {self.namespace!r}, {state}>"

    # Who it is

    @property
    def service_name(self) -> str:
        return self.config.service_name or "unnamed"

    @property
    def service_version(self) -> str:
        return self.config.service_version

    @property
    def namespace(self) -> str:
        return self.config.namespace

    @property
    def enabled(self) -> bool:
        """False with `SERVICE_MESH_ENABLED=false`: calls pass straight through and nothing is registered."""
        return self.config.enabled

    # Life

    @property
    def started(self) -> bool:
        """Whether `start` has finished and `stop` has not begun, in an event loop that is still there."""
        return self._resources is not None and self._loop is not None and not self._loop.is_closed()

    async def start(self) -> None:
        """Open discovery and what it needs. Safe to call twice; a call on a mesh that is not started does it too."""
        if self.started:
            return
        if self._lock is None or (self._loop is not None and self._loop.is_closed()):
            self._lock = asyncio.Lock()
        async with self._lock:
            if not self.started:
                await self.stop()  # what an event loop that is gone has left behind
                await self._open()

    async def _open(self) -> None:
        async with AsyncExitStack() as resources:
            self.supervisor.reopen()
            resources.push_async_callback(self.supervisor.aclose)
            resources.push_async_callback(self._wire.aclose)
            await self.configuration.start(resources)
            await self._live_settings.start(resources)
            await self._sources.start(resources)
            await self._watches.start(resources)
            await self._circuits.start(resources)
            resources.callback(self.states.rest)
            open_meshes.add(self)
            resources.callback(open_meshes.discard, self)
            self._loop = asyncio.get_running_loop()
            self._resources = resources.pop_all()
        logger.info("%r", self)

    async def stop(self) -> None:
        """Leave the registry, end what runs in the background and close all connections. Safe to call twice."""
        resources, self._resources = self._resources, None
        if resources is None:
            return
        await resources.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @overload
    def lifespan(self, target: HasState) -> AbstractAsyncContextManager[Mapping[str, object]]: ...
    @overload
    def lifespan(self, target: Lifespan[A]) -> Lifespan[A]: ...
    def lifespan(
        self, target: HasState | Lifespan[A]
    ) -> AbstractAsyncContextManager[Mapping[str, object]] | Lifespan[A]:
        """For `FastAPI(lifespan=mesh.lifespan)`, or `FastAPI(lifespan=mesh.lifespan(inner))` around your own."""
        return lifespan_of(self, target)

    @property
    def ready(self) -> bool:
        """Whether this node should get requests: started, and no list of instances is missing."""
        return self._resources is not None and self._sources.ready

    @property
    def registrations(self) -> tuple[Instance, ...]:
        """What this node keeps registered."""
        return self._sources.registrations

    @property
    def degraded(self) -> Mapping[str, str]:
        """What does not work now: name of the background loop to its last error."""
        return self.supervisor.degraded

    # Calls

    def new_context(
        self, service: str, *, template: str = "", policy: CallPolicy | None = None, deadline: float | None = None
    ) -> CallContext:
        """The context of a new call to `service`: its policy, its state, and the request it is made in."""
        inbound = current_inbound.get()
        context = CallContext(
            self.policies.compiled(service) if policy is None else policy,
            self.states.get(service),
            template=template,
            inbound=inbound,
            deadline=deadline,
        )
        if inbound is not None:
            context.request_id = inbound.request_id
        return context

    async def send(self, request: Request) -> Response:
        """Answer `request` through the stack, starting the mesh first where nobody has.

        The id of the request that is being answered goes along as `x-request-id`.
        """
        if not self.started:
            await self.start()
        request_id = request.context.request_id
        if request_id and not any(name == REQUEST_ID for name, _ in request.headers):
            request.headers.append((REQUEST_ID, request_id.encode("latin-1")))
        return await self.stack(request)

    def get_client(self, service: str) -> httpx2.AsyncClient:
        """An httpx2.AsyncClient whose requests go to `service` through the mesh.

        async with mesh.get_client("payment-service") as client:
            response = await client.post("/payments", json={"amount": 3})

        It returns every HTTP status as a response and raises MeshError subclasses only when there is no answer. It
        shares no cookies, follows no redirects, and reads no proxy settings from the environment.
        """
        from fastapi_mesh.service_mesh.client import new_mesh_client  # imported late: httpx2 costs 0.17 s

        return new_mesh_client(self, service)

    async def discover_service(self, name: str) -> Instance:
        """One instance of `name`, picked as a call would (B21). Raises ServiceDiscoveryError when there is none."""
        from fastapi_mesh.core.message import Request as Probe

        await self._listed(name)
        context = self.new_context(name)
        candidates = context.state.candidates or context.state.instances.value
        if not candidates:
            raise ServiceDiscoveryError(f"no instance of {name!r} is known", service=name)
        probe = Probe(b"GET", name, b"/", [], b"", context)
        return context.state.picker.pick(candidates, probe).instance

    async def discover_services(self, name: str) -> list[Instance]:
        """All known instances of `name`, with their health as the registry and this node see it."""
        return [seen.as_seen() for seen in await self._listed(name)]

    async def _listed(self, name: str) -> tuple[InstanceState, ...]:
        """The instances of `name`, after waiting for the first list if there is none yet."""
        if not self.started:
            await self.start()
        state = self.states.get(name)
        if state.instances.value is not None:
            return state.instances.value
        try:
            async with asyncio.timeout(FIRST_SNAPSHOT):
                return await state.instances.wait_first()
        except TimeoutError:
            raise ServiceDiscoveryError(
                f"the registry has not answered about {state.name!r} within {FIRST_SNAPSHOT:g} s", service=state.name
            ) from None

    # Its own registration

    async def register_service(
        self,
        service_id: str | None = None,
        address: str | None = None,
        port: int | None = None,
        health_check: str | None = None,
        tags: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> Instance:
        """Make this node known under `service_id` (default: made from name, address and port), and keep it known.

        `address` and `port` default to the configured ones, then to the socket this process listens on. A registry
        that can't be reached is tried again in the background. Raises ConfigurationError when no port is known.
        """
        if not self.started:
            await self.start()
        return await self._sources.register(service_id, address, port, health_check, tuple(tags), dict(metadata or {}))

    async def deregister(self) -> None:
        """Leave the registry now, and stay running (drain). Safe to call twice."""
        await self._sources.deregister()

    # Policies and parts

    def policy_of(self, service: str) -> ServicePolicy:
        """The policy in force for `service`."""
        return self.policies.policy_of(service)

    def breaker_of(self, service: str) -> Breaker | None:
        """The circuit breaker of `service`, None where it is off."""
        return self.states.get(service).breaker

    def add_service(self, name: str, target: ServiceTarget) -> None:
        """Fixed instances of a service, looked up before discovery; replaces those given before."""
        self._sources.add(name, target)

    @property
    def fixed_services(self) -> tuple[str, ...]:
        """The services that were given fixed instances, sorted."""
        return self._sources.static.services()

    @property
    def finds_services(self) -> bool:
        """Whether there is a registry, which may know services that nobody gave."""
        return bool(self._sources.backends)

    @property
    def lists_services(self) -> bool:
        """Whether `watch_services` tells of all services: not so if a registry of your own has no such method."""
        return self._sources.lists_services

    def watch_services(self) -> AsyncIterator[tuple[KnownService, ...]]:
        """Which services there are, fixed ones and discovered: at once, and whenever it changes (`ServiceList`)."""
        return self._sources.chain.watch_services()

    def health_check(self, check: Callable[[], T]) -> Callable[[], T]:
        """Decorator: `check` (async or not) says how this node is; its answer decides readiness and `/health`."""
        self.health.register(check)
        return check

    # What it has seen

    async def get_metrics(self) -> MeshStatistics:
        """A snapshot of the calls made by this process: `.total_calls`, `.success_rate` (%), `.avg_latency` (ms)."""
        return gather(self.states.all())

    @property
    def records(self) -> deque[CallRecord]:
        """The decision records of the last 200 calls, newest last."""
        return self.stack.records

    def explain(self, trace_id: str) -> list[CallRecord]:
        """The records of the calls made under a trace id or request id."""
        return [record for record in self.records if trace_id in (record.trace_id, record.request_id)]
