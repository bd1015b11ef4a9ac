"""A config store that is a ConfigMap: a key is one of its data."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Literal

from fastapi_mesh.configstore.base import Entry, check_key, check_text
from fastapi_mesh.exceptions import ConfigStoreError, ConfigurationError, MeshError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi_mesh.core.objects import Object, Objects

KIND: Literal["configmaps"] = "configmaps"


class KubernetesStore:
    """Reads and writes the ConfigMap `name`; `namespace` None is that of `objects`, which it closes.

    The key "database" is the data key "database", or "database.json" if that is there; "teams/shop.toml" is
    "teams..shop.toml", since data keys have no "/". All keys together have at most 1 MiB.
    """

    def __init__(self, objects: Objects, *, name: str = "fastapi-mesh-config", namespace: str | None = None) -> None:
        self._objects = objects
        self._name = name
        self._namespace = namespace or objects.namespace

    def __repr__(self) -> str:
        return f"<KubernetesStore {self._namespace}/{self._name}>"

    async def open(self) -> None:
        """Ask once. Raises ConfigurationError for what waiting can't mend, ConfigStoreError when nobody answers."""
        try:
            await self._objects.get(KIND, self._namespace, self._name)
        except MeshError as error:
            if getattr(error, "status_code", None) in (401, 403):
                raise ConfigurationError(
                    f"config_store.kubernetes: {error}; the ServiceAccount needs the verbs get, list and watch for the "
                    f"configmap {self._name!r} in the namespace {self._namespace!r}, and patch and create to write"
                ) from error
            raise ConfigStoreError(str(error)) from error

    async def aclose(self) -> None:
        """Close all connections."""
        await self._objects.aclose()

    async def get(self, key: str) -> Entry | None:
        """See `ConfigStore.get`."""
        names = _names(key)
        try:
            found = await self._objects.get(KIND, self._namespace, self._name)
        except MeshError as error:
            raise ConfigStoreError(f"{key!r}: {error}") from error
        return _entry(key, names, found)

    async def watch(self, key: str) -> AsyncIterator[Entry | None]:
        """See `ConfigStore.watch`."""
        names = _names(key)
        first, last = True, None
        try:
            async with aclosing(self._objects.follow(KIND, self._namespace, self._name)) as batches:
                async for batch in batches:
                    if self._name in batch.changes or batch.complete:
                        entry = _entry(key, names, batch.changes.get(self._name))
                        if first or (entry and entry.text) != (last and last.text):
                            first, last = False, entry
                            yield entry
        except MeshError as error:
            raise ConfigStoreError(f"{key!r}: {error}") from error

    async def put(self, key: str, text: str) -> None:
        """See `ConfigWriter.put`."""
        await self._write(key, check_text(key, text))

    async def delete(self, key: str) -> None:
        """See `ConfigWriter.delete`."""
        await self._write(key, None)

    async def _write(self, key: str, text: str | None) -> None:
        names = _names(key)
        try:
            found = await self._objects.get(KIND, self._namespace, self._name)
            data = ((found or {}).get("data")) or {}
            name = next((each for each in names if each in data), names[0])
            await self._objects.put_data(self._namespace, self._name, {name: text})
        except MeshError as error:
            raise ConfigStoreError(f"{key!r}: {error}") from error


def _names(key: str) -> tuple[str, ...]:
    """The data keys that `key` may be. Raises ValueError for a key that no ConfigMap can have."""
    name = check_key(key).replace("/", "..")
    if ".." in key or not all(each.isascii() and (each.isalnum() or each in "-._") for each in name):
        raise ValueError(f"{key!r}: keys of a ConfigMap have letters, digits, '-', '_' and '.' only, and no '..'")
    return (name,) if "." in key.rpartition("/")[2] else (name, f"{name}.json")


def _entry(key: str, names: tuple[str, ...], found: Object | None) -> Entry | None:
    data = ((found or {}).get("data")) or {}
    name = next((each for each in names if each in data), None)
    if found is None or name is None:
        return None
    return Entry(key, check_text(key, data[name]), str(found["metadata"].get("resourceVersion", "")))
