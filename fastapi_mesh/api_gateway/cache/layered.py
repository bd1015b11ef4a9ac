"""A store in memory in front of a shared one: what is asked for often needs no way over the network."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.cache.store import Found

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.api_gateway.cache.entry import Entry
    from fastapi_mesh.api_gateway.cache.key import Key, Scope
    from fastapi_mesh.api_gateway.cache.memory import MemoryStore
    from fastapi_mesh.api_gateway.cache.redis import RedisStore
    from fastapi_mesh.api_gateway.cache.vary import Selecting

MAX_CHECKED = 16384
"""URLs whose last check is remembered; then the memory of it starts anew."""
LONGEST_CHECKED = 512
"""Bytes of a place whose check is remembered; a longer one is checked each time, so that clients can't fill memory."""


class LayeredStore:
    """An answer in memory is served for `recheck` seconds after the shared store has confirmed it.

    So an invalidation by another process is seen after that time, one of this process at once.
    """

    def __init__(
        self,
        memory: MemoryStore,
        shared: RedisStore,
        *,
        recheck: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = memory
        self._shared = shared
        self._recheck = recheck
        self._clock = clock
        self._checked: dict[tuple[bytes, bytes], tuple[float, str]] = {}
        """By place and own partition: until when, and under which version, what is in memory was confirmed."""

    def statistics(self) -> dict[str, int]:
        return {**self._memory.statistics(), **self._shared.statistics()}

    async def find(self, key: Key, selecting: Selecting) -> Found | None:
        here = self._memory.look(key, selecting)
        checked = self._checked.get((key.place, key.own))
        if (
            here.entry is not None
            and checked is not None
            and here.entry.version == checked[1]
            and self._clock() < checked[0]
        ):
            return Found(here.entry, here.varies, checked[1])
        found = await self._shared.lookup(key, selecting, here.entry)
        if found is None:
            return None
        if found.entry is not here.entry:
            if here.entry is not None:
                self._memory.forget(key, here.entry)
            if found.entry is not None:
                self._memory.keep(key, found.entry)
        self._confirm(key, found.version)
        return found

    async def put(self, key: Key, entry: Entry) -> bool:
        checked = self._checked.get((key.place, key.own))
        if checked is None or checked[1] == entry.version:  # else it was invalidated meanwhile
            self._memory.keep(key, entry)
        return await self._shared.put(key, entry)

    async def remove(self, key: Key, entry: Entry) -> None:
        self._memory.forget(key, entry)
        await self._shared.remove(key, entry)

    async def drop(self, scope: Scope) -> None:
        self._memory.clear(scope)
        self._checked.clear()
        await self._shared.drop(scope)

    async def claim(self, key: Key, entry: Entry, seconds: float) -> bool:
        return await self._shared.claim(key, entry, seconds)

    async def aclose(self) -> None:
        await self._memory.aclose()
        await self._shared.aclose()

    def _confirm(self, key: Key, version: str) -> None:
        if len(key.place) > LONGEST_CHECKED:
            return
        if len(self._checked) >= MAX_CHECKED:
            self._checked.clear()
        self._checked[key.place, key.own] = (self._clock() + self._recheck, version)
