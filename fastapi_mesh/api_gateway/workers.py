"""The parent of a gateway's worker processes: makes their sockets, replaces those that die, passes signals on.

Each worker has a listening socket of its own (SO_REUSEPORT), among which the kernel shares connections out evenly. The
parent keeps them open, so that connections which wait at one whose worker has died are served by the next (as nginx's
master does). Where the kernel doesn't share (not Linux), all accept from one socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway import listen
from fastapi_mesh.api_gateway.access_log import own_handlers
from fastapi_mesh.api_gateway.metrics_server import MetricsServer
from fastapi_mesh.api_gateway.run import CANT_START
from fastapi_mesh.api_gateway.server import line_of
from fastapi_mesh.api_gateway.worker import READY
from fastapi_mesh.config.mesh import MeshConfig
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.observability.registry import MULTIPROCESS, forget_process, render_workers

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.run import Options
    from fastapi_mesh.config.gateway import GatewayConfig

logger = logging.getLogger("fastapi_mesh.gateway")

STEADY = 5.0
"""Seconds that a worker must have lived for its successor to be started at once."""
FIRST_BACKOFF, MAX_BACKOFF = 0.2, 10.0
"""Seconds before the successor of one that died young; doubled each time."""
DRAIN_ALLOWANCE = 15.0
"""Seconds, besides `shutdown_timeout`, that a worker may take for its drain before it is killed."""

LAST_WORDS = 1.0
"""Seconds in which a worker that hangs may write where it stands."""


class Slot:
    """One place for a worker: its sockets, and the process that has them now."""

    def __init__(self, number: int, sockets: list[socket.socket]) -> None:
        self.number = number
        self.sockets = sockets
        self.process: asyncio.subprocess.Process | None = None
        self.ready = asyncio.Event()
        self.starts = 0


class Workers:
    """Runs `config.workers` processes until SIGTERM or SIGINT. SIGHUP makes all of them reload."""

    def __init__(self, config: GatewayConfig, options: Options) -> None:
        """Binds the sockets. Raises ConfigurationError, as `listen.bind` and the TLS files do."""
        self._config = config
        self._options = options
        if config.ssl_cert is not None:
            from fastapi_mesh.api_gateway.tls import Material

            Material(config)  # whether it is good; the workers have their own
        self._all: list[socket.socket] = []
        self._metrics_sockets: list[socket.socket] = []
        self._slots = self._new_slots()
        if config.metrics_port is not None:
            host = config.metrics_host or config.host
            self._metrics_sockets = listen.bind(host, config.metrics_port, setting="metrics_port")
        self._supervisor = Supervisor()
        self._folder = _new_folder()
        self._stopping = asyncio.Event()
        self._code = 0

    def _new_slots(self) -> list[Slot]:
        config = self._config
        first = listen.bind(config.host, config.port)  # alone, which a socket that may be shared would not notice
        if sys.platform != "linux":
            self._all = first
            return [Slot(number, first) for number in range(config.workers)]
        port = first[0].getsockname()[1]
        listen.close(first)
        slots = []
        for number in range(config.workers):
            slots.append(Slot(number, listen.bind(config.host, port, reuse_port=True)))
            self._all += slots[-1].sockets
        return slots

    async def run(self) -> int:
        """Gives the exit code: 3 when no worker can start."""
        with own_handlers(self._config):
            try:
                return await self._run()
            finally:
                await self._supervisor.aclose()
                listen.close([*self._all, *self._metrics_sockets])
                shutil.rmtree(self._folder, ignore_errors=True)

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._send, signal.SIGHUP)
        if MULTIPROCESS not in os.environ:
            (self._folder / "metrics").mkdir()
            os.environ[MULTIPROCESS] = str(self._folder / "metrics")
        metrics = MetricsServer(
            {self._metrics_path: _metrics, **dict.fromkeys(("/health", "/health/ready"), self._health)}
        )
        await metrics.start(self._metrics_sockets)
        try:
            running = [self._supervisor.start(self._keep(slot), name=f"worker-{slot.number}") for slot in self._slots]
            self._supervisor.start(self._announce(), name="start-line")
            await self._stopping.wait()
            await self._end(running)
        finally:
            await metrics.aclose()
        return self._code

    @property
    def _metrics_path(self) -> str:
        return str(os.environ.get("MESH_METRICS_PATH") or MeshConfig.model_fields["metrics_path"].default)

    async def _announce(self) -> None:
        for slot in self._slots:
            await slot.ready.wait()
        text = line_of(self._config, self._slots[0].sockets, self._metrics_sockets)
        count = len(self._slots)
        sys.stderr.write(
            f"{text}; {count} workers, each a node of its own: breakers and what is kept in memory are per worker\n"
        )

    # Workers

    async def _keep(self, slot: Slot) -> None:
        """Have a worker in `slot`, always; one that can't even start once ends the whole program."""
        deaths = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code, was_ready = await self._live(slot)
            if self._stopping.is_set():
                return
            if code == CANT_START and not was_ready and slot.starts == 1:
                self._code = CANT_START
                self._stop()
                return
            deaths = 0 if time.monotonic() - began >= STEADY else deaths + 1
            delay = 0.0 if deaths == 0 else min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** min(deaths - 1, 10))
            logger.error("worker %d ended with %d; another takes its place in %.1f s", slot.number, code, delay)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    async def _live(self, slot: Slot) -> tuple[int, bool]:
        """One process from start to end: its exit code, and whether it has served."""
        ours, theirs = socket.socketpair()
        descriptors = [each.fileno() for each in slot.sockets]
        command = ["-m", "fastapi_mesh.api_gateway.worker", *self._options.arguments()]
        command += ["--listen", *map(str, descriptors), "--parent", str(theirs.fileno())]
        command += ["--last-good", str(self._folder / "last-good")]
        slot.starts += 1
        with ours:
            with theirs:
                # A session of its own, so that Ctrl-C reaches the workers through us only, and once.
                slot.process = process = await asyncio.create_subprocess_exec(
                    sys.executable, *command, pass_fds=[*descriptors, theirs.fileno()], start_new_session=True
                )
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                if self._stopping.is_set():
                    process.terminate()
                was_ready = await self._hear(slot, process, reader)
                code = await process.wait()
            finally:
                writer.close()
        slot.ready.clear()
        slot.process = None
        forget_process(process.pid)
        return code, was_ready

    async def _hear(self, slot: Slot, process: asyncio.subprocess.Process, reader: asyncio.StreamReader) -> bool:
        """Hear that a worker serves, then that it is alive, until it ends; one that is silent for too long is killed.

        In two halves, as what was sent while this process itself stood still is read after the first. Gives whether it
        has served.
        """
        if await reader.readline() != READY:
            return False
        slot.ready.set()
        limit, silent = self._config.worker_timeout, 0
        while silent < 2:
            try:
                async with asyncio.timeout(None if limit is None else limit / 2):
                    if not await reader.readline():
                        return True
                silent = 0
            except TimeoutError:
                silent += 1
        logger.error("worker %d has given no sign of life for %g s and is killed", slot.number, limit)
        slot.ready.clear()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGABRT)  # it writes where it stands, if it can
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), LAST_WORDS)
            process.kill()
        return True

    def _send(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    slot.process.send_signal(number)

    def _stop(self) -> None:
        """The first time politely; the second time the workers drop what they do."""
        self._send(signal.SIGTERM if not self._stopping.is_set() else signal.SIGINT)
        self._stopping.set()

    async def _end(self, running: list[asyncio.Task[None]]) -> None:
        _, late = await asyncio.wait(running, timeout=self._config.shutdown_timeout + DRAIN_ALLOWANCE)
        if late:
            logger.error("%d workers did not end in time and are killed", len(late))
            self._send(signal.SIGKILL)
            await asyncio.wait(late)

    # The metrics port

    async def _health(self, accept: str) -> tuple[int, bytes, bytes]:
        """Whether all workers serve."""
        workers = {str(slot.number): {"ready": slot.ready.is_set(), "starts": slot.starts} for slot in self._slots}
        good = all(slot.ready.is_set() for slot in self._slots) and not self._stopping.is_set()
        document = {"status": "healthy" if good else "unhealthy", "workers": workers}
        return 200 if good else 503, b"application/json", json.dumps(document).encode()


def _new_folder() -> Path:
    """Where the workers put their counts and what was last good. Raises ConfigurationError where nothing can be put."""
    try:
        return Path(tempfile.mkdtemp(prefix="fastapi-mesh-gateway-"))
    except OSError as error:
        problem = f"workers: more than one need a folder for temporary files (TMPDIR, else /tmp): {error.strerror}"
        raise ConfigurationError(problems=[problem]) from error


async def _metrics(accept: str) -> tuple[int, bytes, bytes]:
    body, content_type = await asyncio.to_thread(render_workers, accept)
    return 200, content_type.encode(), body
