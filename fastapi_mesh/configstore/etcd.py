"""A config store in etcd: the text of a document is the value of `PREFIX/NAMESPACE/config/KEY`."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from fastapi_mesh.configstore.base import Entry, check_key, check_text
from fastapi_mesh.discovery.etcd_follow import Follow
from fastapi_mesh.discovery.etcd_messages import EtcdError, Kind, encoded, entries, key_value
from fastapi_mesh.discovery.etcd_rows import Space
from fastapi_mesh.exceptions import ConfigStoreError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.discovery.etcd_client import EtcdClient
    from fastapi_mesh.discovery.etcd_messages import KeyValue


class EtcdStore:
    """A ConfigStore and a ConfigWriter over `client`, which it closes. The key's name is not escaped, so that
    `etcdctl put fastapi-mesh/default/config/gateway.toml` writes it.

    The version of an entry is the revision of etcd at which it was written.
    """

    def __init__(
        self,
        client: EtcdClient,
        *,
        space: Space | None = None,
        clock: Clock | None = None,
    ) -> None:
        space = space or Space()
        self._client = client
        self._folder = space.folder("config")
        self._watch_idle = space.watch_idle
        self._clock = clock

    def statistics(self) -> dict[str, int]:
        """Calls and watches made, changes to another endpoint, and tokens fetched."""
        return self._client.statistics()

    async def open(self) -> None:
        """Ask once, to learn at once what waiting can't mend.

        Raises ConfigurationError for that, ConfigStoreError when no endpoint answers.
        """
        try:
            await self._client.call("kv/range", {"key": encoded(self._folder), "count_only": True})
        except EtcdError as error:
            if error.kind is Kind.REFUSED:
                raise ConfigurationError(f"config_store: {error}") from error
            raise ConfigStoreError(str(error)) from error

    async def aclose(self) -> None:
        """Close all connections. Safe to call twice."""
        await self._client.aclose()

    async def get(self, key: str) -> Entry | None:
        """See `ConfigStore.get`."""
        name = self._name(key)
        try:
            answer = await self._client.call("kv/range", {"key": encoded(name)})
            found = [key_value(each) for each in entries(answer, "kvs")]
        except EtcdError as error:
            raise _error(key, error) from error
        return self._entry(key, found[0]) if found else None

    async def watch(self, key: str) -> AsyncIterator[Entry | None]:
        """See `ConfigStore.watch`."""
        name = self._name(key)
        follow = Follow(self._client, name, b"", lambda found: found, idle=self._watch_idle, clock=self._clock)
        last: Entry | None = None
        first = True
        try:
            async with aclosing(follow.changes()) as batches:
                async for batch in batches:
                    if not batch.complete and name not in batch.changes:
                        continue
                    found = batch.changes.get(name)
                    entry = self._entry(key, found) if found is not None else None
                    if first or (entry and entry.text) != (last and last.text):
                        first, last = False, entry
                        yield entry
        except EtcdError as error:
            raise _error(key, error) from error

    async def put(self, key: str, text: str) -> None:
        """See `ConfigWriter.put`."""
        value = encoded(check_text(key, text).encode())
        try:
            await self._client.call("kv/put", {"key": encoded(self._name(key)), "value": value})
        except EtcdError as error:
            raise _error(key, error) from error

    async def delete(self, key: str) -> None:
        """See `ConfigWriter.delete`."""
        try:
            await self._client.call("kv/deleterange", {"key": encoded(self._name(key))})
        except EtcdError as error:
            raise _error(key, error) from error

    def _name(self, key: str) -> bytes:
        return self._folder + check_key(key).encode()

    def _entry(self, key: str, found: KeyValue) -> Entry:
        try:
            return Entry(key, found.value.decode(), str(found.modified))
        except UnicodeDecodeError as error:
            raise ConfigStoreError(f"{key!r} is not UTF-8: {error}") from error


def _error(key: str, error: EtcdError) -> ConfigStoreError:
    return ConfigStoreError(f"{key!r}: {error}")
