"""Refusals of authentication and authorization, with the challenges that tell a client what to bring (RFC 6750)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fastapi_mesh.api_gateway.problems import GatewayRefusalError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.core.message import Header


class AuthenticationRequiredError(GatewayRefusalError):
    """The route asks who the client is, and it brought nothing that says so."""

    status: ClassVar[int] = 401
    reason: ClassVar[str] = "authentication-required"


class InvalidCredentialsError(GatewayRefusalError):
    """What the client brought is not valid, or not any more."""

    status: ClassVar[int] = 401
    reason: ClassVar[str] = "invalid-credentials"


class AmbiguousCredentialsError(GatewayRefusalError):
    """The same kind of credential came twice (RFC 6750 section 2: one method per request)."""

    status: ClassVar[int] = 400
    reason: ClassVar[str] = "ambiguous-credentials"


class InsufficientScopeError(GatewayRefusalError):
    """The client is known, and its credential does not cover this."""

    status: ClassVar[int] = 403
    reason: ClassVar[str] = "insufficient-scope"


class MissingRoleError(GatewayRefusalError):
    """The client is known, and has none of the roles that this takes."""

    status: ClassVar[int] = 403
    reason: ClassVar[str] = "missing-role"


class AuthenticationUnavailableError(GatewayRefusalError):
    """Whether the credential is good can't be found out at the moment."""

    status: ClassVar[int] = 503
    reason: ClassVar[str] = "authentication-unavailable"


class Challenges:
    """The `WWW-Authenticate` fields of a route, one per scheme that it takes (RFC 9110 section 11.6.1).

    `schemes` are words, in order; `realm` and `scopes` were checked to need no escape. RFC 6750 section 3.1: a request
    without a credential is told no error.
    """

    __slots__ = ("_plain", "_scope", "_with_bearer", "missing")

    def __init__(self, schemes: Iterable[str], realm: str, scopes: Iterable[str] = ()) -> None:
        unique = list(dict.fromkeys(schemes))
        listed = " ".join(scopes)
        self._scope = f', scope="{listed}"' if listed else ""
        self._with_bearer = "Bearer" in unique
        self._plain = [f'{scheme} realm="{realm}"' for scheme in unique]
        self.missing: tuple[Header, ...] = self._fields("")

    def invalid(self, description: str) -> tuple[Header, ...]:
        """For a token that is no good."""
        return self._fields(f', error="invalid_token", error_description="{description}"')

    def ambiguous(self) -> tuple[Header, ...]:
        """For a request with two of them."""
        return self._fields(', error="invalid_request"')

    def insufficient(self) -> tuple[Header, ...]:
        """For a token that doesn't cover this."""
        return self._fields(', error="insufficient_scope"') if self._with_bearer else ()

    def _fields(self, error: str) -> tuple[Header, ...]:
        return tuple(
            (b"www-authenticate", (text + error + self._scope if text.startswith("Bearer ") else text).encode())
            for text in self._plain
        )
