"""Makes the picker that a policy asks for."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from fastapi_mesh.balancing.consistent_hash import ConsistentHash
from fastapi_mesh.balancing.hash_key import cookie_reader, header_reader, key_reader
from fastapi_mesh.balancing.least_connections import LeastConnections
from fastapi_mesh.balancing.least_response_time import LeastResponseTime
from fastapi_mesh.balancing.random_choice import RandomChoice
from fastapi_mesh.balancing.round_robin import RoundRobin
from fastapi_mesh.config.balancing import LoadBalancingStrategy

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.balancing.hash_key import KeyOf
    from fastapi_mesh.config.balancing import BalancingPolicy
    from fastapi_mesh.core.message import Request
    from fastapi_mesh.core.state import Picker


def new_picker(
    policy: BalancingPolicy, *, source: random.Random | None = None, now: Callable[[], float] = time.monotonic
) -> Picker:
    """The picker for `policy`; `source` is the randomness and `now` the clock, given by tests."""
    picker = _of_strategy(policy, source or random.Random(random.getrandbits(64)), now)  # simulations seed this
    if policy.sticky_sessions:
        return _hashing(policy, _affinity(policy), picker)
    return picker


def _of_strategy(policy: BalancingPolicy, source: random.Random, now: Callable[[], float]) -> Picker:
    match policy.strategy:
        case LoadBalancingStrategy.ROUND_ROBIN:
            return RoundRobin()
        case LoadBalancingStrategy.RANDOM:
            return RandomChoice(source)
        case LoadBalancingStrategy.LEAST_CONNECTIONS:
            return LeastConnections(source)
        case LoadBalancingStrategy.LEAST_RESPONSE_TIME:
            return LeastResponseTime(
                source, now, default=policy.default_response_time, decay=policy.response_time_decay
            )
        case LoadBalancingStrategy.CONSISTENT_HASH:
            return _hashing(policy, key_reader(policy.hash_on), LeastConnections(source))


def _hashing(policy: BalancingPolicy, key_of: KeyOf, otherwise: Picker) -> Picker:
    return ConsistentHash(key_of, otherwise, bound=policy.bounded_load, bound_from=policy.bounded_load_from)


def _affinity(policy: BalancingPolicy) -> KeyOf:
    """Reads what sticky sessions go by: the header, or else the cookie."""
    header, cookie = policy.session_affinity_header, policy.session_affinity_cookie
    if header is None:
        assert cookie is not None, "the policy is refused when it has neither"
        return cookie_reader(cookie)
    if cookie is None:
        return header_reader(header)
    by_header, by_cookie = header_reader(header), cookie_reader(cookie)

    def read(request: Request) -> bytes | None:
        key = by_header(request)
        return by_cookie(request) if key is None else key

    return read
