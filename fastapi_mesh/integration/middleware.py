"""The middleware that makes an application a node of the mesh: `app.add_middleware(ServiceMeshMiddleware, ...)`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from typing import TYPE_CHECKING

from fastapi_mesh.config.problems import suggestion
from fastapi_mesh.core.problem import problem
from fastapi_mesh.exceptions import ConfigurationError, MeshError
from fastapi_mesh.integration.lifespan import run_lifespan
from fastapi_mesh.integration.node import Node
from fastapi_mesh.integration.pages import send_answer
from fastapi_mesh.integration.unusable import Unusable
from fastapi_mesh.service_mesh.doors import adopt, explain_start
from fastapi_mesh.service_mesh.mesh import ServiceMesh

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

    from fastapi_mesh.config.policies import BulkheadPolicy
    from fastapi_mesh.service_mesh.mesh import ServiceTarget

logger = logging.getLogger("fastapi_mesh.integration")


class ServiceMeshMiddleware:
    """Runs a ServiceMesh for the application's lifetime and tells each request about it (pure ASGI).

        app = FastAPI()
        app.add_middleware(ServiceMeshMiddleware, service_name="user-service")

    It starts the mesh before the application's own startup, registers once the port answers, drains on SIGTERM, keeps
    the inbound request id, deadline and trace for the calls made in a request, answers `metrics_path` and
    `health_path` (with /live and /ready) where the application says 404, and turns a MeshError that leaves a handler
    into problem+json (RFC 9457). Where no lifespan runs (`--lifespan off`, a mounted application) the first request
    starts it.

    `mesh` is one made elsewhere; then the settings belong to it and none may be given here. Each setting that is None
    comes from `MESH_*`, then from `config_file`, then from the defaults: tracing, metrics and discovery on, "/metrics",
    "/health", a `drain_delay` of 2.0 seconds, `start_policy` "degraded". `trust_request_id=False` replaces an inbound
    `x-request-id`. A handler is cancelled when the deadline of its request passes, and when its client goes away: that
    of GET, HEAD, OPTIONS and TRACE, with `cancel_on_disconnect=True` of every method. Options whose part isn't in this
    version are refused when the application starts.
    """

    if not TYPE_CHECKING:  # a type checker knows the keywords below, and refuses others itself

        def __new__(cls, app: ASGIApp, **settings: object) -> object:
            """Tell the server of unknown keywords: raising here would not reach it (see `Unusable`)."""
            known = list(inspect.signature(cls.__init__).parameters)[2:]
            problems = [f"{name}: unknown key{suggestion(name, known)}" for name in settings if name not in known]
            if problems:
                error = ConfigurationError(problems=problems, source="ServiceMeshMiddleware")
                return Unusable(app, settings.get("service_name"), error)
            return super().__new__(cls)

    def __init__(
        self,
        app: ASGIApp,
        *,
        service_name: str | None = None,
        service_version: str | None = None,
        enable_tracing: bool | None = None,
        enable_metrics: bool | None = None,
        enable_service_discovery: bool | None = None,
        mesh: ServiceMesh | None = None,
        namespace: str | None = None,
        address: str | None = None,
        port: int | None = None,
        zone: str | None = None,
        client_number: int | None = None,
        services: Mapping[str, ServiceTarget] | None = None,
        discovery_backend: str | Sequence[str] | None = None,
        discovery_config: Mapping[str, object] | Sequence[Mapping[str, object]] | None = None,
        config_file: str | None = None,
        metrics_path: str | None = None,
        health_path: str | None = None,
        drain_delay: float | None = None,
        inbound_limit: BulkheadPolicy | Mapping[str, object] | None = None,
        start_policy: str | None = None,
        trust_request_id: bool = True,
        cancel_on_disconnect: bool = False,
        enable_mtls: bool | None = None,
        cert_path: str | None = None,
        key_path: str | None = None,
        ca_path: str | None = None,
        auto_cert_renewal: bool | None = None,
        cert_authority: str | None = None,
        security_policies: Mapping[str, object] | None = None,
    ) -> None:
        self._app = app
        self._given = mesh
        self._trust_request_id = trust_request_id
        self._cancel_on_disconnect = cancel_on_disconnect
        self._make = functools.partial(
            ServiceMesh,
            service_name=service_name,
            service_version=service_version,
            enable_tracing=enable_tracing,
            enable_metrics=enable_metrics,
            enable_service_discovery=enable_service_discovery,
            namespace=namespace,
            address=address,
            port=port,
            zone=zone,
            client_number=client_number,
            services=services,
            discovery_backend=discovery_backend,
            discovery_config=discovery_config,
            config_file=config_file,
            metrics_path=metrics_path,
            health_path=health_path,
            drain_delay=drain_delay,
            inbound_limit=inbound_limit,
            start_policy=start_policy,
            enable_mtls=enable_mtls,
            cert_path=cert_path,
            key_path=key_path,
            ca_path=ca_path,
            auto_cert_renewal=auto_cert_renewal,
            cert_authority=cert_authority,
            security_policies=security_policies,
        )
        self._node: Node | None = None
        self._opening: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(self._app, scope, receive, send, functools.partial(self._open, scope), self._name)
            return
        node = self._node
        if node is None or not node.mesh.life.is_open:
            try:
                node = await self._open_late(scope)
            except MeshError as error:
                if scope["type"] != "http":
                    raise
                logger.error("%s", explain_start(self._name, error))
                await send_answer(scope, send, problem(error))
                return
        await node(scope, receive, send)

    @property
    def _name(self) -> str | None:
        name: str | None = self._make.keywords["service_name"]
        return self._given.service_name if self._given is not None else name

    async def _open(self, scope: Scope) -> tuple[ServiceMesh, bool]:
        """Make the mesh if that is our part, and open it; whether we own it. Settings are read here and not earlier,
        because only from a lifespan can a server be told that they are wrong.
        """
        application = scope.get("app")
        mesh = self._choose(getattr(getattr(application, "state", None), "mesh", None))
        adopt(mesh, application)
        owner = await mesh.life.open()
        if self._node is None or self._node.mesh is not mesh:
            self._node = Node(
                self._app,
                mesh,
                trust_request_id=self._trust_request_id,
                cancel_on_disconnect=self._cancel_on_disconnect,
            )
        return mesh, owner

    def _choose(self, present: object) -> ServiceMesh:
        """The mesh given to us, else the application's if nothing else was asked for, else a new one."""
        if self._node is not None:
            return self._node.mesh
        settings = [name for name, value in self._make.keywords.items() if value is not None]
        if self._given is not None:
            if settings:
                raise ConfigurationError(
                    f"mesh: it is complete, so {', '.join(settings)} can't be given beside it; give them to ServiceMesh"
                )
            return self._given
        if isinstance(present, ServiceMesh) and not settings:
            return present
        return self._make()

    async def _open_late(self, scope: Scope) -> Node:
        """No lifespan ran: the first request starts the mesh, others wait for it."""
        loop = asyncio.get_running_loop()
        if self._opening is None or self._opening[0] is not loop:
            self._opening = loop, asyncio.Lock()
        async with self._opening[1]:
            if self._node is None or not self._node.mesh.life.is_open:
                mesh, _ = await self._open(scope)
                mesh.life.saw_server(scope.get("server"))
                mesh.life.serving()
        assert self._node is not None, "opening makes it"
        return self._node
