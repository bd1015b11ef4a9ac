"""Settings of a gateway's shared cache: where it keeps answers, for how long, and whom it gives them to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from fastapi_mesh.config.edge.redis import SCHEMES, SecretUrl, redis_address
from fastapi_mesh.config.fields import Count, Delay, Frozen, NotBool, Seconds, Token, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

MEBIBYTE = 1024 * 1024
_OFF = ("", "0", "false", "no", "off", "none", "null")


def _ttl(value: object) -> object:
    """False and "off" are 0, as in an environment variable; true is a mistake, as it gives no number."""
    if value is False or (isinstance(value, str) and value.strip().lower() in _OFF):
        return 0
    return value


def _backend(value: str) -> str:
    if value == "memory":
        return value
    if value.partition("://")[0] not in SCHEMES:
        raise ValueError(f"{shown(value)} is not a store: 'memory', or a Redis like 'redis://127.0.0.1:6379/0'")
    if redis_address(value).kind == "cluster":
        raise ValueError(f"{shown(value)}: a cache needs one server (or Sentinels); in a Cluster its keys are spread")
    return SecretUrl(value)


CacheTtl = Annotated[Delay, BeforeValidator(_ttl)]
CacheBackend = Annotated[str, AfterValidator(_backend)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NotBool]
Sharing = Literal["strict", "rfc"]


class CacheRules(Frozen):
    """What is stored and served. Set for the gateway, and for a route where that differs."""

    force: bool = Field(
        default=False,
        description="Let `cache_ttl` win over what the service says: its no-store, private, max-age and Expires are "
        "ignored. Who asked still counts, and so do Vary and Set-Cookie.",
    )
    heuristic: Share = Field(
        default=0.0,
        description="Share of the time since Last-Modified for which an answer without any lifetime is fresh, at most "
        "a day (RFC 9111 section 4.2.2 suggests 0.1); comes before `cache_ttl`. 0: none.",
    )
    grace: Delay = Field(
        default=300.0,
        description="Seconds after its end for which an answer stands in where the service can't be reached, unless "
        "the answer forbids it (must-revalidate, s-maxage...) or says stale-if-error itself. 0: never.",
    )
    sharing: Sharing = Field(
        default="strict",
        description="strict: answers to requests with credentials (an authenticated client, Authorization, Cookie, "
        "`credentials`) go to nobody with others, unless they are public or have s-maxage. rfc: RFC 9111 to the "
        "letter, by which Cookie is no credential and must-revalidate allows sharing too.",
    )
    credentials: tuple[Token, ...] = Field(
        default=("api-key", "apikey", "x-access-token", "x-api-key", "x-auth-token"),
        description="Further request headers that say who asks.",
    )
    obey_clients: bool = Field(
        default=True,
        description="Do what Cache-Control of a request asks (no-cache, max-age, only-if-cached...); false: clients "
        "can't make the gateway ask the service.",
    )
    max_object: Count = Field(default=MEBIBYTE, description="Bytes of the largest body that is stored.")
    lock_timeout: Delay = Field(
        default=5.0,
        description="Seconds that a request waits for the same one of another client to fill the cache, before it asks "
        "the service itself. 0: it never waits.",
    )
    status_header: bool = Field(default=True, description="Say in Cache-Status what the cache did (RFC 9211).")
    keep_date: bool = Field(
        default=False,
        description="Pass on the Date of the service's answer. Only where the server in front writes none of its own, "
        "like uvicorn with --no-date-header; else clients would get two.",
    )


class CacheConfig(CacheRules):
    """The cache of a gateway: `CacheRules` for all its routes, and the store that they share."""

    backend: CacheBackend = Field(
        default="memory",
        description="memory: in this process. redis://host:port/db (also rediss, redis+unix, redis+sentinel): "
        "shared by all processes, with a memory store in front of it (extra `redis`).",
    )
    max_bytes: Count = Field(default=64 * MEBIBYTE, description="Bytes of memory for answers, in each process.")
    max_variants: Count = Field(
        default=32, description="Variants (Vary) kept of one URL, for each set of credentials; the oldest one goes."
    )
    namespace: Token = Field(default="fastapi-mesh", description="What the keys in Redis begin with.")
    timeout: Seconds = Field(default=0.25, description="Seconds to wait for Redis; then the request goes on without.")
    recheck: Delay = Field(
        default=1.0,
        description="Seconds for which an answer in memory is served without asking Redis whether it was invalidated.",
    )


def _switch(value: object) -> object:
    return {} if value is True else value


RouteCache = Annotated[Literal[False] | CacheRules, BeforeValidator(_switch)]
"""True: with the gateway's rules. False: not at all. Else what differs from the gateway's rules."""


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """The rules that a route follows, with its `ttl` (the fallback freshness in seconds, 0.0 for none)."""

    ttl: float = 0.0
    force: bool = False
    heuristic: float = 0.0
    grace: float = 300.0
    sharing: Sharing = "strict"
    credentials: tuple[str, ...] = ()
    obey_clients: bool = True
    max_object: int = MEBIBYTE
    lock_timeout: float = 5.0
    status_header: bool = True
    keep_date: bool = False


def cache_policy(
    rules: CacheRules, ttl: float | None, own: CacheRules | Literal[False] | None, own_ttl: float | None
) -> CachePolicy | None:
    """What holds for a route: the gateway's `rules` and `ttl` under the route's own. None: it is not cached.

    A route is cached where it or the gateway has a `cache_ttl` above 0, or where it has `cache`.
    """
    if own is False or (own is None and own_ttl == 0):
        return None
    seconds = (ttl if own_ttl is None else own_ttl) or 0.0
    if own is None and not seconds:
        return None
    names = tuple(CacheRules.model_fields)
    chosen: Mapping[str, object] = {
        name: getattr(own if own is not None and name in own.model_fields_set else rules, name) for name in names
    }
    return CachePolicy(ttl=seconds, **chosen)  # type: ignore[arg-type]  # the fields of CacheRules, by their names


def force_problem(policy: CachePolicy | None) -> str:
    """What is wrong with a route's policy as a whole, "" for nothing."""
    if policy is not None and policy.force and not policy.ttl:
        return "force needs a cache_ttl above 0: the seconds for which answers are kept"
    return ""
