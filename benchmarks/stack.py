"""What the layers of a call cost, in CPU microseconds per call: the compiled stack over a wire that answers at once.

Prints the bare wire, the default stack and all layers, and the difference; the best of several rounds, since whatever
else the machine does only adds. Run it with `nox -s bench`.
"""

from __future__ import annotations

import asyncio
import platform
import time

from fastapi_mesh.balancing import new_picker
from fastapi_mesh.config.policies import AdaptiveLimit, BulkheadPolicy, CallPolicy, ServicePolicy
from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.core.context import CallContext
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.message import Request, Response
from fastapi_mesh.core.state import ServiceState
from fastapi_mesh.layers.breaker import PyBreaker
from fastapi_mesh.layers.bulkhead import SeatQueue
from fastapi_mesh.layers.retry import RetryBudget
from fastapi_mesh.observability.metrics import MeshMetrics
from fastapi_mesh.service_mesh.stack import Parts, Stack

CALLS = 5000
ROUNDS = 9


class NullWire:
    """Answers at once."""

    async def __call__(self, request: Request) -> Response:
        return Response.of(200, [], b"x")

    async def aclose(self) -> None:
        """Nothing to close."""


def new_state(policy: ServicePolicy, clock: SystemClock, observer: MeshMetrics) -> ServiceState:
    live: Live[tuple[InstanceState, ...]] = Live()
    live.publish(tuple(InstanceState(Instance("s", f"s-{n}", "127.0.0.1", 9000 + n)) for n in range(3)))
    return ServiceState(
        "s",
        instances=live,
        picker=new_picker(policy.load_balancing),
        breaker=policy.circuit_breaker and PyBreaker("s", policy.circuit_breaker, clock=clock, observer=observer),
        seats=policy.bulkhead and SeatQueue("s", policy.bulkhead, clock=clock),
        budget=policy.retry and RetryBudget(0.2, 10, clock=clock),
    )


async def measure(policy: ServicePolicy | None) -> float:
    clock, wire, metrics = SystemClock(), NullWire(), MeshMetrics("bench")
    compiled = CallPolicy.compile(policy or ServicePolicy())
    state = new_state(policy or ServicePolicy(), clock, metrics)
    call = wire if policy is None else Stack(wire, Parts(clock, metrics, "bench", None))
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(CALLS):
            context = CallContext(compiled, state, template="/x")
            response = await call(Request(b"GET", "s", b"/x", [], b"", context))
            await response.read()
            await response.aclose()
        best = min(best, (time.process_time() - started) / CALLS * 1e6)
    metrics.close()
    return best


async def main() -> None:
    bare = await measure(None)
    default = await measure(ServicePolicy())
    full = await measure(ServicePolicy(bulkhead=BulkheadPolicy(max_concurrent=100, adaptive=AdaptiveLimit())))
    print(f"Python {platform.python_version()}; CPU us per call, best of {ROUNDS} rounds of {CALLS} calls")
    for name, figure in (("wire alone", bare), ("default layers", default), ("all layers", full)):
        print(f"{name:<16}{figure:8.1f}{figure - bare:+8.1f}")


if __name__ == "__main__":
    asyncio.run(main())
