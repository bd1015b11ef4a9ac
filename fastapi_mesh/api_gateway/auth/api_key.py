"""A provider of API keys, in a header, a query parameter or a cookie: known by their hashes, or to your function."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.auth.base import (
    AuthProvider,
    FromCookie,
    FromHeader,
    FromQuery,
    ProviderUnavailableError,
    UnknownCredentialError,
    Verifier,
)
from fastapi_mesh.api_gateway.auth.flight import Flights
from fastapi_mesh.api_gateway.auth.settings import settings_from
from fastapi_mesh.api_gateway.auth.verified import Verified
from fastapi_mesh.api_gateway.principal import Principal
from fastapi_mesh.config.edge.providers import ApiKeyAuthConfig
from fastapi_mesh.exceptions import ConfigurationError, MeshError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from fastapi_mesh.api_gateway.auth.base import Place, Tools
    from fastapi_mesh.config.edge.providers import ApiKeyConfig

    Verify = Callable[[str], Awaitable[Principal | str | None]]
    """Whose key this is: a Principal, the name of its owner, or None for a key that is not good."""

SHORTEST = 16
"""Characters of a key below which it can be guessed in time."""
LONGEST = 1024
_HASHED = "sha256:"


@dataclass(frozen=True, slots=True)
class _Owner:
    digest: bytes
    principal: Principal


class KeyVerifier(Verifier):
    """Finds keys by their SHA-256. A caller can't choose where in the table its guess falls, and what is found is
    compared in constant time once more, so that how long an answer takes says nothing about the keys.
    """

    def __init__(self, owners: Iterable[_Owner]) -> None:
        self._owners = {owner.digest: owner for owner in owners}

    def known(self, credential: str) -> Principal | None:
        digest = sha256(credential.encode()).digest()
        owner = self._owners.get(digest)
        if owner is None or not hmac.compare_digest(owner.digest, digest):
            return None
        return owner.principal

    async def authenticate(self, credential: str) -> Principal:
        principal = self.known(credential)
        if principal is None:
            raise UnknownCredentialError("no such key")
        return principal


class AskedVerifier(Verifier):
    """Asks a function, once for all who bring the same key at the same time, after the keys of the settings."""

    def __init__(self, fixed: KeyVerifier, verify: Verify, tools: Tools, name: str, ttl: float) -> None:
        self._fixed = fixed
        self._verify = verify
        self._wall = tools.wall
        self._name = name
        self._ttl = ttl
        self._verified = Verified(tools.cache_size, tools.wall)
        self._flights: Flights[Principal] = Flights(tools.supervisor, "gateway-api-key")

    def known(self, credential: str) -> Principal | None:
        return self._fixed.known(credential) or self._verified.get(credential)

    async def authenticate(self, credential: str) -> Principal:
        if not 0 < len(credential) <= LONGEST:
            raise UnknownCredentialError("empty, or very long")
        return await self._flights.join(credential, lambda: self._ask(credential))

    async def aclose(self) -> None:
        await self._flights.aclose()

    async def _ask(self, key: str) -> Principal:
        try:
            found = await self._verify(key)
        except MeshError:
            raise
        except Exception as error:  # a function of the user's, which may fail in any way
            raise ProviderUnavailableError(f"verify raised {type(error).__name__}: {error}", retry_after=1.0) from error
        if not found:
            raise UnknownCredentialError("no such key")
        principal = Principal(found, self._name) if isinstance(found, str) else replace(found, provider=self._name)
        self._verified.put(key, principal, self._wall() + self._ttl)
        return principal


class APIKeyAuthProvider(AuthProvider):
    """API keys, in a header, a query parameter or a cookie.

        APIKeyAuthProvider(api_key_header="X-API-Key", keys={"billing": "…"})

    `keys` has the keys, as a list or by the name of their owner; a value may also be a table with `key`, `scopes` and
    `roles`, and a key may be given as `sha256:` and its hash. Only hashes are kept. `verify` is an async function that
    gets a key that isn't among them and gives a `Principal`, a name, or None; its answer is good for `cache_ttl`
    seconds. Two keys in one request are refused. Raises ConfigurationError.
    """

    challenge = "ApiKey"

    def __init__(
        self,
        api_key_header: str | None = "X-API-Key",
        api_key_query: str | None = "api_key",
        *,
        api_key_cookie: str | None = None,
        keys: Iterable[str] | Mapping[str, object] | None = None,
        verify: Verify | None = None,
        name: str | None = None,
        cache_ttl: float | None = None,
    ) -> None:
        listed = keys if keys is None or hasattr(keys, "items") else list(keys)
        given = {"name": name, "api_key_cookie": api_key_cookie, "keys": listed, "cache_ttl": cache_ttl}
        places = {"api_key_header": api_key_header, "api_key_query": api_key_query}
        config = settings_from(ApiKeyAuthConfig, given, "APIKeyAuthProvider", places)
        self._take(config, verify)

    @classmethod
    def from_config(cls, config: ApiKeyAuthConfig) -> APIKeyAuthProvider:
        """The provider for settings of a file or of the environment."""
        provider = cls.__new__(cls)
        provider._take(config, None)
        return provider

    def __repr__(self) -> str:
        return f"<APIKeyAuthProvider {self.name!r}, {len(self._owners)} keys>"

    @property
    def settings(self) -> object:
        return (APIKeyAuthProvider, self.name, self.places, self._owners, self._verify, self._ttl)

    def warnings(self) -> list[str]:
        problems = list(self._weak)
        if not self._owners and self._verify is None:
            problems.append("it has no keys and no verify function, so it refuses every key")
        return problems

    def security_scheme(self) -> Mapping[str, object]:
        place = self.places[0]
        where, name = "cookie", ""
        if isinstance(place, FromHeader):
            where, name = "header", self._header or ""
        elif isinstance(place, FromQuery):
            where, name = "query", place.name
        else:
            name = place.name.decode()
        return {"type": "apiKey", "in": where, "name": name}

    def open(self, tools: Tools) -> Verifier:
        fixed = KeyVerifier(
            _Owner(owner.digest, replace(owner.principal, provider=tools.name)) for owner in self._owners
        )
        if self._verify is None:
            return fixed
        return AskedVerifier(fixed, self._verify, tools, tools.name, self._ttl)

    def _take(self, config: ApiKeyAuthConfig, verify: Verify | None) -> None:
        self.name = config.name or "api_key"
        self._header = config.api_key_header
        self._verify = verify
        self._ttl = config.cache_ttl
        places: list[Place] = []
        if config.api_key_header:
            places.append(FromHeader(config.api_key_header.lower().encode()))
        if config.api_key_query:
            places.append(FromQuery(config.api_key_query))
        if config.api_key_cookie:
            places.append(FromCookie(config.api_key_cookie.encode()))
        self.places = tuple(places)
        self._weak: list[str] = []
        self._owners = tuple(self._owner(name, each) for name, each in config.keys.items())
        if len({owner.digest for owner in self._owners}) < len(self._owners):
            raise ConfigurationError(f"{self.name}.keys: two owners have the same key")

    def _owner(self, name: str, config: ApiKeyConfig) -> _Owner:
        """The key itself is read here and let go."""
        text = config.key.get_secret_value()
        if text.startswith(_HASHED):
            digest = bytes.fromhex(text.removeprefix(_HASHED))
        else:
            digest = sha256(text.encode()).digest()
            if len(text) < SHORTEST:
                self._weak.append(f"the key of {name!r} has {len(text)} characters, fewer than {SHORTEST}")
        return _Owner(digest, Principal(name, self.name, frozenset(config.scopes), frozenset(config.roles)))
