"""Makes the picker that a policy asks for."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from fastapi_mesh.balancing.least_connections import LeastConnections
from fastapi_mesh.balancing.round_robin import RoundRobin
from fastapi_mesh.config.policies import LoadBalancingStrategy
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from fastapi_mesh.config.policies import BalancingPolicy
    from fastapi_mesh.core.state import Picker


def new_picker(policy: BalancingPolicy, *, source: random.Random | None = None) -> Picker:
    """The picker for `policy`; `source` is the randomness, given by tests."""
    match policy.strategy:
        case LoadBalancingStrategy.ROUND_ROBIN:
            return RoundRobin()
        case LoadBalancingStrategy.LEAST_CONNECTIONS:
            return LeastConnections(source or random.Random())
        case LoadBalancingStrategy.LEAST_RESPONSE_TIME:
            raise ConfigurationError(f"strategy: {policy.strategy.value!r} is not part of this version")
