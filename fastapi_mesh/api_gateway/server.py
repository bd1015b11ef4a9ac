"""Runs a gateway as a process of its own: its sockets, its TLS, its limits, and how it begins and ends.

uvicorn with httptools does the serving (`http_server`). What can't start is told in four lines, with exit code 3, as
for a node. On SIGTERM readiness turns to 503 first, and the server goes on for `drain_delay`, so that whoever sends it
requests has heard of it when its port closes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway import listen
from fastapi_mesh.api_gateway.access_log import own_handlers
from fastapi_mesh.api_gateway.observe import UNMATCHED
from fastapi_mesh.api_gateway.reserved import reserved_paths
from fastapi_mesh.api_gateway.websocket.serving import server_options
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.service_mesh.doors import explain_start

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    import uvicorn

    from fastapi_mesh.api_gateway.gateway import APIGateway
    from fastapi_mesh.api_gateway.life import Life
    from fastapi_mesh.api_gateway.metrics_server import MetricsServer
    from fastapi_mesh.api_gateway.tls import Material
    from fastapi_mesh.config.gateway import GatewayConfig

logger = logging.getLogger("fastapi_mesh.gateway")
console = logging.getLogger("uvicorn.error")
"""uvicorn's own logger, which it shows on the terminal by itself."""

NEEDS_SERVER = "running a gateway by itself needs uvicorn: pip install 'fastapi-mesh[server]'"
CANT_START = 3
"""Exit code, as uvicorn's for a lifespan that failed."""
STANDALONE_ONLY = ("ssl_cert", "max_connections", "metrics_port", "keepalive_timeout", "workers")


class _NoTruncations(logging.Filter):
    """Leaves out uvicorn's traceback for a service that died in the middle of an answer: we have logged that line."""

    def filter(self, record: logging.LogRecord) -> bool:
        from fastapi_mesh.api_gateway.forward import TruncatedResponseError

        return record.exc_info is None or not isinstance(record.exc_info[1], TruncatedResponseError)


class Standalone:
    """A gateway's own server. `sockets` are bound ones that somebody else has made.

    In a worker process `on_ready` is called when it serves, and the metrics port is its parent's, for all workers.
    """

    def __init__(
        self,
        gateway: APIGateway,
        sockets: list[socket.socket] | None = None,
        *,
        on_ready: Callable[[], object] | None = None,
    ) -> None:
        self._gateway = gateway
        self._given = sockets
        self._on_ready = on_ready
        self._supervisor = Supervisor()
        self._material: Material | None = None
        self._metrics: MetricsServer | None = None
        self._metrics_sockets: list[socket.socket] = []
        self._sockets: list[socket.socket] = []
        self._server: uvicorn.Server | None = None

    async def serve(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop`. Raises SystemExit(3), after saying why, when that can't begin."""
        truncations = _NoTruncations()
        console.addFilter(truncations)
        try:
            with own_handlers(self._gateway.config):
                self._server = self._new_server()
                await self._server.serve(self._sockets)
        except (ConfigurationError, OSError, ImportError) as error:
            console.error("%s", explain_start("the gateway", error))
            raise SystemExit(CANT_START) from error
        finally:
            console.removeFilter(truncations)
            self._ignore_hangup()
            await self._supervisor.aclose()
            if self._metrics is not None:
                await self._metrics.aclose()
            listen.close([*self._sockets, *self._metrics_sockets])

    def stop(self) -> None:
        """Let `serve` finish the requests under way and return."""
        if self._gateway.life is not None:
            self._gateway.life.end_streams()  # the mesh may have other users
        if self._server is not None:
            self._server.should_exit = True

    def opened(self, life: Life) -> None:
        """The gateway has opened, and no request has come yet."""
        life.mesh.life.waits_unregistered = True
        if self._gateway.config.metrics_port is not None:
            life.reserved.pop(life.mesh.config.metrics_path, None)

    def _new_server(self) -> uvicorn.Server:
        """All that can be wrong is found here, before anything is served."""
        try:
            import uvicorn

            from fastapi_mesh.api_gateway.http_server import GatewayServer, Limits, new_protocol
        except ImportError as error:
            raise ImportError(NEEDS_SERVER) from error
        config = self._gateway.config
        if config.workers > 1 and self._on_ready is None:
            raise ConfigurationError(
                f"workers: {config.workers} processes can't be made from inside one; start them with "
                "`fastapi-mesh gateway --config FILE --workers N`, or --app MODULE:NAME for a gateway made in code"
            )
        if config.ssl_cert is not None:
            from fastapi_mesh.api_gateway.tls import Material

            self._material = Material(config)
        self._sockets = listen.bind(config.host, config.port) if self._given is None else self._given
        if config.metrics_port is not None and self._on_ready is None:
            host = config.metrics_host or config.host
            self._metrics_sockets = listen.bind(host, config.metrics_port, setting="metrics_port")
        limits = Limits(config.max_connections, config.max_header_size, config.header_timeout, self._refused)
        settings = uvicorn.Config(
            self._gateway,
            http=new_protocol(limits),
            **server_options(config),
            lifespan="on",
            proxy_headers=False,  # who is trusted is decided by `trusted_proxies`, from the transport's own peer
            access_log=False,  # 30 us per request
            server_header=False,
            backlog=config.backlog,
            timeout_keep_alive=config.keepalive_timeout,  # type: ignore[arg-type] # it goes to call_later
            timeout_graceful_shutdown=math.ceil(config.shutdown_timeout),
        )
        settings.load()
        settings.ssl = None if self._material is None else self._material.context
        return GatewayServer(settings, on_start=self._started)

    async def _started(self) -> None:
        config, life = self._gateway.config, self._gateway.life
        assert life is not None, "its lifespan has opened it"
        if self._metrics_sockets:
            from fastapi_mesh.api_gateway.metrics_server import MetricsServer

            answers = reserved_paths(life.mesh, metrics=config.enable_metrics)
            self._metrics = MetricsServer({path: partial(each, life.mesh) for path, each in answers.items()})
            await self._metrics.start(self._metrics_sockets)
        if self._material is not None:
            material = self._material
            self._supervisor.keep(lambda: material.watch(life.mesh.clock), name="tls-material")
        self._hear_hangup()
        if self._on_ready is None:
            console.info("%s", line_of(config, self._sockets, self._metrics_sockets))
        else:
            self._on_ready()

    def _refused(self, status: int, reason: str) -> None:
        """A refusal before there is a request that the gateway could count."""
        life = self._gateway.life
        if life is not None and life.mesh.metrics is not None and self._gateway.config.enable_metrics:
            life.mesh.metrics.gateway.local(UNMATCHED, reason)

    # SIGHUP, which daemons take for "read your settings again".

    def _hear_hangup(self) -> None:
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)

    def _ignore_hangup(self) -> None:
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)

    def _reload(self) -> None:
        logger.info("SIGHUP: reading the settings again")
        if self._material is not None:
            self._material.renew()
        self._supervisor.start(self._reload_gateway(), name="reload")

    async def _reload_gateway(self) -> None:
        with suppress(ConfigurationError):  # the log says why
            await self._gateway.reload()


def line_of(config: GatewayConfig, sockets: list[socket.socket], metrics: list[socket.socket]) -> str:
    """What is said once it serves."""
    scheme = "http" if config.ssl_cert is None else "https"
    where = ", ".join(listen.url_of(each, scheme) for each in sockets)
    text = f"gateway on {where} (routes: {len(config.routes)}, services: {len(config.services)})"
    return f"{text}, metrics on {listen.url_of(metrics[0], 'http')}/metrics" if metrics else text


def warn_of_unused(gateway: APIGateway) -> None:
    """Name the settings of the gateway's own server where it is in another's application or server (B15)."""
    given = [name for name in STANDALONE_ONLY if name in gateway.config.model_fields_set]
    if given:
        logger.warning(
            "%s: used by gateway.start() and `fastapi-mesh gateway` only; here the server that runs the application "
            "has its own settings%s",
            ", ".join(given),
            ", and metrics are on the gateway's own path" if "metrics_port" in given else "",
        )
