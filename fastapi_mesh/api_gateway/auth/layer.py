"""Layers that find out who a client is, and whether it may do this."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fastapi_mesh.api_gateway.auth.base import CredentialError, ProviderUnavailableError, UnknownCredentialError
from fastapi_mesh.api_gateway.auth.challenges import (
    AmbiguousCredentialsError,
    AuthenticationRequiredError,
    AuthenticationUnavailableError,
    InsufficientScopeError,
    InvalidCredentialsError,
    MissingRoleError,
)
from fastapi_mesh.api_gateway.auth.reading import DoubleCredentialError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.api_gateway.auth.base import Place, Verifier
    from fastapi_mesh.api_gateway.auth.challenges import Challenges
    from fastapi_mesh.api_gateway.auth.reading import Found, Reader
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.api_gateway.principal import Principal
    from fastapi_mesh.core.message import Response

logger = logging.getLogger("fastapi_mesh.gateway")

NOBODY = "none"
"""What metrics call the provider of a request that brought no credential."""


class AuthMeter(Protocol):
    """Where authentications are counted."""

    def authentication(self, provider: str, result: str) -> None: ...


class Entry(NamedTuple):
    """A provider as a gateway uses it. `scheme` is for challenges."""

    name: str
    scheme: str
    places: tuple[Place, ...]
    verifier: Verifier


class Authenticate:
    """Sets `request.principal`, or refuses. Credentials are out of the request before any of them is looked at.

    The first provider, in order, that finds a credential decides: a wrong one is a refusal, and not a reason to look
    at others (`try_next` makes it one). Providers that read the same place are one in this: a token that one doesn't
    know is shown to the next.
    """

    __slots__ = ("_challenges", "_entries", "_meter", "_reader", "_try_next", "inner", "optional")

    def __init__(
        self,
        inner: GatewayService,
        entries: Sequence[Entry],
        reader: Reader,
        challenges: Challenges,
        *,
        optional: bool,
        try_next: bool,
        meter: AuthMeter | None,
    ) -> None:
        self.inner = inner
        self._entries = [(entry, reader.slots(entry.places)) for entry in entries]
        self._reader = reader
        self._challenges = challenges
        self.optional = optional
        self._try_next = try_next
        self._meter = meter

    async def __call__(self, request: Exchange) -> Response:
        found = self.take(request)
        if found:
            await self.identify(request, found)
        elif not self.optional:
            raise self.missing()
        return await self.inner(request)

    def take(self, request: Exchange) -> Found:
        """The credentials of a request, which are out of it then. Raises AmbiguousCredentialsError."""
        try:
            return self._reader.take(request)
        except DoubleCredentialError:
            raise self._ambiguous() from None

    async def identify(self, request: Exchange, found: Found) -> None:
        """Set the principal, or refuse what was found."""
        principal = self._known(found) or await self._check(found, request)
        request.principal = principal
        request.context.principal = principal.key

    def missing(self) -> AuthenticationRequiredError:
        """The refusal of a request without a credential."""
        self.count(NOBODY, "missing")
        return AuthenticationRequiredError(
            "This needs authentication, and the request has no credential.", headers=self._challenges.missing
        )

    def _known(self, found: Found) -> Principal | None:
        """The usual case, in which nobody has to wait: the first credential is one that was checked before."""
        for entry, slots in self._entries:
            for slot in slots:
                credential = found.get(slot)
                if credential is not None:
                    if len(found) > 1 and _is_double(slots, found):
                        raise self._ambiguous()
                    principal = entry.verifier.known(credential)
                    if principal is not None:
                        self.count(entry.name, "accepted")
                    return principal
        return None

    async def _check(self, found: Found, request: Exchange) -> Principal:
        """A provider that can't be asked is passed over: another one may know the credential. But then nobody who does
        not know it has the last word.
        """
        first: int | None = None
        refused: tuple[Entry, CredentialError] | None = None
        unavailable: ProviderUnavailableError | None = None
        for entry, slots in self._entries:
            slot = next((slot for slot in slots if slot in found), None)
            if slot is None or not (first is None or slot == first or self._try_next):
                continue
            if _is_double(slots, found):
                raise self._ambiguous()
            first = slot if first is None else first
            try:
                principal = entry.verifier.known(found[slot]) or await entry.verifier.authenticate(found[slot])
            except UnknownCredentialError as error:
                refused = refused or (entry, error)
                logger.debug("%s: %s does not know this credential: %s", request.route.path, entry.name, error)
            except CredentialError as error:
                refused = (entry, error)
                logger.debug("%s: %s refuses this credential: %s", request.route.path, entry.name, error)
                if not self._try_next:
                    raise self._invalid(entry, error) from error
            except ProviderUnavailableError as error:
                unavailable = unavailable or error
                self.count(entry.name, "unavailable")
                logger.debug("%s: %s can't tell: %s", request.route.path, entry.name, error)
            else:
                self.count(entry.name, "accepted")
                return principal
        if unavailable is not None:
            raise AuthenticationUnavailableError(
                "Credentials can't be checked at the moment.", retry_after=unavailable.retry_after
            ) from unavailable
        assert refused is not None, "what was found belongs to a provider"
        raise self._invalid(*refused)

    def _invalid(self, entry: Entry, error: CredentialError) -> InvalidCredentialsError:
        self.count(entry.name, error.result)
        description = error.description
        return InvalidCredentialsError(
            f"{description[0].upper()}{description[1:]}.", headers=self._challenges.invalid(description)
        )

    def _ambiguous(self) -> AmbiguousCredentialsError:
        self.count(NOBODY, "ambiguous")
        return AmbiguousCredentialsError(
            "The request has more than one credential of a kind; send one.", headers=self._challenges.ambiguous()
        )

    def count(self, provider: str, result: str) -> None:
        """Count an authentication, where there is a meter."""
        if self._meter is not None:
            self._meter.authentication(provider, result)


def _is_double(slots: tuple[int, ...], found: Found) -> bool:
    return len(slots) > 1 and sum(slot in found for slot in slots) > 1


class StripIdentity:
    """For routes that ask for no authentication: nobody can pretend that somebody was authenticated."""

    __slots__ = ("_never", "inner")

    def __init__(self, inner: GatewayService, never: frozenset[bytes]) -> None:
        self.inner = inner
        self._never = never

    async def __call__(self, request: Exchange) -> Response:
        never = self._never
        request.headers = [header for header in request.headers if header[0] not in never]
        return await self.inner(request)


class Authorize:
    """Lets through who has all of `scopes`, and one of `roles` where there are any."""

    __slots__ = ("_challenges", "_meter", "_roles", "_scopes", "inner")

    def __init__(
        self,
        inner: GatewayService,
        scopes: frozenset[str],
        roles: frozenset[str],
        challenges: Challenges,
        meter: AuthMeter | None,
    ) -> None:
        self.inner = inner
        self._scopes = scopes
        self._roles = roles
        self._challenges = challenges
        self._meter = meter

    async def __call__(self, request: Exchange) -> Response:
        principal = request.principal
        if principal is None or not self._scopes <= principal.scopes:
            self._forbidden(principal)
            raise InsufficientScopeError(
                "The credential does not cover this: a scope is missing.", headers=self._challenges.insufficient()
            )
        if self._roles and self._roles.isdisjoint(principal.roles):
            self._forbidden(principal)
            raise MissingRoleError("This takes a role that the client does not have.")
        return await self.inner(request)

    def _forbidden(self, principal: Principal | None) -> None:
        if self._meter is not None:
            self._meter.authentication(NOBODY if principal is None else principal.provider, "forbidden")
