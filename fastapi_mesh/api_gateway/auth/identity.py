"""A layer that tells the service who the client is: in headers, or in a short-lived JWT for that service alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from fastapi_mesh.api_gateway.auth.compact import encode
from fastapi_mesh.api_gateway.auth.jose import signer
from fastapi_mesh.api_gateway.auth.reading import spellings
from fastapi_mesh.api_gateway.auth.settings import secret_of
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.api_gateway.principal import Principal
    from fastapi_mesh.config.edge.auth import IdentityConfig
    from fastapi_mesh.core.message import Header, Response

SUBJECT, PROVIDER, SCOPES, ROLES = b"x-auth-subject", b"x-auth-provider", b"x-auth-scopes", b"x-auth-roles"
_SAFE = "!#$&'()*+,-./:;<=>?@[]^_`{|}~"
"""What needs no percent sign: all of printable ASCII but `"`, `%`, `\\` and space, and `,` in a list of roles."""
_REMEMBERED = 4096


def identity_names(config: IdentityConfig) -> frozenset[bytes]:
    """Headers that no client may send, in each spelling."""
    return spellings((SUBJECT, PROVIDER, SCOPES, ROLES, config.header.lower().encode()))


def plain_headers(principal: Principal) -> list[Header]:
    """Subject and provider, and scopes and roles where there are any; percent-encoded UTF-8 where not plain ASCII."""
    headers = [
        (SUBJECT, quote(principal.subject, safe=_SAFE).encode()),
        (PROVIDER, principal.provider.encode()),
    ]
    if principal.scopes:
        headers.append((SCOPES, " ".join(quote(each, safe=_SAFE) for each in sorted(principal.scopes)).encode()))
    if principal.roles:
        safe = _SAFE.replace(",", "")
        headers.append((ROLES, ",".join(quote(each, safe=safe) for each in sorted(principal.roles)).encode()))
    return headers


class Told(Protocol):
    """What a service is told of a client."""

    def headers(self, principal: Principal, service: str) -> list[Header]: ...

    def for_copy(self, headers: list[Header], principal: Principal, service: str) -> list[Header]: ...


class PlainIdentity:
    """The plain form. A client's requests have the same principal for as long as its credential is remembered."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, tuple[Principal, list[Header]]] = {}

    def headers(self, principal: Principal, service: str) -> list[Header]:
        """The headers; made once for each principal."""
        made = self._known.get(id(principal))
        if made is None or made[0] is not principal:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            made = self._known[id(principal)] = (principal, plain_headers(principal))
        return made[1]

    def for_copy(self, headers: list[Header], principal: Principal, service: str) -> list[Header]:
        """The headers of a request as its copy to another service has them: the same."""
        return headers


class SignedIdentity:
    """The signed form. One JWT serves a principal and a service for the first half of its life."""

    __slots__ = ("_config", "_header", "_known", "_name", "_sign", "_wall")

    def __init__(self, config: IdentityConfig, wall: Callable[[], float]) -> None:
        """Raises ConfigurationError when the key doesn't fit."""
        self._config = config
        self._wall = wall
        self._name = config.header.lower().encode()
        text = secret_of(config.key, config.key_file, "auth.identity.key_file") or ""
        try:
            self._sign = signer(text, config.algorithm)
        except ValueError as error:
            raise ConfigurationError(f"auth.identity.key: {error}") from None
        header = {"alg": config.algorithm, "typ": "JWT"} | ({"kid": config.key_id} if config.key_id else {})
        self._header = encode(json.dumps(header, separators=(",", ":")).encode())
        self._known: dict[tuple[int, str], tuple[Principal, list[Header], float]] = {}

    def headers(self, principal: Principal, service: str) -> list[Header]:
        """The header with the JWT."""
        now = self._wall()
        key = (id(principal), service)
        made = self._known.get(key)
        if made is None or made[0] is not principal or made[2] <= now:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            header = (self._name, self._new(principal, service, now))
            made = self._known[key] = (principal, [header], now + self._config.ttl / 2)
        return made[1]

    def for_copy(self, headers: list[Header], principal: Principal, service: str) -> list[Header]:
        """The headers of a request as its copy to another service has them: that one must not get, and could not use,
        the first one's JWT.
        """
        (own,) = self.headers(principal, service)
        return [own if header[0] == self._name else header for header in headers]

    def _new(self, principal: Principal, service: str, now: float) -> bytes:
        claims = {
            "iss": self._config.issuer,
            "aud": service,
            "sub": principal.subject,
            "provider": principal.provider,
            "scope": " ".join(sorted(principal.scopes)),
            "roles": sorted(principal.roles),
            "iat": int(now),
            "exp": int(now + self._config.ttl),
        }
        signed = f"{self._header}.{encode(json.dumps(claims, separators=(',', ':')).encode())}".encode()
        return signed + b"." + encode(self._sign(signed)).encode()


class Identity:
    """Adds what the service learns of the client. It sits where the service is known, which a split decides."""

    __slots__ = ("_told", "inner")

    def __init__(self, inner: GatewayService, told: Told) -> None:
        self.inner = inner
        self._told = told

    async def __call__(self, request: Exchange) -> Response:
        principal = request.principal
        if principal is not None:
            # A new list: others may hold the old one, for a copy of the request.
            request.headers = [*request.headers, *self._told.headers(principal, request.service)]
        return await self.inner(request)
