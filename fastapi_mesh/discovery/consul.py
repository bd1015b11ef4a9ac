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
from typing import TYPE_CHECKING, Any, cast

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.core.control import tls_problem
from fastapi_mesh.discovery.address import LOOPBACK, routed_address
from fastapi_mesh.discovery.base import KnownService
from fastapi_mesh.discovery.consul_agent import ConsulAgent, ConsulRegistration
from fastapi_mesh.discovery.consul_api import FILTERED, ConsulApi, ConsulError, decoded, segment
from fastapi_mesh.discovery.consul_feeds import Feed, Limiter, Source, Terms
from fastapi_mesh.discovery.consul_rows import LEASE, NAMESPACE_TAG, Reader, passes, registration
from fastapi_mesh.discovery.consul_start import CATALOG, check_rights, check_server, where
from fastapi_mesh.discovery.lists import check_for_others, is_loopback, ordered, same
from fastapi_mesh.discovery.rows import Owner, check_times, place_of
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
CRITICAL = "/v1/health/state/critical"
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
        self._agent = ConsulAgent(self._api, self._clock)
        self._terms = self._new_terms()
        self._feeds: dict[str, Feed[Instance]] = {}
        self._names: Feed[KnownService] | None = None
        self._looked_at: dict[str, Reader] = {}
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
            await check_server(self._api, self._settings)
            await check_rights(self._api, self._settings)
        except ConsulError as error:
            if (problem := tls_problem(error)) is not None:
                raise ConfigurationError(
                    f"discovery.tls: {where(self._settings)} can't be trusted: {problem}"
                ) from error
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
        version, failed = 0, False
        try:
            while True:
                version = await feed.wait_newer(version)
                current = ordered(feed.values.values())
                if last is None or not same(current, last):
                    last = current
                    yield current
        except ConsulError as error:
            failed = True
            raise ServiceDiscoveryError(str(error), service=service) from error
        finally:
            self._leave(service, feed, keep=failed)

    async def watch_services(self) -> AsyncIterator[tuple[KnownService, ...]]:
        """See `ServiceList.watch_services`. A service whose last lease is over is gone within `wait` seconds."""
        if self._names is None:
            self._names = Feed(self._terms, Source(CATALOG, self._read_names, hold=self._hold))
        feed = self._names
        last: tuple[KnownService, ...] | None = None
        version, failed = 0, False
        feed.users += 1
        try:
            while True:
                version = await feed.wait_newer(version)
                crashed = await self._crashed()
                current = tuple(feed.values[name] for name in sorted(feed.values) if name not in crashed)
                if current != last:
                    last = current
                    yield current
        except ConsulError as error:
            failed = True
            raise ServiceDiscoveryError(str(error)) from error
        finally:
            feed.users -= 1
            if not feed.users:
                feed.close()
                self._names = feed if failed else None

    async def register(self, instance: Instance) -> ConsulRegistration:
        """See `Registrar.register`. Returns when Consul's catalog shows it, or after two seconds.

        Raises ConfigurationError for an instance that nobody could call, and for what Consul refuses.
        """
        if self._owner is None:  # not earlier: a server may fork its workers after the object was made
            self._owner = Owner(secrets.token_hex(6), time.time())
        body = registration(
            check_for_others(instance),
            self._owner,
            next(self._births),
            namespace=self._namespace,
            lease=self._settings.lease,
            deregister_after=self._settings.consul.deregister_after,
        )
        place = self._settings.consul
        body |= {"Namespace": place.namespace} if place.namespace else {}
        body |= {"Partition": place.partition} if place.partition else {}
        made = ConsulRegistration(self._agent, body, self._settings.heartbeat, passing=passes(instance))
        try:
            await self._agent.put(body)
        except asyncio.CancelledError:
            if self._supervisor is not None:  # nobody will withdraw what may have been stored
                with contextlib.suppress(RuntimeError):  # it is closed, too
                    self._supervisor.start(made.withdraw(), name=f"withdrawal:{body['ID']}")
            raise
        except ConsulError as error:
            if error.answered in (400, 401, 403):
                raise ConfigurationError(
                    f"discovery: {where(self._settings)} does not let {instance.service!r} be registered ({error}); "
                    f'its token needs service:write for "{instance.service}"'
                ) from error
            raise ServiceDiscoveryError(str(error), service=instance.service) from error
        return made

    async def own_address(self) -> str:
        """See `Locating.own_address`: with the agent of this machine the address that it advertises, else that of our
        interface that leads to the agent.
        """
        host = self._settings.host
        if host is not None and not is_loopback(host):
            return await routed_address(host, self._settings.port or 80)
        try:
            return await self._agent.advertised()
        except ConsulError as error:
            if error.answered != 403:
                raise ServiceDiscoveryError(str(error)) from error
            logger.warning(
                "%s does not say which address this machine has (its token needs agent:read); without MESH_ADDRESS a "
                "server that listens on all interfaces is registered at %s",
                where(self._settings),
                LOOPBACK,
            )
            return LOOPBACK

    # Watching

    def _new_terms(self) -> Terms:
        settings = self._settings.consul
        return Terms(self._api, Limiter(settings.max_watches, self._clock), self._clock, settings.wait)

    def _enter(self, service: str) -> Feed[Instance]:
        feed = self._feeds.get(service)
        if feed is None:
            self._forget()
            reader, path = self._reader(service), _path(service)
            source = Source(path, lambda answer: _read(reader, answer, path), self._tags, self._hold, _same_place)
            feed = self._feeds[service] = Feed(self._terms, source)
        feed.users += 1
        return feed

    def _leave(self, service: str, feed: Feed[Instance], *, keep: bool) -> None:
        """With `keep`, its watcher will come back, and what it knew is of use then."""
        feed.users -= 1
        if feed.users == 0:
            feed.left_at = self._clock.now()
            feed.close()
            if not keep and self._feeds.get(service) is feed:
                del self._feeds[service]

    def _forget(self) -> None:
        """Drop the watches that nobody has come back to."""
        old = self._clock.now() - FORGET
        for service in [name for name, feed in self._feeds.items() if not feed.users and feed.left_at < old]:
            del self._feeds[service]

    def _reader(self, service: str) -> Reader:
        return Reader(service, self._namespace, self._settings.consul.zone_key)

    @property
    def _tags(self) -> tuple[tuple[str, str], ...]:
        return (*(("tag", tag) for tag in self._settings.consul.tags),)

    @property
    def _hold(self) -> float:
        return BACK_AGAIN + 1.25 * self._settings.heartbeat

    async def _crashed(self) -> frozenset[str]:
        """Our services of which every lease is over; Consul lists them until it forgets them. Raises ConsulError."""
        answer = await self._api.read(CRITICAL)
        checks = None if answer.content is None else decoded(answer.content, CRITICAL)
        try:
            names = {str(each["ServiceName"]) for each in cast("Any", checks) if each["CheckID"].endswith(LEASE)}
        except (TypeError, KeyError, AttributeError) as error:
            raise ConsulError(f"what answered to GET {CRITICAL} is not Consul") from error
        found = [(name, await self._api.read(_path(name), self._tags)) for name in sorted(names)]
        # Readers say once what they leave out.
        self._looked_at = {name: self._looked_at.get(name) or self._reader(name) for name in names}
        return frozenset(name for name, each in found if not _read(self._looked_at[name], each.content, _path(name)))

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


def _path(service: str) -> str:
    return f"/v1/health/service/{segment(service)}"


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
    return place_of(one) == place_of(other)
