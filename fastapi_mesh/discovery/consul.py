"""A registry on Consul: lists by blocking queries, registration with a TTL check as the lease.

https://developer.hashicorp.com/consul/api-docs (only what both 1.8 and today's versions have).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from typing import TYPE_CHECKING

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.core.control import tls_problem
from fastapi_mesh.discovery.base import KnownService
from fastapi_mesh.discovery.consul_api import FILTERED, ConsulApi, ConsulError, decoded, refusal, segment
from fastapi_mesh.discovery.consul_feeds import Feed, Limiter, Source, Terms
from fastapi_mesh.discovery.consul_rows import LEASE, NAMESPACE_TAG, Reader, passes, registration
from fastapi_mesh.discovery.lists import check, ordered, same
from fastapi_mesh.discovery.rows import Owner, check_times
from fastapi_mesh.exceptions import ConfigurationError, ServiceDiscoveryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi_mesh.config.backends import DiscoveryConfig
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.control import Control, ControlAnswer
    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.core.tasks import Supervisor

logger = logging.getLogger("fastapi_mesh.discovery.consul")

BACK_AGAIN = 10.0
"""Seconds within which a node that waits for its registry tries again (core/tasks.py)."""
FORGET = 60.0
"""Seconds for which a watch that failed is remembered, to be gone on with."""
VISIBLE = 2.0
"""Seconds for which registering waits until the catalog shows it; an agent tells its servers in its own time."""
CATALOG = "/v1/catalog/services"
ITSELF = "consul"
"""The service as which Consul's servers list themselves."""


class ConsulRegistry:
    """Consul as a Discovery, a ServiceList and a Registrar. `settings` has the backend's options, `control` its server.

    An instance of ours is left out when its lease is over (`settings.lease`), and Consul forgets it a minute or more
    later. One that somebody else has registered is healthy, degraded or unhealthy as its checks say.

    Use one object in one event loop at a time; `aclose` it at the end, which closes `control` too.
    """

    def __init__(
        self,
        control: Control,
        settings: DiscoveryConfig,
        *,
        namespace: str = "default",
        clock: Clock | None = None,
        supervisor: Supervisor | None = None,
    ) -> None:
        check_times(lease=settings.lease, heartbeat=settings.heartbeat)
        self._settings = settings
        self._namespace = namespace
        self._clock: Clock = clock or SystemClock()
        self._supervisor = supervisor
        self._api = ConsulApi(control, settings.consul, timeout=settings.request_timeout)
        self._terms = self._new_terms()
        self._feeds: dict[str, Feed[Instance]] = {}
        self._names: Feed[KnownService] | None = None
        self._owner: Owner | None = None
        self._births = itertools.count(1)

    def statistics(self) -> dict[str, int]:
        """Services watched, and how many of them by a blocking query of their own."""
        watched = sum(feed.users > 0 for feed in self._feeds.values())
        return {"watches": watched, "blocking": self._terms.limiter.blocking}

    async def open(self) -> None:
        """Ask Consul once, to learn at once what waiting can't mend.

        Raises ConfigurationError for a token that isn't known, TLS that doesn't fit, and what is no Consul, and
        ServiceDiscoveryError for one that doesn't answer or has no leader.
        """
        self._api.closed = False
        try:
            await self._check_server()
            await self._check_rights()
        except ConsulError as error:
            if (problem := tls_problem(error)) is not None:
                raise ConfigurationError(f"discovery.tls: {self._where} can't be trusted: {problem}") from error
            raise ServiceDiscoveryError(str(error)) from error

    async def aclose(self) -> None:
        """Close all connections. Later uses raise ServiceDiscoveryError until `open`."""
        await self._api.aclose()
        self._feeds.clear()
        self._names = None
        self._terms = self._new_terms()

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """See `Discovery.watch`."""
        feed = self._enter(service)
        last: tuple[Instance, ...] | None = None
        version = 0
        try:
            while True:
                version = await feed.wait_newer(version)
                current = ordered(feed.values.values())
                if last is None or not same(current, last):
                    last = current
                    yield current
        except ConsulError as error:
            raise ServiceDiscoveryError(str(error), service=service) from error
        finally:
            self._leave(service, feed)

    async def watch_services(self) -> AsyncIterator[tuple[KnownService, ...]]:
        """See `ServiceList.watch_services`. A service whose last instance has crashed stays until Consul forgets it."""
        if self._names is None:
            self._names = Feed(self._terms, Source(CATALOG, self._read_names, hold=self._hold))
        feed = self._names
        last: tuple[KnownService, ...] | None = None
        version = 0
        feed.users += 1
        try:
            while True:
                version = await feed.wait_newer(version)
                current = tuple(feed.values[name] for name in sorted(feed.values))
                if current != last:
                    last = current
                    yield current
        except ConsulError as error:
            raise ServiceDiscoveryError(str(error)) from error
        finally:
            feed.users -= 1
            if not feed.users:
                feed.close()

    async def register(self, instance: Instance) -> ConsulRegistration:
        """See `Registrar.register`. Returns when Consul's catalog shows it, or after two seconds.

        Raises ConfigurationError for an instance that nobody could call, and for what Consul refuses.
        """
        if instance.scheme == "asgi":
            raise ConfigurationError(
                f"instance {instance.id!r} of {instance.service!r} is an application inside this process, which other "
                "processes can't call; give it to services={...}"
            )
        if self._owner is None:  # not earlier: a server may fork its workers after the object was made
            self._owner = Owner(secrets.token_hex(6), time.time())
        body = registration(
            check(instance),
            self._owner,
            next(self._births),
            namespace=self._namespace,
            lease=self._settings.lease,
            deregister_after=self._settings.consul.deregister_after,
        )
        place = self._settings.consul
        body |= {"Namespace": place.namespace} if place.namespace else {}
        body |= {"Partition": place.partition} if place.partition else {}
        made = ConsulRegistration(self, body, self._settings.heartbeat, passing=passes(instance))
        try:
            await self.put(body)
        except asyncio.CancelledError:
            if self._supervisor is not None:  # nobody will withdraw what may have been stored
                with contextlib.suppress(RuntimeError):  # it is closed, too
                    self._supervisor.start(made.withdraw(), name=f"withdrawal:{body['ID']}")
            raise
        except ConsulError as error:
            if error.answered in (400, 401, 403):
                raise ConfigurationError(
                    f"discovery: {self._where} does not let {instance.service!r} be registered ({error}); its token "
                    f'needs service:write for "{instance.service}"'
                ) from error
            raise ServiceDiscoveryError(str(error), service=instance.service) from error
        return made

    # For registrations

    async def put(self, body: dict[str, object]) -> None:
        """Register `body`, and wait until the catalog shows it. Raises ConsulError."""
        await self._api.write("/v1/agent/service/register", json=body)
        await self._wait_catalog(body, present=True)

    async def beat(self, body: dict[str, object], *, passing: bool) -> None:
        """Renew the lease; registers anew where the agent has forgotten it. Raises ServiceDiscoveryError."""
        path = f"/v1/agent/check/{'pass' if passing else 'warn'}/{segment(str(body['ID']) + LEASE)}"
        try:
            await self._api.write(path)
        except ConsulError as error:
            if not _is_forgotten(error):
                raise ServiceDiscoveryError(str(error), service=str(body["Name"])) from error
            logger.info("Consul has forgotten %s; registering anew", body["ID"])
            try:
                await self.put(body)
            except ConsulError as again:
                raise ServiceDiscoveryError(str(again), service=str(body["Name"])) from again

    async def remove(self, body: dict[str, object]) -> None:
        """Deregister, and wait until the catalog does not show it. Raises ServiceDiscoveryError."""
        try:
            await self._api.write(f"/v1/agent/service/deregister/{segment(str(body['ID']))}")
            await self._wait_catalog(body, present=False)
        except ConsulError as error:
            if error.answered != 404 and "Unknown service" not in str(error):
                raise ServiceDiscoveryError(str(error), service=str(body["Name"])) from error

    async def _wait_catalog(self, body: dict[str, object], *, present: bool) -> None:
        """An agent answers before it has told the servers; a catalog that can't be asked is not waited for."""
        path = f"/v1/catalog/service/{segment(str(body['Name']))}"
        wanted = (("filter", f'ServiceID == "{body["ID"]}"'),)
        end, pause = self._clock.now() + VISIBLE, 0.005
        try:
            while self._clock.now() < end:
                answer = await self._api.read(path, wanted)
                if answer.content is not None and bool(decoded(answer.content, path)) == present:
                    return
                await self._clock.sleep(pause)
                pause = min(2 * pause, 0.25)
        except ConsulError as error:
            logger.debug("the catalog can't be asked for %s: %s", body["ID"], error)

    # Watching

    def _new_terms(self) -> Terms:
        settings = self._settings.consul
        return Terms(self._api, Limiter(settings.max_watches, self._clock), self._clock, settings.wait)

    def _enter(self, service: str) -> Feed[Instance]:
        feed = self._feeds.get(service)
        if feed is None:
            self._forget()
            params = (*(("tag", tag) for tag in self._settings.consul.tags),)
            reader = Reader(service, self._namespace, self._settings.consul.zone_key)
            path = f"/v1/health/service/{segment(service)}"
            source = Source(path, lambda answer: _read(reader, answer, path), params, self._hold, _same_place)
            feed = self._feeds[service] = Feed(self._terms, source)
        feed.users += 1
        return feed

    def _leave(self, service: str, feed: Feed[Instance]) -> None:
        feed.users -= 1
        if feed.users == 0:
            feed.left_at = self._clock.now()
            feed.close()

    def _forget(self) -> None:
        """Drop the watches that nobody has come back to."""
        old = self._clock.now() - FORGET
        for service in [name for name, feed in self._feeds.items() if not feed.users and feed.left_at < old]:
            del self._feeds[service]

    @property
    def _hold(self) -> float:
        return BACK_AGAIN + 1.25 * self._settings.heartbeat

    def _read_names(self, answer: ControlAnswer | None) -> dict[str, KnownService]:
        names = None if answer is None else decoded(answer, CATALOG)
        if not isinstance(names, dict) or not all(isinstance(tags, list) for tags in names.values()):
            raise ConsulError(f"what answered to GET {CATALOG} is not Consul")
        own, wanted = f"{NAMESPACE_TAG}{self._namespace}", set(self._settings.consul.tags)
        known = {}
        for name, tags in names.items():
            of_mesh = any(str(tag).startswith(NAMESPACE_TAG) for tag in tags)
            if name != ITSELF and wanted <= set(tags) and (own in tags or not of_mesh):
                plain = frozenset(str(tag) for tag in tags if not str(tag).startswith(NAMESPACE_TAG))
                known[name] = KnownService(name, plain)
        return known

    # The start

    @property
    def _where(self) -> str:
        return f"Consul at {self._settings.url(8500, 8501)}"

    async def _check_server(self) -> None:
        path = "/v1/status/leader"
        answer = await self._api.ask(path)
        if answer.status >= 500 or answer.status == 429:
            raise refusal("GET", path, answer)
        if answer.status == 400 and b"HTTPS" in answer.content:
            raise ConfigurationError(f"discovery.tls: {self._where} wants TLS; set tls=True, and ca_path for its CA")
        try:
            leader = decoded(answer, path)
        except ConsulError:
            leader = None
        if answer.status != 200 or not isinstance(leader, str):
            raise ConfigurationError(
                f"discovery.host: what answers at {self._settings.url(8500, 8501)} is not Consul's HTTP API (status "
                f"{answer.status}); check host and port"
            )
        if not leader:
            raise ConsulError("Consul has no leader")

    async def _check_rights(self) -> None:
        if self._settings.token is not None:
            path = "/v1/acl/token/self"
            answer = await self._api.ask(path)
            if answer.status == 403:
                raise ConfigurationError(
                    f"discovery.token: {self._where} does not know this token; it may have been deleted or have expired"
                )
            if answer.status >= 500:
                raise refusal("GET", path, answer)
        try:
            answered = await self._api.read(CATALOG)
        except ConsulError as error:
            if error.answered in (400, 401, 403):
                raise ConfigurationError(f"discovery: {self._where} refuses to be read: {error}") from error
            raise
        place = self._settings.consul.namespace or self._settings.consul.partition
        nothing = answered.content is not None and decoded(answered.content, CATALOG) == {}
        if nothing and self._settings.token is None and not place:  # it lists itself, to those who may see it
            raise ConfigurationError(
                f"discovery.token: {self._where} lets nobody read its services without an ACL token; set token "
                "(MESH_DISCOVERY__TOKEN) to one with service:read and node:read"
            )


class ConsulRegistration:
    """One registration of ours. See `Registration`."""

    __slots__ = ("_body", "_passing", "_registry", "_withdrawn", "interval")

    def __init__(self, registry: ConsulRegistry, body: dict[str, object], interval: float, *, passing: bool) -> None:
        self._registry = registry
        self._body = body
        self._passing = passing
        self._withdrawn = False
        self.interval = interval

    async def beat(self) -> None:
        """See `Registration.beat`."""
        if not self._withdrawn:
            await self._registry.beat(self._body, passing=self._passing)

    async def withdraw(self) -> None:
        """See `Registration.withdraw`."""
        self._withdrawn = True
        await self._registry.remove(self._body)


def _is_forgotten(error: ConsulError) -> bool:
    """Consul says 404 today, and said 500 in two wordings before."""
    words = str(error)
    return error.answered == 404 or (
        error.answered == 500 and ("does not have associated TTL" in words or "Unknown check" in words)
    )


def _read(reader: Reader, answer: ControlAnswer | None, path: str) -> dict[str, Instance]:
    if answer is None:
        raise ConsulError(f"what answered to GET {path} is not Consul: 404", answered=404)
    try:
        found = reader.read(decoded(answer, path))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConsulError(f"what answered to GET {path} is not Consul: {type(error).__name__}: {error}") from error
    if not found and FILTERED in answer.headers:
        raise ConsulError(f"the token may not read {reader.service!r} (ACL)", answered=403)
    return found


def _same_place(one: Instance, other: Instance) -> bool:
    return (one.address, one.port, one.base_path) == (other.address, other.port, other.base_path)
