"""Who sent a request, once a credential was checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated client.

    `subject` identifies it within `provider` (the name of what checked it), so the pair is unique and `key` is safe to
    count and to cache by. `scopes` and `roles` are what it may do; `claims` everything that the credential said;
    `expires` is the Unix time in seconds at which the credential ends, None for never.
    """

    subject: str
    provider: str
    scopes: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    claims: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    expires: float | None = None
    fingerprint: bytes = field(default=b"", init=False, repr=False, compare=False)
    """Kept by the cache once it has worked it out, where `claims` can't change."""

    @property
    def key(self) -> str:
        """What counters and caches know it by: no two principals of two providers share one."""
        return f"{len(self.provider)}:{self.provider}:{self.subject}"
