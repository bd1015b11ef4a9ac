"""Registering with an agent of Consul: a service with a TTL check, which is beaten for until it is withdrawn."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from fastapi_mesh.discovery.consul_api import ConsulError, decoded, refusal, segment
from fastapi_mesh.discovery.consul_rows import LEASE
from fastapi_mesh.exceptions import ServiceDiscoveryError

if TYPE_CHECKING:
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.discovery.consul_api import ConsulApi

logger = logging.getLogger("fastapi_mesh.discovery.consul")

VISIBLE = 2.0
"""Seconds for which registering (half of them: leaving) waits until the catalog shows it; an agent tells its servers
in its own time."""


class ConsulAgent:
    """What registrations ask of the agent. A `body` is that of PUT /v1/agent/service/register."""

    def __init__(self, api: ConsulApi, clock: Clock) -> None:
        self._api = api
        self._clock = clock

    async def put(self, body: dict[str, object]) -> None:
        """Register `body`, and wait until the catalog shows it. Raises ConsulError."""
        await self._api.write("/v1/agent/service/register", json=body)
        await self._wait_catalog(body, present=True)

    async def beat(self, body: dict[str, object], *, passing: bool) -> None:
        """Renew the lease; registers anew where the agent has forgotten it. Raises ServiceDiscoveryError."""
        path = f"/v1/agent/check/{'pass' if passing else 'warn'}/{segment(str(body['ID']) + LEASE)}"
        try:
            try:
                await self._api.write(path)
            except ConsulError as error:
                if not _is_forgotten(error):
                    raise
                logger.info("Consul has forgotten %s; registering anew", body["ID"])
                await self.put(body)
        except ConsulError as error:
            raise ServiceDiscoveryError(str(error), service=str(body["Name"])) from error

    async def remove(self, body: dict[str, object]) -> None:
        """Deregister, and wait until the catalog does not show it. Raises ServiceDiscoveryError."""
        try:
            await self._api.write(f"/v1/agent/service/deregister/{segment(str(body['ID']))}")
            await self._wait_catalog(body, present=False)
        except ConsulError as error:
            if error.answered != 404 and "Unknown service" not in str(error):
                raise ServiceDiscoveryError(str(error), service=str(body["Name"])) from error

    async def advertised(self) -> str:
        """The address at which the agent says its machine is. Raises ConsulError."""
        path = "/v1/agent/self"
        answer = await self._api.ask(path)
        if answer.status != 200:
            raise refusal("GET", path, answer)
        told = decoded(answer, path)
        member = told.get("Member") if isinstance(told, dict) else None
        address = member.get("Addr") if isinstance(member, dict) else None
        if not isinstance(address, str) or not address:
            raise ConsulError(f"what answered to GET {path} is not Consul", answered=answer.status)
        return address

    async def _wait_catalog(self, body: dict[str, object], *, present: bool) -> None:
        """Wait until others see the change; a catalog that can't be asked is not waited for."""
        path = f"/v1/catalog/service/{segment(str(body['Name']))}"
        wanted = (("filter", f'ServiceID == "{body["ID"]}"'),)
        pause = 0.005
        try:
            async with asyncio.timeout(VISIBLE if present else VISIBLE / 2):
                while True:
                    answer = await self._api.read(path, wanted)
                    if answer.content is not None and bool(decoded(answer.content, path)) == present:
                        return
                    await self._clock.sleep(pause)
                    pause = min(2 * pause, 0.25)
        except (ConsulError, TimeoutError) as error:
            logger.debug("the catalog does not show what became of %s yet: %s", body["ID"], error)


class ConsulRegistration:
    """One registration of ours. See `Registration`."""

    __slots__ = ("_agent", "_body", "_passing", "_withdrawn", "interval")

    def __init__(self, agent: ConsulAgent, body: dict[str, object], interval: float, *, passing: bool) -> None:
        self._agent = agent
        self._body = body
        self._passing = passing
        self._withdrawn = False
        self.interval = interval

    async def beat(self) -> None:
        """See `Registration.beat`."""
        if not self._withdrawn:
            await self._agent.beat(self._body, passing=self._passing)

    async def withdraw(self) -> None:
        """See `Registration.withdraw`."""
        self._withdrawn = True
        await self._agent.remove(self._body)


def _is_forgotten(error: ConsulError) -> bool:
    """Consul says 404 today, and said 500 in two wordings before."""
    words = str(error)
    return error.answered == 404 or (
        error.answered == 500 and ("does not have associated TTL" in words or "Unknown check" in words)
    )
