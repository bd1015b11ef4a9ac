"""A backend that keeps instances in etcd: each a key with a lease, all of a namespace followed by one watch.

Keys are `PREFIX/NAMESPACE/instances/SERVICE/ID/OWNER`, values JSON (`etcd_rows`). An owner is one registry object of
one process, so that several workers on one port, or a process and the one that crashed before it, don't overwrite each
other.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
from typing import TYPE_CHECKING, Self

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.core.tasks import MAX_BACKOFF, Supervisor
from fastapi_mesh.discovery.address import LOOPBACK, routed_address
from fastapi_mesh.discovery.etcd_feed import Feed
from fastapi_mesh.discovery.etcd_follow import Follow
from fastapi_mesh.discovery.etcd_messages import EtcdError, Kind, after, encoded, number
from fastapi_mesh.discovery.etcd_rows import Space, document_of, key_of, read
from fastapi_mesh.discovery.feed import ALL
from fastapi_mesh.discovery.lists import check_for_others, is_loopback, known_services
from fastapi_mesh.discovery.rows import Owner, Row, RowRegistration, check_times
from fastapi_mesh.exceptions import ConfigurationError, ServiceDiscoveryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.discovery.base import KnownService
    from fastapi_mesh.discovery.etcd_client import EtcdClient

SHORTEST_TIMEOUT = 1.0
"""Seconds that a heartbeat may take, however often there is one."""


class EtcdRegistry:
    """A Discovery, a ServiceList and a Registrar over `client`, which it closes.

    An instance whose last beat is `lease` seconds ago is gone; etcd counts whole seconds, and none below its election
    timeout (2 by default). When etcd has lost its data, or the leases of most, lists stay as they were for a lease and
    the 10 s after which a node tries again at the latest; those that live have registered anew by then.

    Use one object in one event loop at a time; `aclose` it at the end.
    """

    def __init__(
        self,
        client: EtcdClient,
        *,
        space: Space | None = None,
        lease: float = 15.0,
        heartbeat: float = 5.0,
        clock: Clock | None = None,
        supervisor: Supervisor | None = None,
    ) -> None:
        space = space or Space()
        check_times(lease=lease, heartbeat=heartbeat, watch_idle=space.watch_idle)
        self._client = client
        self._folder = space.folder("instances")
        self._lease = lease
        self._heartbeat = heartbeat
        self._supervisor = supervisor or Supervisor()
        follow = Follow(
            client,
            self._folder,
            after(self._folder),
            lambda entry: read(entry, self._folder),
            idle=space.watch_idle,
            clock=clock,
        )
        self._clock: Clock = clock or SystemClock()
        self._feed = Feed(follow, self._supervisor, hold=lease + MAX_BACKOFF, clock=clock)
        self._owner: Owner | None = None
        self._births = itertools.count(1)
        self._own: dict[bytes, _Own] = {}

    def statistics(self) -> dict[str, int]:
        """Rows known, watchers, snapshots and events received, calls, watches, failovers and logins."""
        return {**self._feed.statistics(), **self._client.statistics()}

    async def open(self) -> None:
        """Ask once, to learn at once what waiting can't mend: credentials, rights, TLS, a server that is no etcd.

        Raises ConfigurationError for those, ServiceDiscoveryError when no endpoint answers.
        """
        try:
            await self._client.call(
                "kv/range",
                {"key": encoded(self._folder), "range_end": encoded(after(self._folder)), "limit": "1"},
            )
        except EtcdError as error:
            raise _final(error) from error

    async def aclose(self) -> None:
        """Close all connections. Registrations that were not withdrawn end by their leases."""
        self._own.clear()
        self._feed.forget()
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """See `Discovery.watch`."""
        return self._feed.values(service, lambda: self._feed.rows.list_of(service), service=service)

    def watch_services(self) -> AsyncIterator[tuple[KnownService, ...]]:
        """See `ServiceList.watch_services`."""
        return self._feed.values(ALL, lambda: known_services(self._feed.rows.lists()))

    async def register(self, instance: Instance) -> RowRegistration:
        """See `Registrar.register`. Raises ConfigurationError for an instance that nobody could call, and for what
        waiting can't mend, such as a user without the right to write.
        """
        if self._owner is None:  # not earlier: a server may fork its workers after the object was made
            self._owner = Owner(secrets.token_hex(8), self._clock.now())
        row = Row(check_for_others(instance), self._owner, next(self._births), self._lease, 0.0)
        own = self._own.setdefault(key_of(row), _Own())
        async with own.turn:
            own.born = row.born  # from now on the registration before it does nothing any more
            try:
                await self._put(own, row)
            except EtcdError as error:
                raise _final(error) from error
        return RowRegistration(self, row, self._heartbeat)

    async def own_address(self) -> str:
        """See `Locating.own_address`: that of our interface that leads to etcd, 127.0.0.1 for one on this machine."""
        host, port = self._client.server
        return LOOPBACK if is_loopback(host) else await routed_address(host, port)

    async def renew(self, row: Row) -> None:
        """Prolong the lease of `row`; stores it again if it or its lease is gone. Raises ServiceDiscoveryError."""
        own = self._own.setdefault(key_of(row), _Own(row.born))
        async with own.turn:
            if own.born != row.born:
                return
            try:
                if not (own.lease and await self._prolong(own.lease) and await self._is_there(row)):
                    await self._put(own, row)
            except EtcdError as error:
                self._feed.doubt()  # those of others fail too
                raise ServiceDiscoveryError(str(error), service=row.instance.service) from error

    async def remove(self, row: Row) -> None:
        """Remove `row`, unless a later registration has replaced it. Raises ServiceDiscoveryError."""
        own = self._own.get(key_of(row))
        if own is None:
            return
        async with own.turn:
            if own.born != row.born:
                return
            try:
                if own.lease:
                    await self._revoke(own.lease)
            except EtcdError as error:
                raise ServiceDiscoveryError(str(error), service=row.instance.service) from error
            own.lease = 0

    async def _put(self, own: _Own, row: Row) -> None:
        """Store `row` with a lease, the one it has if that is still there."""
        body = {"key": encoded(self._folder + key_of(row)), "value": encoded(document_of(row))}
        try:
            if own.lease:
                try:
                    await self._client.call("kv/put", {**body, "lease": str(own.lease)})
                except EtcdError as error:
                    if error.kind is not Kind.GONE:
                        raise
                else:
                    return
            granted = await self._client.call("lease/grant", {"TTL": str(max(1, math.ceil(self._lease)))})
            own.lease = number(granted, "ID")
            await self._client.call("kv/put", {**body, "lease": str(own.lease)})
        except asyncio.CancelledError:  # nobody will withdraw what may have been stored
            self._revoke_later(own)
            raise

    async def _prolong(self, lease: int) -> bool:
        """Whether the lease was there; within a heartbeat, so that a member that hangs does not cost it."""
        timeout = max(SHORTEST_TIMEOUT, self._heartbeat)
        answer = await self._client.call("lease/keepalive", {"ID": str(lease)}, timeout=timeout)
        return number(answer, "TTL") > 0

    async def _is_there(self, row: Row) -> bool:
        """Whether the key is: somebody may have removed it by hand. Asks the member itself, without its quorum."""
        key = self._folder + key_of(row)
        if self._feed.sees(key):
            return True
        answer = await self._client.call("kv/range", {"key": encoded(key), "count_only": True, "serializable": True})
        return number(answer, "count") > 0

    async def _revoke(self, lease: int) -> None:
        try:
            await self._client.call("lease/revoke", {"ID": str(lease)})
        except EtcdError as error:
            if error.kind is not Kind.GONE:
                raise

    def _revoke_later(self, own: _Own) -> None:
        lease, own.lease = own.lease, 0
        if not lease:
            return
        work = self._revoke_quietly(lease)
        try:
            self._supervisor.start(work, name="etcd-revoke")
        except RuntimeError:  # closed before us: the lease will end by itself
            work.close()

    async def _revoke_quietly(self, lease: int) -> None:
        try:
            await self._revoke(lease)
        except EtcdError:
            return  # it will end by itself


class _Own:
    """What this process has stored under one key: for which registration, with which lease (0: none)."""

    __slots__ = ("born", "lease", "turn")

    def __init__(self, born: int = 0) -> None:
        self.born = born
        self.lease = 0
        self.turn = asyncio.Lock()


def _final(error: EtcdError) -> ConfigurationError | ServiceDiscoveryError:
    """The error for a first use: what waiting can't mend is one of the settings."""
    if error.kind is Kind.REFUSED:
        return ConfigurationError(f"discovery: {error}")
    return ServiceDiscoveryError(str(error))
