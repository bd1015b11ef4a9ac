"""Circuits that the processes of one service share: over Redis pub/sub they tell each other what opened and closed.

A call never waits for Redis, and never asks it: each process goes by its own circuits, which follow what it hears. All
hear all messages, their own too, in the order that Redis gives them, so all end in the same state. Who comes later, or
was cut off, asks for the circuits that are open. Half-open is each process's own affair, and so are its trial calls.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from fastapi_mesh.wire.redis import RedisChannel, StorageUnavailableError

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from fastapi_mesh.core.tasks import Supervisor
    from fastapi_mesh.layers.breaker import PyBreaker

logger = logging.getLogger("fastapi_mesh.circuits")

ANSWER_TIMEOUT = 1.0
"""Seconds that Redis has for one message."""
MOST_WAITING = 1000
"""Messages kept for a Redis that does not answer; older ones are dropped, since `ask` follows anyhow."""


class SharedCircuits:
    """All circuits of a mesh that are shared, by the URL of their Redis."""

    def __init__(self, namespace: str, service: str, supervisor: Supervisor) -> None:
        self._channel = f"fastapi_mesh:circuits:{namespace}:{service}"
        self._supervisor = supervisor
        self._hubs: dict[str, Hub] = {}
        self._open = False

    async def start(self, resources: AsyncExitStack) -> None:
        """Connect where a circuit is shared, now and later, until `resources` close."""
        import fastapi_mesh.layers.breaker  # noqa: F401 - 0.1 s that the first request must not pay

        self._open = True
        resources.push_async_callback(self._stop)
        for hub in self._hubs.values():
            hub.start(self._supervisor)

    async def _stop(self) -> None:
        self._open = False
        for hub in self._hubs.values():
            await hub.stop()

    def share(self, url: str, name: str, breaker: PyBreaker) -> None:
        """Let `breaker` follow those of the same name elsewhere. Raises ConfigurationError without package redis."""
        hub = self._hubs.get(url)
        if hub is None:
            hub = self._hubs[url] = Hub(url, self._channel)
        hub.share(name, breaker)
        if self._open:
            hub.start(self._supervisor)


class Hub:
    """The circuits that are shared over one Redis."""

    def __init__(self, url: str, channel: str) -> None:
        self._url = url
        self._name = channel
        self._me = os.urandom(8).hex()
        self._circuits: WeakValueDictionary[str, PyBreaker] = WeakValueDictionary()
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._wake = asyncio.Event()
        self._channel: RedisChannel | None = None
        self._tasks: list[asyncio.Task[object]] = []

    def share(self, name: str, breaker: PyBreaker) -> None:
        self._circuits[name] = breaker
        breaker.announce = lambda state, left: self._tell(name, state, left)
        self._say({"ask": name})

    def start(self, supervisor: Supervisor) -> None:
        """Listen and tell. Safe to call twice."""
        if self._channel is not None:
            return
        self._channel = RedisChannel(self._url, self._name, timeout=ANSWER_TIMEOUT)
        self._wake = asyncio.Event()
        self._tasks = [
            supervisor.keep(self._listen, name="shared circuits: listening"),
            supervisor.keep(self._publish, name="shared circuits: telling"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.aclose()

    def _tell(self, name: str, state: str, left: float) -> None:
        """One of our circuits changed. Half-open is not told."""
        if state in ("open", "closed"):
            self._say({"circuit": name, "state": state, "left": left})

    def _say(self, message: dict[str, object]) -> None:
        self._waiting.append(json.dumps({**message, "from": self._me}).encode())
        self._wake.set()

    async def _publish(self) -> None:
        channel = self._channel
        assert channel is not None, "made by start"
        while True:
            while self._waiting:
                try:
                    await channel.publish(self._waiting.popleft())
                except StorageUnavailableError:
                    self._waiting.clear()  # old news by the time that it is back; `_listen` asks and tells anew then
                    raise
            self._wake.clear()
            await self._wake.wait()

    async def _listen(self) -> None:
        channel = self._channel
        assert channel is not None, "made by start"
        async for message in channel.listen():
            if message is None:  # subscribed, perhaps again: what happened meanwhile is unknown on both sides
                self._say({"ask": "*"})
                self._tell_open("*")
            else:
                self._hear(message)

    def _tell_open(self, name: str) -> None:
        for each, breaker in list(self._circuits.items()):
            if name in (each, "*") and breaker.left > 0:
                self._tell(each, "open", breaker.left)

    def _hear(self, message: bytes) -> None:
        try:
            heard = json.loads(message)
            asked, circuit = heard.get("ask"), heard.get("circuit")
            state, left, sender = heard.get("state"), float(heard.get("left", 0.0)), heard.get("from")
        except (ValueError, TypeError, AttributeError) as error:
            logger.warning("a message on %s is not ours: %s", self._name, error)
            return
        if isinstance(asked, str) and sender != self._me:
            self._tell_open(asked)
        breaker = self._circuits.get(circuit) if isinstance(circuit, str) else None
        if breaker is not None and isinstance(state, str):
            breaker.adopt(state, left)
