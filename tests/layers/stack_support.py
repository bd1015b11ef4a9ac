"""A stack over a scripted wire and a fake clock, for tests of the layers through their public seam."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fastapi_mesh.balancing import new_picker
from fastapi_mesh.config.policies import CallPolicy, ServicePolicy
from fastapi_mesh.core.context import CallContext, Inbound
from fastapi_mesh.core.events import Event
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.message import Header, Request, Response
from fastapi_mesh.core.state import ServiceState
from fastapi_mesh.layers.breaker import PyBreaker
from fastapi_mesh.layers.bulkhead import SeatQueue
from fastapi_mesh.layers.retry import RetryBudget
from fastapi_mesh.service_mesh.stack import Parts, Stack
from fastapi_mesh.testing.clock import FakeClock
from fastapi_mesh.testing.wire import ScriptedWire


@dataclass
class Rig:
    """One service with `instances` instances, the real stack, and a scripted wire."""

    script: object
    policy: ServicePolicy = field(default_factory=ServicePolicy)
    instances: int = 3
    known: bool = True

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.events: list[Event] = []
        self.wire = ScriptedWire(self.script, clock=self.clock)  # type: ignore[arg-type]
        self.stack = Stack(self.wire, Parts(self.clock, self.events.append, "tests", None))
        self.call_policy = CallPolicy.compile(self.policy)
        self.states = tuple(
            InstanceState(Instance("users", f"users-{n + 1}", "127.0.0.1", 9000 + n)) for n in range(self.instances)
        )
        live: Live[tuple[InstanceState, ...]] = Live()
        if self.known:
            live.publish(self.states)
        policy = self.policy
        self.state = ServiceState(
            "users",
            instances=live,
            picker=new_picker(policy.load_balancing),
            breaker=policy.circuit_breaker
            and PyBreaker("users", policy.circuit_breaker, clock=self.clock, observer=self.events.append),
            seats=policy.bulkhead
            and SeatQueue("users", policy.bulkhead, clock=self.clock, observer=self.events.append),
            budget=policy.retry
            and RetryBudget(policy.retry.budget_ratio, policy.retry.budget_min_per_second, clock=self.clock),
        )

    def context(self, *, inbound: Inbound | None = None, deadline: float | None = None) -> CallContext:
        return CallContext(self.call_policy, self.state, template="/x", inbound=inbound, deadline=deadline)

    async def call(
        self,
        method: str = "GET",
        target: str = "/x",
        headers: Iterable[Header] = (),
        body: object = b"",
        context: CallContext | None = None,
    ) -> Response:
        context = context or self.context()
        return await self.stack(Request(method.encode(), "users", target.encode(), list(headers), body, context))  # type: ignore[arg-type]

    def tried(self) -> list[str]:
        """Ids of the instances in the order they were called."""
        return [call.instance for call in self.wire.calls]

    def seen(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]
