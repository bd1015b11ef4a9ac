"""The keys of a provider of tokens: which one a token means, and what is wrong with them together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fastapi_mesh.api_gateway.auth.base import UnknownCredentialError
from fastapi_mesh.api_gateway.auth.jose import key_set, kinds_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi_mesh.api_gateway.auth.compact import Compact
    from fastapi_mesh.api_gateway.auth.jose import Key


class KeyRing:
    """Immutable. A token's `kid` is a name to compare, and never a path, a query or an address."""

    __slots__ = ("_keys", "algorithms")

    def __init__(self, keys: Iterable[Key], algorithms: tuple[str, ...]) -> None:
        self._keys = tuple(keys)
        self.algorithms = frozenset(algorithms)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, token: Compact) -> Key | None:
        """The one key that may check a token; None where no key has its `kid`.

        Without a `kid`, or where the keys themselves have none, there must be no choice. Raises
        UnknownCredentialError for a token whose algorithm isn't the provider's, or that could mean several keys.
        """
        if token.algorithm not in self.algorithms:
            raise UnknownCredentialError("the algorithm is not this provider's")
        fitting = [key for key in self._keys if token.algorithm in key.fits]
        if token.key_id is not None:
            named = [key for key in fitting if key.id == token.key_id]
            if not named and len(fitting) == 1 and fitting[0].id is None:
                named = fitting
            if len(named) > 1:
                raise UnknownCredentialError("several keys have this kid")
            return named[0] if named else None
        if len(fitting) > 1:
            raise UnknownCredentialError("no kid, and several keys")
        return fitting[0] if fitting else None

    def strong(self) -> KeyRing:
        """The same without weak keys."""
        return KeyRing([key for key in self._keys if not key.weakness], tuple(self.algorithms))

    def weaknesses(self) -> list[str]:
        """What is weak about each key."""
        return [
            f"{key.weakness}{'' if key.id is None else f' (kid {key.id!r:.80})'}" for key in self._keys if key.weakness
        ]


class KeySource(Protocol):
    """Where a token's key comes from."""

    async def find(self, token: Compact) -> Key:
        """Raises UnknownCredentialError, ProviderUnavailableError."""
        ...

    async def aclose(self) -> None: ...


class FixedKeys:
    """Keys that the settings have."""

    __slots__ = ("_ring",)

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    async def find(self, token: Compact) -> Key:
        key = self._ring.find(token)
        if key is None:
            raise UnknownCredentialError("no key has this kid")
        return key

    async def aclose(self) -> None:
        """There is nothing to close."""


def ring_of(document: Mapping[str, object], algorithms: tuple[str, ...], *, public: bool) -> KeyRing:
    """The ring of a key set. With `public` secrets in it are left out: everybody can read it.

    Raises ValueError when it has no key for `algorithms`.
    """
    names = tuple(name for name in algorithms if not (public and name.startswith("HS")))
    keys = key_set(document, names)
    if not keys:
        raise ValueError(f"it has no key for {', '.join(algorithms)}")
    return KeyRing(keys, names)


def mixed(document: Mapping[str, object]) -> str:
    """What is wrong with the kinds of keys in a set; "" for nothing."""
    kinds = kinds_in(document)
    if "oct" in kinds and len(kinds) > 1:
        return "the key set mixes secrets and public keys, which invites to take one for the other"
    return ""
