"""A backend that keeps answers in this process: bounded in bytes, the least recently used ones go first."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.cache.store import Found, newest

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.cache.entry import Entry
    from fastapi_mesh.api_gateway.cache.key import Key, Scope
    from fastapi_mesh.api_gateway.cache.vary import Selecting

MEMORY_OF_DROPS = 1024
"""Invalidations that are remembered for answers on their way; one that is older than all of them is not stored."""
_PER_SHELF = 500


class Shelf:
    """The answers of one URL for one partition, the newest first."""

    __slots__ = ("entries", "key")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.entries: list[Entry] = []


class MemoryStore:
    """Everything happens in one step of the event loop, so there is no lock.

    `max_bytes` counts bodies, headers and an estimate of the objects around them. A version is the number of
    invalidations so far.
    """

    def __init__(self, max_bytes: int, *, max_variants: int = 32) -> None:
        self._max_bytes = max_bytes
        self._max_variants = max_variants
        self._shelves: OrderedDict[tuple[bytes, bytes], Shelf] = OrderedDict()
        """By place and partition, the least recently used first; a dict takes long to find its first key again."""
        self._paths: dict[bytes, set[tuple[bytes, bytes]]] = {}
        self._drops: deque[tuple[int, Scope]] = deque(maxlen=MEMORY_OF_DROPS)
        self._version = 0
        self._bytes = 0
        self._evicted = 0

    def statistics(self) -> dict[str, int]:
        """Answers and bytes that are kept now, and how many had to go for others."""
        entries = sum(len(shelf.entries) for shelf in self._shelves.values())
        return {"entries": entries, "bytes": self._bytes, "evicted": self._evicted}

    async def find(self, key: Key, selecting: Selecting) -> Found | None:
        return self.look(key, selecting)

    def look(self, key: Key, selecting: Selecting) -> Found:
        """`find`, for those who know that it is in memory."""
        shelves = self._shelves
        found: Entry | None = None
        varies: tuple[bytes, ...] = ()
        for partition in key.partitions:
            place = (key.place, partition)
            shelf = shelves.get(place)
            if shelf is None:
                continue
            shelves.move_to_end(place)
            for entry in shelf.entries:
                if not entry.selectors or selecting.matches(entry.selectors):
                    found = entry if found is None else newest((found, entry))
                    break
            varies += tuple([name for name, _ in shelf.entries[0].selectors if name not in varies])
        return Found(found, varies, str(self._version))

    async def put(self, key: Key, entry: Entry) -> bool:
        return self.keep(key, entry)

    def keep(self, key: Key, entry: Entry) -> bool:
        """`put`, at once."""
        if entry.size + _PER_SHELF > self._max_bytes or self._was_dropped(key, entry.version):
            return False
        place = (key.place, entry.partition)
        shelf = self._shelves.pop(place, None)
        if shelf is None:
            shelf = Shelf(key)
            self._paths.setdefault(key.path, set()).add(place)
            self._bytes += _size_of(key)
        self._shelves[place] = shelf
        for old in [old for old in shelf.entries if old.selectors == entry.selectors]:
            self._take_out(shelf, old)
        shelf.entries.insert(0, entry)
        self._bytes += entry.size
        while len(shelf.entries) > self._max_variants:
            self._evicted += 1
            self._take_out(shelf, shelf.entries[-1])
        while self._bytes > self._max_bytes:
            oldest = next(iter(self._shelves))
            self._evicted += len(self._shelves[oldest].entries)
            self._drop_shelf(oldest)
        return place in self._shelves

    async def remove(self, key: Key, entry: Entry) -> None:
        self.forget(key, entry)

    def forget(self, key: Key, entry: Entry) -> None:
        """`remove`, at once; only this very entry, not one that took its place."""
        place = (key.place, entry.partition)
        shelf = self._shelves.get(place)
        if shelf is not None and any(each is entry for each in shelf.entries):
            self._take_out(shelf, entry)
            if not shelf.entries:
                self._drop_shelf(place)

    async def drop(self, scope: Scope) -> None:
        self._version += 1
        self._drops.append((self._version, scope))
        self.clear(scope)

    def clear(self, scope: Scope) -> None:
        """Forget what is kept, and say nothing of what is on its way."""
        if scope.kind == "path":
            places = list(self._paths.get(scope.value, ()))
        else:
            places = [place for place, shelf in self._shelves.items() if scope.covers(shelf.key)]
        for place in places:
            self._drop_shelf(place)

    async def claim(self, key: Key, entry: Entry, seconds: float) -> bool:
        """There is no other process; that nobody in this one is at it is the business of single flight."""
        return True

    async def aclose(self) -> None:
        self._shelves.clear()
        self._paths.clear()
        self._bytes = 0

    def _was_dropped(self, key: Key, version: str) -> bool:
        """Whether something that covers `key` was invalidated after `version` was handed out."""
        if not version.isdigit():
            return False
        then = int(version)
        if self._version == then:
            return False
        if self._drops[0][0] > then + 1:  # too long ago to know
            return True
        return any(number > then and scope.covers(key) for number, scope in reversed(self._drops))

    def _take_out(self, shelf: Shelf, entry: Entry) -> None:
        shelf.entries = [each for each in shelf.entries if each is not entry]
        self._bytes -= entry.size

    def _drop_shelf(self, place: tuple[bytes, bytes]) -> None:
        shelf = self._shelves.pop(place)
        self._bytes -= _size_of(shelf.key) + sum(entry.size for entry in shelf.entries)
        places = self._paths.get(shelf.key.path)
        if places is not None:
            places.discard(place)
            if not places:
                del self._paths[shelf.key.path]


def _size_of(key: Key) -> int:
    """Bytes of a shelf without its answers."""
    return _PER_SHELF + len(key.place) + len(key.path)
