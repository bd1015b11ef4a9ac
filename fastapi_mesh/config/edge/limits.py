"""Settings of rate limits: how many requests in which time, who shares a count, and where it is kept.

The grammar of rates is that of the library `limits`, which meets us here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fastapi_mesh.config.edge.redis import EXAMPLES as REDIS_EXAMPLES
from fastapi_mesh.config.edge.redis import SCHEMES as REDIS_SCHEMES
from fastapi_mesh.config.edge.redis import SecretUrl, redis_address
from fastapi_mesh.config.fields import Frozen, NotBool, Problems, Seconds, shown
from fastapi_mesh.config.later import is_off

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

Strategy = Literal["sliding", "moving", "fixed"]
OnFailure = Literal["open", "closed", "local"]

MEMORY = "memory"
MAX_AMOUNT = 1_000_000_000
MAX_SECONDS = 3650 * 86400
MAX_MOVING = 10_000
"""The largest amount of a moving window, which keeps the time of each request: 80 kB for one client."""

EXAMPLE = "write it as '100/minute', or several as '10/second;1000/hour'"
KEYS = ("client", "ip", "principal", "global", "route", "header:NAME", "function:NAME")

_ABBREVIATED = {"s": "second", "sec": "second", "m": "minute", "min": "minute", "h": "hour", "hr": "hour", "d": "day"}
_UNIT = re.compile(r"(?<=[/\d\s])(secs?|s|mins?|m|hrs?|h|d)(?=\s*(?:[,;|]|$))", re.IGNORECASE)
_NO_TIME = re.compile(r"(?:/|per)\s*0+\s*[a-z]", re.IGNORECASE)
_KEY = re.compile(r"client|ip|principal|global|route|header:[!#$%&'*+\-.^_`|~0-9A-Za-z]+|function:\w[\w.-]*")
_FUNCTION = re.compile(r"function:\w[\w.-]*")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `amount` requests (or units of cost) in any `seconds`."""

    amount: int
    seconds: int


def rates_of(text: str) -> tuple[Rate, ...]:
    """Read `"10/second;1000/hour"`, `"100 per 5 minutes"`... Raises ValueError with the right spelling.

    A month has 30 days and a year 360, as in the library `limits`.

    >>> rates_of("10/second; 1000 per 2 hours")
    (Rate(amount=10, seconds=1), Rate(amount=1000, seconds=7200))
    """
    from limits.util import parse_many  # late: with its storages it takes a tenth of a second to import

    try:
        if _NO_TIME.search(text):
            raise ValueError
        rates = tuple(Rate(item.amount, item.get_expiry()) for item in parse_many(text.strip()))
    except ValueError:
        longer = _UNIT.sub(lambda unit: _ABBREVIATED[unit[1].lower().rstrip("s") or "s"], text)
        hint = f"did you mean {shown(longer)}?" if longer != text else EXAMPLE
        raise ValueError(f"{shown(text)} is not a rate limit - {hint}") from None
    for rate in rates:
        if not 1 <= rate.amount <= MAX_AMOUNT:
            raise ValueError(f"{shown(text)}: {rate.amount} is not an amount; 1 to {MAX_AMOUNT} are")
        if rate.seconds > MAX_SECONDS:
            raise ValueError(f"{shown(text)}: {rate.seconds} seconds are too long; at most ten years can be counted")
    seconds = [rate.seconds for rate in rates]
    if len(set(seconds)) < len(seconds):
        raise ValueError(f"{shown(text)} has two limits for the same time; only the smaller one could ever matter")
    return rates


def _rate_text(value: str) -> str:
    rates_of(value)
    return value.strip()


def _key(value: str) -> str:
    if not _KEY.fullmatch(value):
        # As a Problems it is shown: a field called "key" is taken for a secret otherwise.
        raise Problems([((), f"{shown(value)} is not a key of rate limits; {', '.join(KEYS)} are")])
    return value


def _cost(value: object) -> object:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)  # from an environment variable
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, str) and _FUNCTION.fullmatch(value):
        return value
    raise ValueError(f"{value!r} is not a cost: a whole number of at least 1, or 'function:NAME', is")


def _limit_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{shown(value)} is not a name: up to 64 letters, digits, '-', '_' and '.' are")
    return value


RateText = Annotated[str, AfterValidator(_rate_text)]
LimitKey = Annotated[str, AfterValidator(_key)]
Cost = Annotated[int | str, BeforeValidator(_cost)]
LimitName = Annotated[str, AfterValidator(_limit_name)]


class RateLimitPolicy(Frozen):
    """A rate limit. A text stands for its `limit`: "100/minute"."""

    limit: RateText = Field(
        description="Requests and time: '100/minute', '100 per 5 minutes', or several: '10/second;1000/hour'."
    )
    key: LimitKey = Field(
        default="client",
        description="Who shares a count: 'client' (who was authenticated, else the IP address), 'ip', 'principal' "
        "(nobody authenticated: one count for all), 'header:NAME' (absent: as 'client'), 'route', 'global', or "
        "'function:NAME', a function of `configure_rate_limits`.",
    )
    cost: Cost = Field(
        default=1, description="How much a request counts: a number, or 'function:NAME', which says it for a request."
    )
    strategy: Strategy | None = Field(
        default=None, description="How time is counted: sliding, moving or fixed; None: as in `rate_limiting`."
    )
    on_failure: OnFailure | None = Field(
        default=None, description="What to do without the storage: open, closed or local; None: as in `rate_limiting`."
    )
    name: LimitName | None = Field(
        default=None,
        description="What clients see it as, and what it counts: limits of one name share their counts. None: the "
        "limit of this route.",
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, handler(schema)]}

    @model_validator(mode="before")
    @classmethod
    def _text_alone(cls, value: object) -> object:
        if isinstance(value, (Mapping, RateLimitPolicy)):
            return value
        if isinstance(value, str):
            return {"limit": _rate_text(value)}
        raise ValueError(f"{value!r} is not a rate limit - {EXAMPLE}")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        smallest = min(rate.amount for rate in self.rates)
        if isinstance(self.cost, int) and self.cost > smallest:
            raise ValueError(f"a cost of {self.cost} is more than {self.limit!r} ever allows at once")
        if self.strategy == "moving" and (problem := self.too_long()):
            raise ValueError(problem)
        return self

    @property
    def rates(self) -> tuple[Rate, ...]:
        """What `limit` says."""
        return rates_of(self.limit)

    def too_long(self) -> str:
        """What keeps this from being a moving window; "" for nothing."""
        largest = max(rate.amount for rate in self.rates)
        if largest <= MAX_MOVING:
            return ""
        return (
            f"{self.limit!r}: a moving window keeps the time of every request, at most {MAX_MOVING}; "
            "strategy 'sliding' counts the same with two numbers"
        )


def _off_is_none(value: object) -> object:
    return None if is_off(value) else value


RateLimitSetting = Annotated[RateLimitPolicy | None, BeforeValidator(_off_is_none)]
"""A text, a table, or None; also false and "off" are None."""


def _storage(value: str) -> str:
    if value == MEMORY or value == f"{MEMORY}://":
        return MEMORY
    if value.partition("://")[0] not in REDIS_SCHEMES:
        raise ValueError(f"{shown(value)} is not a storage: 'memory', or a Redis: {REDIS_EXAMPLES}")
    redis_address(value)
    return SecretUrl(value)


Storage = Annotated[str, AfterValidator(_storage)]


class RateLimitingConfig(Frozen):
    """What all rate limits of a gateway have in common."""

    storage: Storage = Field(
        default=MEMORY,
        description="Where counts are: 'memory' (of each process), or a Redis that several gateways share: "
        "redis://, rediss://, redis+unix://, redis+sentinel://HOST,HOST/NAME, redis+cluster://HOST,HOST.",
    )
    strategy: Strategy = Field(
        default="sliding",
        description="sliding: two counters, weighted; moving: the time of every request; fixed: a counter that starts "
        "anew.",
    )
    on_failure: OnFailure = Field(
        default="open",
        description="Without an answer of the storage: open lets requests pass, closed refuses them (503), local "
        "counts in this process.",
    )
    timeout: Seconds = Field(default=0.25, description="Seconds to wait for the storage's answer.")
    retry_interval: Seconds = Field(
        default=1.0, description="Seconds between two looks whether a storage that failed is back; no request waits."
    )
    namespace: LimitName = Field(
        default="fastapi-mesh",
        description="What keys in a shared storage begin with; gateways that share it share counts.",
    )
    max_keys: Annotated[int, Field(ge=100), NotBool] = Field(
        default=100_000, description="Counts kept in memory at most; the one used longest ago makes room."
    )
    ipv6_prefix: Annotated[int, Field(ge=1, le=128), NotBool] = Field(
        default=64, description="Bits of an IPv6 address that tell clients apart: one client usually has a whole /64."
    )
    headers: bool = Field(default=True, description="Tell clients their limits, in every answer.")
