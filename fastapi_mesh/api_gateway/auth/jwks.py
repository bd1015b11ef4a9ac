"""Keys that an issuer publishes: found by discovery, fetched once for all, fetched anew when it rotates them.

The last good keys stay in use while the issuer can't be reached, for a day by default. A token with an unknown key asks
for a new set, once per cool-down whatever anybody sends, so nobody can make the gateway flood its issuer.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.auth.base import ProviderUnavailableError, UnknownCredentialError
from fastapi_mesh.api_gateway.auth.flight import Flights
from fastapi_mesh.api_gateway.auth.keys import KeyRing, mixed, ring_of
from fastapi_mesh.exceptions import MeshError, UpstreamProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.api_gateway.auth.base import Tools
    from fastapi_mesh.api_gateway.auth.compact import Compact, Json
    from fastapi_mesh.api_gateway.auth.http import Issuer
    from fastapi_mesh.api_gateway.auth.jose import Key

logger = logging.getLogger("fastapi_mesh.gateway")

FIRST_RETRY = 1.0
"""Seconds until a fetch that failed is tried again; twice as long each time, up to the cool-down."""
METADATA_TTL = 3600.0


@dataclass(frozen=True, slots=True)
class KeysPolicy:
    """When keys are fetched; all in seconds."""

    ttl: float = 300.0
    cooldown: float = 30.0
    stale: float = 86_400.0


class Metadata:
    """What an issuer says of itself: OpenID Connect Discovery 1.0, else RFC 8414."""

    def __init__(self, issuer: str, http: Issuer, tools: Tools, *, exact: bool, token_url: str | None = None) -> None:
        """`exact`: the issuer's name was given, and not made from `token_url`, which then must be in the document."""
        self._issuer = issuer
        self._exact = exact
        self._token_url = token_url
        self._http = http
        self._clock = tools.clock
        self._document: Json | None = None
        self._at = 0.0

    async def endpoint(self, name: str) -> str:
        """An address in the document. Raises UpstreamProtocolError when it has none of that name."""
        document = await self._read()
        value = document.get(name)
        if not isinstance(value, str) or not value:
            raise UpstreamProtocolError(f"{self._issuer} has no {name} in its metadata")
        return value

    async def says(self, name: str) -> object:
        """Anything in the document; None where it isn't."""
        return (await self._read()).get(name)

    def forget(self) -> None:
        """Read it again next time: an address in it didn't work."""
        self._document = None

    async def _read(self) -> Json:
        if self._document is None or self._clock.now() - self._at > METADATA_TTL:
            document = await self._fetch()
            self._check(document)
            self._document, self._at = document, self._clock.now()
        return self._document

    async def _fetch(self) -> Json:
        base = self._issuer.rstrip("/")
        try:
            return await self._http.get(f"{base}/.well-known/openid-configuration")
        except UpstreamProtocolError:
            scheme, _, rest = base.partition("://")
            host, slash, path = rest.partition("/")
            return await self._http.get(f"{scheme}://{host}/.well-known/oauth-authorization-server{slash}{path}")

    def _check(self, document: Json) -> None:
        """Section 4.3: the document must be about the issuer that was asked, else anybody could speak for it."""
        named = document.get("issuer")
        allowed = {self._issuer} if self._exact else {self._issuer, f"{self._issuer}/"}
        if named not in allowed:
            raise UpstreamProtocolError(f"{self._issuer} answered with the metadata of another issuer")
        if not self._exact and document.get("token_endpoint") != self._token_url:
            raise UpstreamProtocolError(f"token_url is not the token endpoint of {self._issuer}; give issuer=")


class RemoteKeys:
    """A KeySource over a key set that is fetched. `on_change` is called when the keys are others than before."""

    def __init__(
        self,
        address: str | Metadata,
        http: Issuer,
        tools: Tools,
        *,
        algorithms: tuple[str, ...],
        policy: KeysPolicy,
        on_change: Callable[[], object],
    ) -> None:
        self._address = address
        self._http = http
        self._clock = tools.clock
        self._production = tools.production
        self._algorithms = algorithms
        self._policy = policy
        self._on_change = on_change
        self._flights: Flights[None] = Flights(tools.supervisor, "gateway-keys")
        self._ring: KeyRing | None = None
        self._document: Json | None = None
        self._fetched = 0.0
        self._asked_for_unknown = float("-inf")
        self._failures = 0
        self._retry_at = float("-inf")

    async def find(self, token: Compact) -> Key:
        ring = self._ring
        now = self._clock.now()
        if ring is None or now - self._fetched >= self._policy.stale:
            await self._fetch_or_fail()
            ring = self._ring
            assert ring is not None
        elif now - self._fetched >= self._policy.ttl and now >= self._retry_at:
            self._flights.start("keys", self._load)  # nobody waits: the keys at hand are good for a long while
        key = ring.find(token)
        if key is None:
            key = await self._ask_for_unknown(token, now)
        return key

    async def aclose(self) -> None:
        await self._flights.aclose()
        await self._http.aclose()

    async def _ask_for_unknown(self, token: Compact, now: float) -> Key:
        failed_before = self._failures and now >= self._retry_at
        if self._flights or failed_before or now - self._asked_for_unknown >= self._policy.cooldown:
            if not self._flights:
                self._asked_for_unknown = now
            await self._flights.join("keys", self._load)
            assert self._ring is not None
            key = self._ring.find(token)
            if key is not None:
                return key
        if self._failures:  # it may be one of the keys that could not be fetched
            raise ProviderUnavailableError("the keys could not be fetched", retry_after=self._wait())
        raise UnknownCredentialError("no key has this kid")

    def _wait(self) -> float:
        return max(1.0, self._retry_at - self._clock.now())

    async def _fetch_or_fail(self) -> None:
        wait = self._retry_at - self._clock.now()
        if not self._flights and wait > 0:
            raise ProviderUnavailableError("the keys could not be fetched", retry_after=wait)
        await self._flights.join("keys", self._load)
        if self._ring is None or self._clock.now() - self._fetched >= self._policy.stale:
            raise ProviderUnavailableError("the keys could not be fetched", retry_after=self._wait())

    async def _load(self) -> None:
        """Fetch the keys; a failure is kept as a count, because the keys at hand stay good."""
        try:
            address = self._address
            url = address if isinstance(address, str) else await address.endpoint("jwks_uri")
            document = await self._http.get(url)
            try:
                ring = self._usable(ring_of(document, self._algorithms, public=True))
            except ValueError as error:
                raise UpstreamProtocolError(f"the key set: {error}") from error
        except MeshError as error:
            if isinstance(self._address, Metadata):
                self._address.forget()
            wait = min(self._policy.cooldown, FIRST_RETRY * 2 ** min(self._failures, 10))
            self._failures += 1
            self._retry_at = self._clock.now() + wait
            kept = "there are none yet" if self._ring is None else "the last ones stay in use"
            logger.warning("keys could not be fetched, %s; again in %.0f s: %s", kept, wait, error)
            return
        if self._failures:
            logger.info("keys could be fetched again")
        self._failures = 0
        self._retry_at = float("-inf")
        self._fetched = self._clock.now()
        if document != self._document:
            if self._document is not None:
                logger.info("the issuer's keys have changed: %d in use", len(ring))
                self._on_change()
            for problem in (mixed(document), *ring.weaknesses()):
                if problem:
                    logger.warning("the issuer's keys: %s", problem)
            self._document, self._ring = document, ring

    def _usable(self, ring: KeyRing) -> KeyRing:
        if not self._production or not (weak := ring.weaknesses()):
            return ring
        strong = ring.strong()
        if not len(strong):
            raise ValueError(f"no key is strong enough for production: {weak[0]}")
        return strong
