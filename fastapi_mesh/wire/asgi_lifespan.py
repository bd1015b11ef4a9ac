"""The lifespan of an ASGI application mounted in this process: starts it up, shuts it down (ASGI lifespan 2.0)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import anyio

from fastapi_mesh.core.context import current_inbound
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from fastapi_mesh.core.instance import ASGIApp, Message
    from fastapi_mesh.core.tasks import Supervisor

logger = logging.getLogger("fastapi_mesh.asgi")

SHUTDOWN_TIMEOUT = 10.0
"""Seconds an application gets to shut down before it is cancelled."""


class AsgiLifespan:
    """Runs the startup and the shutdown of one application, both in one task.

    `state` is the dictionary that the application fills at startup; each of its requests sees a copy of it. An
    application that does not know the lifespan protocol (it raises or returns before its first word) is used without.
    """

    def __init__(self, app: ASGIApp, supervisor: Supervisor, *, name: str = "app") -> None:
        self._app = app
        self._supervisor = supervisor
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self._told_startup = False
        self._stopping = asyncio.Event()
        self._answered = asyncio.Event()
        self._answer = ""
        self._message = ""
        self.state: dict[str, object] = {}

    @property
    def running(self) -> bool:
        """Whether the application takes part in the protocol, and is between startup and the end of its shutdown."""
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Run the application's startup and wait for it; where it runs or has run already, do nothing.

        Raises ConfigurationError, with the application's own last line, when its startup fails.
        """
        if self._task is None:
            self.state.clear()
            self._told_startup = False
            self._stopping = asyncio.Event()  # of this event loop: a mesh may be started in another one
            self._expect_answer()
            token = current_inbound.set(None)  # the application must not see the request that started it, if one did
            try:
                self._task = self._supervisor.start(self._run(), name=f"lifespan of {self._name}")
            finally:
                current_inbound.reset(token)
        await self._answered.wait()
        if self._answer == "lifespan.startup.failed":
            self._task = None
            words = self._message.strip()  # Starlette's are a whole traceback
            if "\n" in words:
                logger.error("%s: the startup of the mounted application failed:\n%s", self._name, words)
            last = words.rpartition("\n")[2]
            raise ConfigurationError(f"{self._name}: the startup of the mounted application failed: {last}")

    async def stop(self, *, timeout: float = SHUTDOWN_TIMEOUT) -> None:
        """Run the application's shutdown and wait for its end, at most `timeout` seconds. Safe to call twice.

        A shutdown that fails is logged. `start` may be called again afterwards.
        """
        task, self._task = self._task, None
        if task is None or task.done():
            return
        self._expect_answer()
        self._stopping.set()
        with anyio.move_on_after(timeout) as limit:
            await asyncio.wait((task,))
        if limit.cancelled_caught:
            logger.error("%s: the mounted application did not shut down within %g s", self._name, timeout)
            task.cancel()
            await asyncio.wait((task,))
        elif self._answer != "lifespan.shutdown.complete":
            logger.error("%s: the shutdown of the mounted application failed: %s", self._name, self._message)

    def _expect_answer(self) -> None:
        self._answered = asyncio.Event()
        self._answer = self._message = ""

    async def _run(self) -> None:
        scope: Message = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as error:  # whatever a foreign application raises; before its first word: it knows no lifespan
            if not self._answer:
                self._message = f"{type(error).__name__}: {error}"
            logger.debug("%s: the lifespan ended with %s: %s", self._name, type(error).__name__, error)
        finally:
            self._answered.set()

    async def _receive(self) -> Message:
        if not self._told_startup:
            self._told_startup = True
            return {"type": "lifespan.startup"}
        await self._stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        phase = "lifespan.shutdown" if self._stopping.is_set() else "lifespan.startup"
        if kind not in (f"{phase}.complete", f"{phase}.failed"):
            raise RuntimeError(f"the application sent {kind!r} where {phase}.complete or .failed was expected")
        self._answer, self._message = kind, message.get("message", "")
        self._answered.set()
