"""APIGateway: the routes, services and settings of a gateway, an ASGI application by itself and a router for yours.

It holds the configuration and the doors; what is open lives in `life`, what happens to a request is in `forward`.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway import standalone
from fastapi_mesh.api_gateway.around import Around
from fastapi_mesh.api_gateway.cache.door import GatewayCache
from fastapi_mesh.api_gateway.cors import preflight_route
from fastapi_mesh.api_gateway.extensions import Extensions
from fastapi_mesh.api_gateway.in_code import SetUpInCode
from fastapi_mesh.api_gateway.life import Life, mesh_of
from fastapi_mesh.api_gateway.reload import Reloads, Settings
from fastapi_mesh.api_gateway.router import GatewayRouter
from fastapi_mesh.api_gateway.routes import new_table
from fastapi_mesh.api_gateway.server import Standalone, warn_of_unused
from fastapi_mesh.api_gateway.slices import Slices
from fastapi_mesh.api_gateway.target import locate
from fastapi_mesh.config.later import missing_attribute
from fastapi_mesh.config.load import load_gateway_config
from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.service_mesh.doors import explain_start

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from pathlib import Path

    from fastapi_mesh.api_gateway.reload import Reload
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.api_gateway.slices import Steps
    from fastapi_mesh.api_gateway.table import RouteTable
    from fastapi_mesh.api_gateway.target import Place
    from fastapi_mesh.config.gateway import GatewayConfig
    from fastapi_mesh.config.layers import SettingsLayer
    from fastapi_mesh.configstore.base import ConfigStore
    from fastapi_mesh.core.instance import ASGIApp, Message, Receive, Send
    from fastapi_mesh.service_mesh.mesh import ServiceMesh


class APIGateway(SetUpInCode):
    """A gateway: an ASGI application of its own, `gateway.router` for yours, `await gateway.start()` for a process.

        gateway = APIGateway(services={"user-service": "http://127.0.0.1:8001"})
        gateway.configure_routes([{"path": "/api/v1/users/*", "service": "user-service", "methods": ["GET"]}])
        app.include_router(gateway.router)

    What is not given comes from MESH_GATEWAY__* and GATEWAY_* variables, then from `config_file`, then from the
    defaults: `host` "0.0.0.0", `port` 8080, `request_timeout` 30 s for a whole request and `upstream_timeout` 25 s for
    an attempt (both up to the response head), `max_retries` 3 extra attempts, waits of up to 0.1 s growing by
    `retry_backoff` 2.0 with full jitter, no `trusted_proxies`. `prefix` is a path before all routes, not sent on.
    `config` is a whole GatewayConfig instead.

    The services are called through `service_mesh`, else through the application's own mesh, else through a private
    one. Raises ConfigurationError with all problems at once; routes and services are checked against each other when
    the gateway opens, so that they can be configured in any order.
    """

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        services: Mapping[str, str | Sequence[str] | ASGIApp] | None = None,
        *,
        service_mesh: ServiceMesh | None = None,
        config: GatewayConfig | None = None,
        config_file: str | None = None,
        prefix: str | None = None,
        request_timeout: float | None = None,
        upstream_timeout: float | None = None,
        max_retries: int | None = None,
        retry_backoff: float | None = None,
        trusted_proxies: Iterable[str] | None = None,
        via: str | None = None,
        enable_metrics: bool | None = None,
        **later: object,
    ) -> None:
        given = dict(services or {})
        self._apps = {name: target for name, target in given.items() if callable(target)}
        self._file = config_file
        self._env: Mapping[str, str] | None = None
        self._code: dict[str, object] = {
            "host": host,
            "port": port,
            "services": {name: target for name, target in given.items() if not callable(target)} or None,
            "prefix": prefix,
            "request_timeout": request_timeout,
            "upstream_timeout": upstream_timeout,
            "max_retries": max_retries,
            "retry_backoff": retry_backoff,
            "trusted_proxies": None if trusted_proxies is None else list(trusted_proxies),
            "via": via,
            "enable_metrics": enable_metrics,
            **later,
        }
        if config is not None:
            if doubled := [name for name, value in self._code.items() if value is not None]:
                raise ConfigurationError(
                    f"config= is the whole configuration; it can't be joined with {', '.join(doubled)}"
                )
            self._env = {}
            self._code = {name: getattr(config, name) for name in config.model_fields_set}
        settings = Settings(lambda: self.config, lambda: self._code, partial(self._load, None), self._take_in_slices)
        self._reloads = Reloads(settings, config_file, env=config is None)
        self.config = self._load(self._code)
        self._table = new_table(self.config.routes, self.config)
        self._extensions = Extensions()
        self._around: Around | None = None
        self._slices = Slices()
        self._prefix = self.config.prefix.encode()
        self._given_mesh = service_mesh
        self._added: set[str] = set()
        self._life: Life | None = None
        self._lock: asyncio.Lock | None = None
        self._server: Standalone | None = None
        self.cache = GatewayCache(lambda: None if self._life is None else self._life.cache)
        self.router = GatewayRouter(self)

    if not TYPE_CHECKING:  # to a type checker a method that isn't there must stay an error

        def __getattr__(self, name: str) -> object:
            raise missing_attribute(self, name)

    def __repr__(self) -> str:
        return f"<APIGateway, {len(self._table)} routes, {'closed' if self._life is None else 'open'}>"

    @property
    def life(self) -> Life | None:
        """What an open gateway has: its mesh, its data path and their counters. None while it is closed."""
        return self._life

    def statistics(self) -> dict[str, int]:
        """Counters since the gateway opened; see `Forward.statistics`."""
        return {} if self._life is None else self._life.forward.statistics()

    # Configuration

    def _change(self, code: Mapping[str, object], extensions: Extensions | None = None) -> None:
        """Make changed settings count: all of them, or none where something is wrong with any."""
        self._take(self._load(code), extensions)
        self._code = dict(code)

    def _take(self, config: GatewayConfig, extensions: Extensions | None = None) -> None:
        self._slices.give_up()
        for _ in self._taking(config, extensions):
            pass

    async def _take_in_slices(self, config: GatewayConfig, at_once: bool) -> bool:
        """The same while requests go on; False where other settings were taken meanwhile, and these were not."""
        if at_once:
            self._take(config)
            return True
        before = self.config
        table = await asyncio.to_thread(new_table, config.routes, config)
        return self.config is before and await self._slices.run(self._taking(config, None, table))

    def _taking(
        self, config: GatewayConfig, extensions: Extensions | None, table: RouteTable[Route] | None = None
    ) -> Steps:
        extensions = self._extensions if extensions is None else extensions
        around = self._around
        if extensions.foreign != self._extensions.foreign:
            around = Around(self, extensions.foreign) if extensions.foreign else None
        if table is None:
            table = self._table if config == self.config else new_table(config.routes, config)
        if self._life is not None:
            table = table.over(self._life.dynamic_table(config))
            yield from self._life.taking(config, table.routes, extensions)
        self.config, self._table, self._extensions, self._around = config, table, extensions, around
        self._prefix = config.prefix.encode()

    def _services_changed(self) -> None:
        """Dynamic routes follow the services."""
        if self._life is not None and self.config.dynamic_routing:
            self._take(self.config)

    def _load(
        self, code: Mapping[str, object] | None, stored: SettingsLayer | None = None, file: Path | None = None
    ) -> GatewayConfig:
        """The settings by all sources; what isn't given is as it is now."""
        code = self._code if code is None else code
        stored = self._reloads.stored if stored is None else stored
        return load_gateway_config(code, file=file or self._file, env=self._env, stored=stored)

    async def reload(self) -> Reload:
        """Read the file and the variables anew, and take over what has changed: all of it, or nothing.

        Settings given in code keep winning. What belongs to the server (`host`, `port`, TLS, `workers`...) keeps its
        value until a restart; it is named in the result's `kept`, and in the log. Requests under way and open
        WebSockets go on. Raises ConfigurationError, after logging it, when the new settings are not valid.
        """
        return await self._reloads.run()

    def use_config_store(self, store: ConfigStore, key: str = "gateway") -> None:
        """Take settings from a store of your own, over those of the file; for what `config_store` can't name.

        Takes effect when the gateway opens.
        """
        self._reloads.use(store, key)

    # Requests

    def find(self, scope: Message) -> Place | None:
        """Where a request or a WebSocket points in this gateway; None when it is not one of its paths."""
        place = locate(scope, self._prefix)
        if place is not None:
            method = scope.get("method", "GET")  # a WebSocket's scope has none, and its handshake is a GET
            if self._life is not None and self._life.doors:
                place.route = self._life.doors.find(place.path, method)
                if place.route is not None:
                    return place
            place.route = self._table.find(place.path, method, scope, place.authority)
            if method == "OPTIONS":
                find = partial(self._table.find, place.path, scope=scope, authority=place.authority)
                place.route = preflight_route(scope, self.config.cors, find) or place.route
            if place.route is not None:
                return place
        return None

    async def answer(self, scope: Message, receive: Receive, send: Send, place: Place) -> None:
        """Answer what `find` found."""
        if self._around is not None:
            await self._around(scope, receive, send, mounted=True)
        else:
            await self.answer_found(scope, receive, send, place)

    async def answer_found(self, scope: Message, receive: Receive, send: Send, place: Place) -> None:
        """The same inside of foreign middleware."""
        life = self._life or await self.open_in(scope)
        await (life.websockets if scope["type"] == "websocket" else life.forward)(scope, receive, send, place)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """The gateway as an ASGI application: `/health`, `/metrics`, then the routes, else 404."""
        if self._around is not None and scope["type"] != "lifespan":
            await self._around(scope, receive, send, mounted=False)
        elif scope["type"] == "http":
            await standalone.serve_http(self, scope, receive, send)
        else:
            await standalone.serve_other(self, scope, receive, send)

    # Life

    async def open_in(self, scope: Message) -> Life:
        """Open, unless it is, for the application whose scope this is, adopting its mesh."""
        return await self._open(mesh_of(scope))

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """Open while the application runs; `include_router` makes this part of its lifespan."""
        async with AsyncExitStack() as open_gateway:
            try:
                await open_gateway.enter_async_context(self.opened({"app": app}))
            except Exception as error:  # whatever it is, it ends the start, and is explained below its traceback
                error.add_note(explain_start("the gateway", error))
                raise
            yield

    @asynccontextmanager
    async def opened(self, scope: Message) -> AsyncIterator[None]:
        """Open inside the block. Of several doors the first one to open closes it."""
        was_open = self._life is not None
        await self.open_in(scope)
        try:
            yield
        finally:
            if not was_open:
                await self.aclose()

    async def aclose(self) -> None:
        """Close, and stop the mesh if opening started it. Safe to call twice."""
        self._slices.give_up()
        life, self._life, self._lock = self._life, None, None
        self._table = self._table.over(None)
        await self._reloads.aclose()
        if life is not None:
            await life.aclose()

    async def _open(self, found_mesh: ServiceMesh | None) -> Life:
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            if self._life is None:
                try:
                    await self._reloads.prepare()
                    try:
                        life = self._new_life(found_mesh)
                    except ConfigurationError as error:
                        await self._reloads.fall_back(error)
                        life = self._new_life(found_mesh)
                    await life.start()
                except BaseException:
                    await self._reloads.aclose()
                    raise
                self._life = life
                self._services_changed()
                self._reloads.start(life.mesh)
                if self._server is not None:
                    self._server.opened(life)
                else:
                    warn_of_unused(self)
            return self._life

    def _new_life(self, found_mesh: ServiceMesh | None) -> Life:
        return Life(
            self.config,
            self._table.routes,
            self._extensions,
            apps=self._apps,
            mesh=self._given_mesh or found_mesh,
            added=self._added,
            services_changed=self._services_changed,
        )

    async def start(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on `host` and `port` until SIGTERM or SIGINT, or until `stop`. Needs the `server` extra.

        `sockets` are bound ones to serve on instead, which are closed at the end. What can't start (a port in use, TLS
        files that are no good, wrong settings) is said on the console, and ends in SystemExit with code 3.
        """
        await self._serve(Standalone(self, sockets))

    async def _serve(self, server: Standalone) -> None:
        if self._server is not None:
            raise RuntimeError("this gateway is running already")
        self._server = server
        try:
            await server.serve()
        finally:
            self._server = None

    async def stop(self) -> None:
        """Let `start` finish the requests under way and return; event streams and WebSockets are ended."""
        if self._server is not None:
            self._server.stop()
