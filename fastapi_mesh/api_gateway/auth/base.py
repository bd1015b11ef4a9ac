"""A port for what checks credentials, and the ways in which a credential can be no good."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.exceptions import MeshError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastapi_mesh.api_gateway.principal import Principal
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.tasks import Supervisor


@dataclass(frozen=True, slots=True)
class FromHeader:
    """A credential in a header; with `scheme`, in `Authorization` after that word (RFC 9110 section 11.4)."""

    name: bytes
    scheme: bytes = b""

    def __post_init__(self) -> None:
        if self.name != self.name.lower() or self.scheme != self.scheme.lower():
            raise ValueError("the names of headers and schemes are given in lower case")


@dataclass(frozen=True, slots=True)
class FromQuery:
    """A credential in a query parameter. It is taken out of the request, so that no log of the service has it."""

    name: str


@dataclass(frozen=True, slots=True)
class FromCookie:
    """A credential in a cookie."""

    name: bytes


Place = FromHeader | FromQuery | FromCookie
BEARER = FromHeader(b"authorization", b"bearer")
"""Where RFC 6750 section 2.1 puts a token."""


class CredentialError(MeshError):
    """A credential that is no good. Its text is for our log; the client is told `description` and nothing else."""

    status: ClassVar[int] = 401
    reason: ClassVar[str] = "invalid-credentials"
    result: ClassVar[str] = "invalid"
    description: ClassVar[str] = "the credential is not valid"


class UnknownCredentialError(CredentialError):
    """This provider doesn't know the credential: another one that reads the same place may."""


class ExpiredCredentialError(CredentialError):
    """A credential that was good once, as its issuer's signature proves."""

    result: ClassVar[str] = "expired"
    description: ClassVar[str] = "the credential has expired"


class ProviderUnavailableError(MeshError):
    """What the provider needs to know can't be had now: its issuer, its keys. `retry_after` is seconds."""

    status: ClassVar[int] = 503
    reason: ClassVar[str] = "authentication-unavailable"

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Tools:
    """What a provider works with. `name` is what it is called in this gateway, and so the `provider` of its
    principals; `wall` is Unix time in seconds, which is what tokens are dated in.
    """

    supervisor: Supervisor
    name: str = ""
    clock: Clock = field(default_factory=SystemClock)
    wall: Callable[[], float] = time.time
    cache_size: int = 10_000
    production: bool = False


class Verifier:
    """Checks credentials while a gateway is open. `known` is asked first and waits for nothing."""

    def known(self, credential: str) -> Principal | None:
        """Whose credential this is, if that is known already."""
        return None

    async def authenticate(self, credential: str) -> Principal:
        """Whose credential this is. Raises CredentialError, ProviderUnavailableError."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Let go of connections."""


class AuthProvider:
    """What `configure_auth` takes: where a credential stands, and how it is checked.

    The simplest provider of your own gives `name`, `places`, `challenge` and `authenticate`; the gateway does the rest
    (reading, stripping, challenges, scopes and roles, metrics). It is asked for every request, so keep answers that
    cost something in a `Verifier` that `open` makes.
    """

    name: str = "custom"
    places: tuple[Place, ...] = (BEARER,)
    challenge: str = "Bearer"
    """The scheme of its `WWW-Authenticate`, with parameters that never change."""

    @property
    def settings(self) -> object:
        """What it was made of: while that stays equal, a reload keeps what it has learnt."""
        return self

    def warnings(self) -> list[str]:
        """What is weak about it, one line each: logged at start, an error in production."""
        return []

    def security_scheme(self) -> Mapping[str, object]:
        """The Security Scheme Object that describes it in OpenAPI (3.1, section 4.8.27)."""
        return {"type": "http", "scheme": "bearer"}

    def open(self, tools: Tools) -> Verifier:
        """What checks credentials for an open gateway. Must not wait: it connects when it is asked first."""
        return _Asking(self, tools.name)

    async def authenticate(self, credential: str) -> Principal:
        """Whose credential this is. Raises CredentialError."""
        raise NotImplementedError(f"{type(self).__name__} needs `authenticate` or `open`")


class _Asking(Verifier):
    """Asks the provider itself, every time."""

    def __init__(self, provider: AuthProvider, name: str) -> None:
        self._provider = provider
        self._name = name

    async def authenticate(self, credential: str) -> Principal:
        return replace(await self._provider.authenticate(credential), provider=self._name)
