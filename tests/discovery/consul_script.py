"""A Consul that answers what a test says, and writes down what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi_mesh.config.backends import DiscoveryConfig
from fastapi_mesh.discovery.consul import ConsulRegistry
from fastapi_mesh.exceptions import UpstreamProtocolError
from fastapi_mesh.testing.clock import FakeClock


@dataclass
class Said:
    """An answer. `content` is JSON, or bytes as they are."""

    content: Any = b""
    status: int = 200
    index: int | None = 1

    @property
    def answer(self) -> Said:
        return self

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.index is None else {"x-consul-index": str(self.index)}

    def json(self) -> object:
        try:
            return json.loads(self.content)
        except ValueError as error:
            raise UpstreamProtocolError("no JSON") from error

    def __post_init__(self) -> None:
        if not isinstance(self.content, bytes):
            self.content = json.dumps(self.content).encode()


@dataclass
class Asked:
    method: str
    path: str
    params: dict[str, object]
    json: Any = None
    content: bytes | None = None
    timeout: float | None = None
    at: float = 0.0


@dataclass
class ScriptedConsul:
    """`script` answers each call: with a Said, an error to raise, a future of these, or None to wait without end."""

    script: Callable[[Asked], Said | Exception | asyncio.Future[Said] | None]
    clock: FakeClock = field(default_factory=FakeClock)
    asked: list[Asked] = field(default_factory=list)
    closed: bool = False

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Any = None,
        json: object = None,
        content: bytes | None = None,
        headers: object = None,
        timeout: float | None = None,
    ) -> Said:
        asked = Asked(method, path, dict(params or ()), json, content, timeout, self.clock.now())
        self.asked.append(asked)
        await asyncio.sleep(0)
        said = self.script(asked)
        if said is None:
            said = asyncio.get_running_loop().create_future()
        if isinstance(said, asyncio.Future):
            said = await said
        if isinstance(said, Exception):
            raise said
        return said

    def stream_lines(self, *_: object, **__: object) -> Any:
        raise AssertionError("Consul has no streams")

    async def aclose(self) -> None:
        self.closed = True

    def registry(self, *, namespace: str = "default", **settings: Any) -> ConsulRegistry:
        config = DiscoveryConfig(backend="consul", **settings)
        return ConsulRegistry(self, config, namespace=namespace, clock=self.clock)


def entry(
    id: str = "web-1",
    *,
    address: str = "10.0.0.1",
    port: int = 8001,
    checks: tuple[str, ...] = ("passing",),
    node: dict[str, object] | None = None,
    **service: object,
) -> dict[str, object]:
    """An element of the answer to /v1/health/service."""
    return {
        "Node": {"Node": "n1", "Address": "10.9.9.9", "Meta": {}, **(node or {})},
        "Service": {"ID": id, "Service": "web", "Address": address, "Port": port, "Tags": [], "Meta": {}, **service},
        "Checks": [{"CheckID": f"c{number}", "Status": status} for number, status in enumerate(checks)],
    }
