"""Ports for configuration that changes while programs run: get and watch a key, and put one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fastapi_mesh.config.files import read_text
from fastapi_mesh.exceptions import ConfigStoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

MAX_SIZE = 1024 * 1024
"""Bytes that one document may have in UTF-8; etcd and Kubernetes take no more either."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store has under a key: a text, and a version that changes with each write of it.

    The text is a document of settings, written as the key's ending says: `.toml`, `.yaml`, else JSON.
    """

    key: str
    text: str
    version: str

    def document(self) -> Mapping[str, object]:
        """The text as a table. Raises ConfigurationError when it is none."""
        return read_text(self.text, self.key, f"config store, {self.key!r}").data


class ConfigStore(Protocol):
    """Where programs find configuration. These two methods are enough for a backend of your own."""

    async def get(self, key: str) -> Entry | None:
        """What is under `key`; None where there is nothing. Raises ConfigStoreError when the store can't be asked."""
        ...

    def watch(self, key: str) -> AsyncIterator[Entry | None]:
        """Yield what is under `key`: at once, and again whenever it changes; None where there is nothing.

        Each text (or None) differs from the one before; of quick changes only the last need be seen. The iterator
        never ends by itself; when the store can't be reached it raises ConfigStoreError (the caller keeps what it has,
        waits, and calls `watch` again).
        """
        ...


class ConfigWriter(Protocol):
    """Who may change configuration."""

    async def put(self, key: str, text: str) -> None:
        """Store `text` under `key`. Raises ConfigStoreError when that can't be done, ValueError for no valid key."""
        ...

    async def delete(self, key: str) -> None:
        """Remove what is under `key`, if there is something."""
        ...


def check_key(key: str) -> str:
    """`key`, if every backend can have it: not empty, printable, no leading "/", no segment "." or "..", no "\\\\".

    >>> check_key("teams/payments/gateway.toml")
    'teams/payments/gateway.toml'
    """
    steps = key.split("/")
    if not key or len(key) > 250 or not key.isprintable() or "\\" in key or {"", ".", ".."} & set(steps):
        raise ValueError(f"{key!r} is not a key of a config store: segments between '/', like 'gateway.toml'")
    return key


def check_text(key: str, text: str) -> str:
    """`text`, if it is small enough for every backend."""
    if len(text) > MAX_SIZE or len(text.encode()) > MAX_SIZE:
        raise ConfigStoreError(f"{key!r}: a document has at most {MAX_SIZE} bytes")
    return text
