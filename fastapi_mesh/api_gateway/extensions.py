"""What only code can give a gateway: objects with behaviour, where the configuration has data."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi_mesh.api_gateway.auth.base import AuthProvider
    from fastapi_mesh.api_gateway.middleware import Foreign
    from fastapi_mesh.api_gateway.ratelimit.keys import CostFunction, KeyFunction
    from fastapi_mesh.api_gateway.transform.steps import TransformerPair
    from fastapi_mesh.health.checks import Check


@dataclass(frozen=True, slots=True)
class Extensions:
    """Immutable: a change makes a new one (`dataclasses.replace`), and an open gateway takes it whole."""

    transformers: tuple[TransformerPair, ...] = ()
    """What each `add_transformers` gave, in order."""
    auth_providers: tuple[AuthProvider, ...] = ()
    """What checks credentials, before those of the settings."""
    middleware_provider: AuthProvider | None = None
    """The provider of an AuthenticationMiddleware, asked after those of `configure_auth`."""
    health_checks: tuple[Check, ...] = ()
    """What the gateway's own health depends on."""
    foreign: tuple[Foreign, ...] = ()
    """Foreign ASGI middleware, the first outermost: each makes itself around an application."""
    rate_limit_keys: Mapping[str, KeyFunction] = field(default_factory=lambda: MappingProxyType({}))
    """By name: who a request is counted for."""
    rate_limit_costs: Mapping[str, CostFunction] = field(default_factory=lambda: MappingProxyType({}))
    """By name: how much a request counts."""

    @property
    def providers(self) -> tuple[AuthProvider, ...]:
        """Everything of code's that checks credentials, in the order in which it is asked."""
        last = self.middleware_provider
        return self.auth_providers if last is None else (*self.auth_providers, last)
