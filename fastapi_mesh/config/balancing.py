"""Settings of balancing: how one of several instances is picked, and who of them is asked at all."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from fastapi_mesh.config.fields import Count, CountOrZero, Delay, Factor, Frozen, NotBool, Seconds, Token, Weight, shown


class LoadBalancingStrategy(StrEnum):
    """How an instance is picked. The values are the names used in configuration files."""

    ROUND_ROBIN = "round_robin"
    """Smooth weighted round robin (nginx)."""
    RANDOM = "random"
    """Any instance, each as often as its weight says."""
    LEAST_CONNECTIONS = "least_connections"
    """The better of two random instances by calls in flight per weight (power of two choices)."""
    LEAST_RESPONSE_TIME = "least_response_time"
    """The better of two random instances by response time (peak-EWMA) and calls in flight per weight (Finagle)."""
    CONSISTENT_HASH = "consistent_hash"
    """The same instance for the same key (`hash_on`), unless it has more than its share (bounded loads)."""


_HASH_KEY = re.compile(r"path|(?:header|cookie|query):(?P<name>[!#$%&'*+\-.^_`|~0-9A-Za-z]+)")


def _hash_key(value: str) -> str:
    if not _HASH_KEY.fullmatch(value):
        raise ValueError(
            f"{shown(value)} is not 'path' or 'header:', 'cookie:' or 'query:' with a name, like 'header:X-User-ID'"
        )
    return value


HashKey = Annotated[str, AfterValidator(_hash_key)]


class BalancingPolicy(Frozen):
    """How instances are picked. `weights` and `priorities` are by instance id."""

    strategy: LoadBalancingStrategy = Field(
        default=LoadBalancingStrategy.ROUND_ROBIN, description="How the next instance is picked."
    )
    weights: dict[str, Weight] = Field(
        default={}, description="Share of an instance by its id, in relation to the others; 1.0 where absent."
    )
    health_check_required: bool = Field(
        default=False,
        description="Use an instance only once its registration or a probe has said that it is well, unless there is "
        "no such instance.",
    )
    hash_on: HashKey = Field(
        default="path",
        description="What `consistent_hash` goes by: 'path', or 'header:', 'cookie:' or 'query:' and a name. Requests "
        "without it go to the less busy of two random instances.",
    )
    bounded_load: Factor = Field(
        default=1.25,
        description="Hashing and sticky sessions pass over an instance with more calls in flight than so many times "
        "its share.",
    )
    bounded_load_from: Count = Field(
        default=8,
        description="Calls in flight with which an instance may be passed over, never with fewer. 1: the bound is "
        "strict, but then a key leaves its instance as soon as two calls meet there while others have none.",
    )
    sticky_sessions: bool = Field(
        default=False,
        description="Requests with the same value in `session_affinity_header` or `session_affinity_cookie` go to the "
        "same instance; those with neither by `strategy`.",
    )
    session_affinity_header: Token | None = Field(
        default="X-User-ID", description="The header that sticky sessions go by; None: no header."
    )
    session_affinity_cookie: Token | None = Field(
        default=None,
        description="The cookie that sticky sessions go by where there is no such header. A gateway sets it, with a "
        "random value; None: no cookie.",
    )
    default_response_time: Seconds = Field(
        default=0.03,
        description="Seconds that an instance is taken to need before it has answered (least_response_time).",
    )
    response_time_decay: Seconds = Field(
        default=10.0,
        description="Seconds after which a measured response time counts for a third any more (least_response_time).",
    )
    priorities: dict[str, CountOrZero] = Field(
        default={},
        description="Tier of an instance by its id, 0 first; where absent the number in its metadata `priority`, or 0. "
        "A tier gets calls in so far as those before it are not well.",
    )
    overprovisioning: Factor = Field(
        default=1.4,
        description="A tier, or the own zone, is enough while the share of its well instances times this is 1 or more.",
    )
    zone_aware: bool = Field(
        default=True, description="Instances of this node's own `zone` first, while enough of them are well."
    )
    zone_min_instances: Count = Field(
        default=2, description="Well instances that must be in the own zone for it to be used alone."
    )
    slow_start: Delay = Field(
        default=0.0,
        description="Seconds in which the weight of an instance that is new or back grows to its whole; 0: at once.",
    )
    slow_start_aggression: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False), NotBool] = Field(
        default=1.0, description="How it grows: 1 evenly, above quickly at first, below slowly at first."
    )
    slow_start_min_weight: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NotBool] = Field(
        default=0.1, description="Share of its weight that it begins with."
    )
    subset_size: Count | None = Field(
        default=None, description="Only so many instances are called by this node, others by others; None: all."
    )

    @model_validator(mode="after")
    def _has_affinity(self) -> Self:
        if self.sticky_sessions and self.session_affinity_header is None and self.session_affinity_cookie is None:
            raise ValueError("sticky_sessions needs session_affinity_header or session_affinity_cookie")
        return self
