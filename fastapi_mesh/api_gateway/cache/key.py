"""Where an answer is kept, who may be given it, and what a purge means."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.cache.asked import Asked
    from fastapi_mesh.api_gateway.exchange import Exchange
    from fastapi_mesh.api_gateway.principal import Principal
    from fastapi_mesh.api_gateway.routes import Route

EVERYBODY = b"*"
"""The partition of answers that are the same for all clients, because the service said so."""
_OF_ONE_TOKEN = frozenset({"at_hash", "auth_time", "exp", "iat", "jti", "nbf", "nonce"})
"""Claims that are new in each token and say nothing of what its holder may see."""
NOBODY = b"-"
"""The partition of answers to requests without any credential, for other such requests."""


class Key:
    """A request's place in the cache.

    `place` is the client's URL with the service and the route that answer it, `path` its path alone (below the gateway,
    raw, no query), which is what an unsafe method invalidates, and `route` the route's path. `own` is the partition
    that this request may read and fill besides EVERYBODY: it is different for different credentials.
    """

    __slots__ = ("own", "path", "place", "route")

    def __init__(self, place: bytes, path: bytes, route: str, own: bytes) -> None:
        self.place = place
        self.path = path
        self.route = route
        self.own = own

    @property
    def partitions(self) -> tuple[bytes, bytes]:
        return self.own, EVERYBODY


def route_mark(route: Route) -> bytes:
    """What the places of a route end in: its path, and a digest of its settings.

    Two routes may have the same path and differ in what they do to requests; and what was stored under other settings
    is not served under these.
    """
    return b" " + route.path.encode() + b" " + sha256(route.config.model_dump_json().encode()).hexdigest()[:16].encode()


def key_of(request: Exchange, asked: Asked, mark: bytes) -> Key:
    """The key of a GET or HEAD; `mark` is the one of its route."""
    origin = b"https://" if request.origin.scheme == "https" else b"http://"
    query = request.query
    path = request.path + b"?" + query if query else request.path
    host = asked.host or request.host
    place = b"%b%b%b%b %b%b" % (origin, host.lower(), asked.prefix, path, request.service.encode(), mark)
    if asked.keyed is not None:
        place += b" " + sha256(_joined(asked.keyed)).hexdigest().encode()
    if request.principal is None and asked.credentials is None:
        own = NOBODY
    else:
        own = _fingerprint(request.principal, asked.credentials or [])
    return Key(place, request.path, request.route.path, own)


def _fingerprint(principal: Principal | None, credentials: list[bytes]) -> bytes:
    """Different for different credentials, and nothing that they could be learnt from: 32 bytes of SHA-256.

    Scopes, roles and claims are part of it, as a service may be told of them and show less to a token that may do less.
    """
    if principal is None:
        return sha256(b"-" + _joined(credentials)).digest()
    known = principal.fingerprint
    if not known:
        known = _fingerprint_of(principal)
        if type(principal.claims) is MappingProxyType:
            object.__setattr__(principal, "fingerprint", known)  # only a memory: it is frozen all the same
    return sha256(b"+" + known + _joined(credentials)).digest()


def _fingerprint_of(principal: Principal) -> bytes:
    digest = sha256()
    claims = {name: value for name, value in principal.claims.items() if name not in _OF_ONE_TOKEN}
    if claims:
        digest.update(json.dumps(claims, sort_keys=True, default=str).encode())
    for text in (principal.key, *sorted(principal.scopes), "", *sorted(principal.roles), ""):
        digest.update(b"%d:" % len(text) + text.encode("utf-8", "surrogatepass"))
    return digest.digest()


def _joined(parts: list[bytes]) -> bytes:
    """Different for different lists."""
    return b"".join([b"%d;" % len(part) + part for part in parts])


Kind = Literal["all", "route", "path", "prefix", "key"]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a purge is about: everything, a route (its path as configured), a path with all its queries, all paths
    below one, or one key as `Cache-Status` shows it.
    """

    kind: Kind
    value: bytes = b""

    def covers(self, key: Key) -> bool:
        """Whether what is stored under `key` is meant."""
        if self.kind == "all":
            return True
        if self.kind == "path":
            return key.path == self.value
        if self.kind == "prefix":
            base = self.value.rstrip(b"/")
            return key.path == base or key.path.startswith(base + b"/")
        if self.kind == "route":
            return key.route.encode() == self.value
        return shown(key.place) == self.value


def shown(place: bytes) -> bytes:
    """The URL of a place: all of it that `Cache-Status` shows."""
    return place.partition(b" ")[0]
