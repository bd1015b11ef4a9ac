"""What the providers of bearer tokens have in common: settings of a file, fixed keys, and keys that are fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Self, TypeVar

from fastapi_mesh.api_gateway.auth.base import AuthProvider
from fastapi_mesh.api_gateway.auth.jwks import KeysPolicy, Metadata, RemoteKeys
from fastapi_mesh.api_gateway.auth.keys import KeyRing, mixed
from fastapi_mesh.config.edge.providers import TokenConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.api_gateway.auth.base import Tools
    from fastapi_mesh.api_gateway.auth.http import Issuer
    from fastapi_mesh.api_gateway.auth.keys import KeySource

Config = TypeVar("Config", bound=TokenConfig)


class TokenProvider(AuthProvider, Generic[Config]):
    """A provider with `_config`; `_ring` has its keys where they are fixed, None where they are fetched."""

    _config: Config
    _algorithms: tuple[str, ...]
    _ring: KeyRing | None

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """The provider for settings of a file or of the environment."""
        provider = cls.__new__(cls)
        provider._take(config)
        return provider

    def _take(self, config: Config) -> None:
        """Read keys and secrets. Raises ConfigurationError."""
        raise NotImplementedError

    def warnings(self) -> list[str]:
        problems = [] if self._ring is None else self._ring.weaknesses()
        if self._config.jwks is not None and (problem := mixed(self._config.jwks.get_secret_value())):
            problems.append(problem)
        return problems

    def _remote_keys(
        self, address: str | Metadata, http: Issuer, tools: Tools, changed: Callable[[], object]
    ) -> KeySource:
        """The keys that are published at `address`."""
        config = self._config
        return RemoteKeys(
            address,
            http,
            tools,
            algorithms=self._algorithms,
            policy=KeysPolicy(config.keys_ttl, config.keys_cooldown, config.keys_stale),
            on_change=changed,
        )
