"""Instances, pickers and requests for tests of balancing."""

from __future__ import annotations

import random

from fastapi_mesh.balancing import new_picker
from fastapi_mesh.config.balancing import BalancingPolicy
from fastapi_mesh.config.policies import CallPolicy, ServicePolicy
from fastapi_mesh.core.context import CallContext
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.message import Header, Request
from fastapi_mesh.core.state import Picker, ServiceState
from fastapi_mesh.testing.clock import FakeClock


def instances(*weights: float) -> tuple[InstanceState, ...]:
    return tuple(
        InstanceState(Instance("users", f"users-{n}", "127.0.0.1", 9000 + n), weight)
        for n, weight in enumerate(weights, 1)
    )


def picker(clock: FakeClock | None = None, seed: int = 7, **policy: object) -> Picker:
    return new_picker(
        BalancingPolicy.model_validate(policy), source=random.Random(seed), now=(clock or FakeClock()).now
    )


STATE = ServiceState("users", instances=Live[tuple[InstanceState, ...]](), picker=picker())
POLICY = CallPolicy.compile(ServicePolicy())


def request(*headers: Header, target: bytes = b"/") -> Request:
    return Request(b"GET", "users", target, list(headers), b"", CallContext(POLICY, STATE))
