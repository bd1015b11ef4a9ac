"""May a response be stored, for whom and for how long: pure functions of RFC 9111 sections 3, 3.5 and 5.2.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.cache.directives import fields, means_all, response_control, seconds
from fastapi_mesh.api_gateway.cache.entry import Entry
from fastapi_mesh.api_gateway.cache.freshness import (
    FALLBACK,
    HEURISTIC,
    KNOWN,
    explicit_lifetime,
    first,
    heuristic_lifetime,
    initial_age,
    values,
)
from fastapi_mesh.api_gateway.cache.key import EVERYBODY
from fastapi_mesh.api_gateway.cache.vary import vary_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.api_gateway.cache.asked import Asked
    from fastapi_mesh.api_gateway.cache.directives import Directives
    from fastapi_mesh.api_gateway.cache.key import Key
    from fastapi_mesh.api_gateway.cache.vary import Selecting, Selectors
    from fastapi_mesh.config.edge.cache import CachePolicy
    from fastapi_mesh.core.message import Header

_FOR_ALL = ("public", "s-maxage")
"""Directives by which a service says that an answer is the same for everybody, whoever asked."""
_STRICT = ("must-revalidate", "proxy-revalidate", "s-maxage", "no-cache")
"""Directives that forbid serving stale (RFC 9111 section 4.2.4)."""
_NEVER_STORED = frozenset({b"age", b"content-length", b"set-cookie", b"x-mesh-attempts"})
"""`Set-Cookie` makes whoever gets it somebody: the first client may have it, nobody after it."""

VALIDATION = 3600.0
"""Seconds that a stale response with a validator is kept for being validated."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a response will be stored once its body is complete."""

    status: int
    headers: tuple[Header, ...]
    selectors: Selectors
    partition: bytes
    received: float
    initial_age: float
    lifetime: float
    while_revalidate: float
    if_error: float | None
    strict: bool
    keep: float
    version: str

    def entry(self, body: bytes) -> Entry:
        return Entry(
            status=self.status,
            headers=self.headers,
            body=body,
            selectors=self.selectors,
            partition=self.partition,
            received=self.received,
            initial_age=self.initial_age,
            lifetime=self.lifetime,
            while_revalidate=self.while_revalidate,
            if_error=self.if_error,
            strict=self.strict,
            keep=self.keep,
            version=self.version,
        )


@dataclass(frozen=True, slots=True)
class Received:
    """A response to a GET that went on to the service: its head, when it was asked for, and when it came."""

    status: int
    headers: Sequence[Header]
    requested: float
    received: float


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asked for it and how. `known` says whether the gateway has authenticated the client."""

    asked: Asked
    key: Key
    selecting: Selecting
    known: bool
    version: str


def plan(response: Received, asker: Asker, policy: CachePolicy) -> Plan | None:
    """How to store a response, None where it must not be (or would be of no use)."""
    directives, targeted = response_control(response.headers)
    names = vary_names(response.headers)
    if b"*" in names or not _may_store(response, asker.asked, directives, policy):
        return None
    partition = _partition(asker, directives, policy)
    if partition is None:
        return None
    lifetime = _lifetime(response, directives, policy, targeted=targeted)
    if lifetime is None:
        if not has_validator(response.headers) or not (response.status in HEURISTIC or "public" in directives):
            return None
        lifetime = 0.0
    forced = policy.force
    listed = _NEVER_STORED if forced else _NEVER_STORED | _unkept(directives)
    headers = tuple(header for header in response.headers if header[0] not in listed)
    age = 0.0 if forced else initial_age(response.headers, response.requested, response.received)
    strict = not forced and any(name in directives for name in _STRICT)
    while_revalidate = float(seconds(directives, "stale-while-revalidate") or 0)
    if_error = seconds(directives, "stale-if-error")
    stale = 0.0 if strict else max(while_revalidate, policy.grace if if_error is None else if_error)
    keep = max(0.0, lifetime - age) + max(stale, VALIDATION if has_validator(headers) else 0.0)
    if not keep:
        return None
    return Plan(
        status=response.status,
        headers=headers,
        selectors=asker.selecting.selectors(names),
        partition=partition,
        received=response.received,
        initial_age=age,
        lifetime=lifetime,
        while_revalidate=while_revalidate,
        if_error=if_error,
        strict=strict,
        keep=keep,
        version=asker.version,
    )


def has_validator(headers: Sequence[Header]) -> bool:
    """Whether a stored response can be validated."""
    return any(name in (b"etag", b"last-modified") and value for name, value in headers)


def _may_store(response: Received, asked: Asked, directives: Directives, policy: CachePolicy) -> bool:
    """Section 3, but for who asked and how long it is good for."""
    status = response.status
    if status < 200 or status in (206, 304) or "no-store" in asked.control:
        return False
    if "must-understand" in directives and status not in KNOWN:
        return False
    if (
        values(response.headers, b"set-cookie")
        and "public" not in directives
        and b"set-cookie" not in _unkept(directives)
    ):
        return False
    if policy.force:
        return status in FALLBACK
    if "no-store" in directives and "must-understand" not in directives:
        return False
    return not means_all(directives, "private")


def _unkept(directives: Directives) -> frozenset[bytes]:
    return fields(directives, "no-cache") | fields(directives, "private")


def _partition(asker: Asker, directives: Directives, policy: CachePolicy) -> bytes | None:
    """For whom the answer is good; None: for nobody but the client that it went to (section 3.5)."""
    asked = asker.asked
    if any(name in directives for name in _FOR_ALL):
        return EVERYBODY
    if not asked.authorization or asker.known or policy.force:
        return asker.key.own
    if "must-revalidate" in directives:
        return asker.key.own if policy.sharing == "strict" else EVERYBODY
    return None


def _lifetime(response: Received, directives: Directives, policy: CachePolicy, *, targeted: bool) -> float | None:
    """Seconds that the response is fresh; None where neither the service nor the route says anything."""
    headers, status = response.headers, response.status
    if policy.force:
        return policy.ttl
    if means_all(directives, "no-cache"):
        return 0.0
    given = explicit_lifetime(headers, directives, targeted=targeted, received=response.received)
    if given is not None:
        return given
    guess = heuristic_lifetime(
        status, headers, public="public" in directives, fraction=policy.heuristic, now=response.received
    )
    if guess is not None:
        return guess
    if policy.ttl and status in FALLBACK and not (not directives and b"no-cache" in (first(headers, b"pragma") or b"")):
        return policy.ttl
    return None
