"""DNS in the suite of failures, asked over TCP through the proxy; its server runs in the test's own process."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi_mesh.config.dns import DnsConfig
from fastapi_mesh.discovery.dns import DnsDiscovery
from fastapi_mesh.discovery.lists import watching
from tests.contracts.server_backends import ServerBackend
from tests.support.dns_server import DnsServer
from tests.support.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastapi_mesh.core.instance import Instance


class Named:
    """A discovery whose instances have the ids that the suite gave them, which DNS does not know."""

    def __init__(self, inner: DnsDiscovery) -> None:
        self._inner = inner

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        async with watching(self._inner, service) as lists:
            async for found in lists:
                yield tuple(replace(each, id=f"{service}-{each.port - 8000:03}") for each in found)


class DnsServerBackend(ServerBackend):
    name = "dns"

    def __init__(self, folder: Path, process: object) -> None:
        self.dns = DnsServer(free_port())
        self._targets: dict[str, list[str]] = {}
        super().__init__(folder, process)

    async def open(self) -> None:
        await self.stack.enter_async_context(self.dns)

    def port(self) -> int:
        return self.dns.port

    def client(self, credentials: str | None = None) -> Named:
        return self._finder(self.proxy.port)

    def direct(self) -> Named:
        return self._finder(self.port())

    async def put(self, instance: Instance) -> None:
        target = f"{instance.id}.{'x' * 50}{instance.port}.test."  # long, so that a long list is many bytes
        self.dns.add(target, "A", instance.address)
        targets = self._targets.setdefault(instance.service, [])
        targets.append(f"1 1 {instance.port} {target}")
        self.dns.add(f"_http._tcp.{instance.service}.", "SRV", *targets)

    def pause(self) -> None:
        self.dns.silent = True

    def resume(self) -> None:
        self.dns.silent = False

    @staticmethod
    def _finder(port: int) -> Named:
        config = DnsConfig(tcp=True, min_ttl=0.5, max_ttl=0.5)
        return Named(DnsDiscovery(config, nameserver=("127.0.0.1", port), timeout=2.0))
