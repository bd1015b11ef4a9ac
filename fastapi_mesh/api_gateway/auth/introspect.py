"""Asks an authorization server about a token (RFC 7662), once for all who bring it."""

from __future__ import annotations

import base64
import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote_plus

from fastapi_mesh.api_gateway.auth.base import ProviderUnavailableError, UnknownCredentialError, Verifier
from fastapi_mesh.api_gateway.auth.claims import principal_of
from fastapi_mesh.api_gateway.auth.compact import LONGEST
from fastapi_mesh.api_gateway.auth.flight import Flights
from fastapi_mesh.api_gateway.auth.jwks import Metadata
from fastapi_mesh.api_gateway.auth.verified import Verified
from fastapi_mesh.exceptions import MeshError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi_mesh.api_gateway.auth.base import Tools
    from fastapi_mesh.api_gateway.auth.claims import ClaimRules
    from fastapi_mesh.api_gateway.auth.compact import Json
    from fastapi_mesh.api_gateway.auth.http import Issuer
    from fastapi_mesh.api_gateway.principal import Principal

logger = logging.getLogger("fastapi_mesh.gateway")

RETRY_AFTER = 1.0
"""Seconds that clients are told to wait while the server can't be asked."""
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)


class Introspector(Verifier):
    """Remembers what is active for `ttl` seconds, never past its `exp`; what isn't, it asks about again."""

    def __init__(
        self,
        address: str | Metadata,
        http: Issuer,
        tools: Tools,
        *,
        rules: ClaimRules,
        credentials: ClientCredentials,
        ttl: float,
    ) -> None:
        self._address = address
        self._http = http
        self._wall = tools.wall
        self._rules = replace(rules, required=(), token_type=None)
        self._credentials = credentials
        self._ttl = ttl
        self._verified = Verified(tools.cache_size, tools.wall)
        self._flights: Flights[Principal] = Flights(tools.supervisor, "gateway-introspect")

    def known(self, credential: str) -> Principal | None:
        return self._verified.get(credential)

    async def authenticate(self, credential: str) -> Principal:
        if len(credential) > LONGEST or not _TOKEN.fullmatch(credential):
            raise UnknownCredentialError("no token in form (RFC 6750 section 2.1)")
        return await self._flights.join(credential, lambda: self._ask(credential))

    async def aclose(self) -> None:
        await self._flights.aclose()
        await self._http.aclose()

    async def _ask(self, token: str) -> Principal:
        form = {"token": token, "token_type_hint": "access_token", **self._credentials.form}
        try:
            address = self._address
            url = address if isinstance(address, str) else await address.endpoint("introspection_endpoint")
            answer = await self._http.post(url, form, self._credentials.headers)
        except MeshError as error:
            if isinstance(self._address, Metadata):
                self._address.forget()
            logger.warning("%s: a token could not be asked about: %s", self._rules.provider, error)
            raise ProviderUnavailableError(str(error), retry_after=RETRY_AFTER) from error
        if answer.get("active") is not True:
            raise UnknownCredentialError("not active")
        principal = self._principal(answer)
        self._verified.put(token, principal, self._wall() + self._ttl)
        return principal

    def _principal(self, answer: Json) -> Principal:
        """Section 2.2: all but `active` is optional. A client's own token may have no `sub`, but its `client_id`."""
        rules = self._rules
        if not rules.audience:  # the server has judged it for us, as we have shown it who asks
            answer = {name: value for name, value in answer.items() if name != "aud"}
        if "iss" not in answer:
            rules = replace(rules, issuers=())
        if rules.subject_claim == "sub" and "sub" not in answer:
            rules = replace(rules, subject_claim="client_id")
        return principal_of(answer, rules, self._wall())


class ClientCredentials:
    """How the gateway proves itself to the server: in a header, or in the form (RFC 6749 section 2.3.1)."""

    __slots__ = ("form", "headers")

    def __init__(self, client_id: str, secret: str | None, method: str) -> None:
        self.form: Mapping[str, str] = {}
        self.headers: Mapping[str, str] = {}
        if secret is None:
            self.form = {"client_id": client_id}
        elif method == "post":
            self.form = {"client_id": client_id, "client_secret": secret}
        else:
            pair = f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()
            self.headers = {"authorization": f"Basic {base64.b64encode(pair).decode()}"}
