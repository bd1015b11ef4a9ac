"""A discovery and a registrar that do what the test tells them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.live import Live


def instance(id: str, port: int = 8000, service: str = "users") -> Instance:
    return Instance(service, id, "127.0.0.1", port)


class ScriptedDiscovery:
    """Knows what `set` said, or fails; `open` counts the watches that run, `watched` has those ever begun."""

    def __init__(self, **services: str) -> None:
        self.open = 0
        self.watched: list[str] = []
        self._lists = {service: (instance(id, service=service),) for service, id in services.items()}
        self._error: Exception | None = None
        self._changes: Live[int] = Live(0)

    def set(self, service: str, *ids: str) -> None:
        self._lists[service] = tuple(instance(id, service=service) for id in ids)
        self._change(None)

    def fail(self, error: Exception) -> None:
        """Fail now, and at every try until `recover` or `set`."""
        self._change(error)

    def recover(self) -> None:
        self._change(None)

    def _change(self, error: Exception | None) -> None:
        self._error = error
        self._changes.publish(self._changes.version)

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        self.watched.append(service)
        self.open += 1
        last: tuple[Instance, ...] | None = None
        try:
            while True:
                if self._error is not None:
                    raise self._error
                now = self._lists.get(service, ())
                if now != last:
                    last = now
                    yield now
                else:
                    await self._changes.wait_change()
        finally:
            self.open -= 1


class ScriptedRegistrar:
    """Notes what it is asked to do; fails with `error` while that is set, and waits for ever while `hangs`."""

    def __init__(self, *, interval: float = 5.0) -> None:
        self.calls: list[str] = []
        self.error: Exception | None = None
        self.hangs = False
        self.interval = interval

    async def register(self, instance: Instance) -> ScriptedRegistration:
        await self.do(f"register {instance.id}")
        return ScriptedRegistration(self, instance)

    async def do(self, what: str) -> None:
        self.calls.append(what)
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        if self.error is not None:
            raise self.error


class ScriptedRegistration:
    def __init__(self, registrar: ScriptedRegistrar, instance: Instance) -> None:
        self._registrar = registrar
        self._instance = instance

    @property
    def interval(self) -> float:
        return self._registrar.interval

    async def beat(self) -> None:
        await self._registrar.do(f"beat {self._instance.id}")

    async def withdraw(self) -> None:
        await self._registrar.do(f"withdraw {self._instance.id}")
