"""The port for where answers are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.api_gateway.cache.entry import Entry
    from fastapi_mesh.api_gateway.cache.key import Key, Scope
    from fastapi_mesh.api_gateway.cache.vary import Selecting

RETENTION = 7 * 86400.0
"""Seconds that an answer is kept at most, however long it is fresh."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a store has for a request. `entry` is the newest one that fits it, `varies` the request fields by which the
    answers of this URL differ as far as is known, `version` what an answer asked for from now on is stored with.
    """

    entry: Entry | None
    varies: tuple[bytes, ...]
    version: str


class Store(Protocol):
    """Where answers are. No method raises for a store that fails."""

    async def find(self, key: Key, selecting: Selecting) -> Found | None:
        """What there is for a request; None when the store can't be asked."""
        ...

    async def put(self, key: Key, entry: Entry) -> bool:
        """Keep `entry`, in one step, in place of the one that fits the same requests.

        False when it was not kept: it was invalidated since `entry.version` was handed out, it is too large, or the
        store is gone.
        """
        ...

    async def remove(self, key: Key, entry: Entry) -> None:
        """Keep `entry` no longer."""
        ...


class Purger(Protocol):
    """What forgets answers, those too that are being fetched at this moment."""

    async def drop(self, scope: Scope) -> None: ...


class Claims(Protocol):
    """A lock across all processes that share the store."""

    async def claim(self, key: Key, entry: Entry, seconds: float) -> bool:
        """Whether it is this process that refreshes `entry`; nobody else's claim succeeds for `seconds`."""
        ...


class SharedStore(Store, Purger, Claims, Protocol):
    """All of it, as the cache of a gateway needs it."""

    async def aclose(self) -> None: ...

    def statistics(self) -> dict[str, int]: ...


def newest(entries: Iterable[Entry]) -> Entry | None:
    """Of several entries that fit, the one to use: what the service said last."""
    return max(entries, key=lambda entry: entry.received, default=None)
