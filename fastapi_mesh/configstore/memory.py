"""A config store in this process's memory: for tests, and for programs that make their configuration themselves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fastapi_mesh.configstore.base import Entry, check_key, check_text
from fastapi_mesh.discovery.bell import Bell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping


class MemoryStore:
    """Knows what it is told, as texts or as tables (which become JSON). Usable from several threads' event loops.

    >>> store = MemoryStore({"gateway": {"routes": []}})
    """

    def __init__(self, documents: Mapping[str, str | Mapping[str, object]] | None = None) -> None:
        self._bell = Bell()
        self._entries: dict[str, Entry] = {}
        for key, document in (documents or {}).items():
            self._put(key, document)

    def statistics(self) -> dict[str, int]:
        return {"keys": len(self._entries), "changes": self._bell.version}

    async def get(self, key: str) -> Entry | None:
        """See `ConfigStore.get`."""
        return self._entries.get(check_key(key))

    async def watch(self, key: str) -> AsyncIterator[Entry | None]:
        """See `ConfigStore.watch`; never raises ConfigStoreError."""
        check_key(key)
        last: Entry | None = None
        first = True
        while True:
            version = self._bell.version
            entry = self._entries.get(key)
            if first or (entry and entry.text) != (last and last.text):
                first, last = False, entry
                yield entry
            else:
                await self._bell.wait(version)

    async def put(self, key: str, text: str | Mapping[str, object]) -> None:
        """See `ConfigWriter.put`; a mapping is stored as JSON."""
        self._put(key, text)

    async def delete(self, key: str) -> None:
        """See `ConfigWriter.delete`."""
        if self._entries.pop(check_key(key), None) is not None:
            self._bell.ring()

    def _put(self, key: str, document: str | Mapping[str, object]) -> None:
        text = document if isinstance(document, str) else json.dumps(document)
        self._entries[check_key(key)] = Entry(key, check_text(key, text), str(self._bell.version + 1))
        self._bell.ring()
