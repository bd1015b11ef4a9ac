"""A memory of credentials that were found good, so that a signature is checked once and an issuer asked once."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.api_gateway.principal import Principal


class Verified:
    """Principals by the SHA-256 of their credential; the least recently used goes first beyond `size`.

    An entry is good until its own end, in Unix seconds, and not a moment longer. What was refused is not remembered:
    a client could fill the memory with that, and a key that appears a second later would not count.
    """

    __slots__ = ("_entries", "_size", "_wall")

    def __init__(self, size: int, wall: Callable[[], float]) -> None:
        self._entries: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self._size = size
        self._wall = wall

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, credential: str) -> Principal | None:
        """The principal of a credential that is still good."""
        digest = sha256(credential.encode()).digest()
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if entry[1] <= self._wall():
            del self._entries[digest]
            return None
        self._entries.move_to_end(digest)
        return entry[0]

    def put(self, credential: str, principal: Principal, until: float) -> None:
        """Remember a principal until a time, or until its credential ends, whichever is first."""
        if principal.expires is not None:
            until = min(until, principal.expires)
        if until <= self._wall():
            return
        self._entries[sha256(credential.encode()).digest()] = (principal, until)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget all: the keys that they were checked with changed."""
        self._entries.clear()
