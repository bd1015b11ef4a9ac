"""What a node of the mesh does for its calls: finds, balances, retries, breaks circuits, degrades, and tells.

    python examples/service_mesh_example.py

The services are applications in this process, so that nothing else is needed to run this, and one instance of each
misbehaves on purpose. In your system they are found where they registered: leave `services=` out.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from fastapi import FastAPI, HTTPException

from fastapi_mesh import Instance, ServiceMesh
from fastapi_mesh.configstore import MemoryStore
from fastapi_mesh.exceptions import CircuitBreakerOpenError, ServiceDiscoveryError, ServiceUnavailableError
from fastapi_mesh.service_mesh.load_balancer import LoadBalancingStrategy


def a_service(name: str, *, works: bool = True) -> FastAPI:
    """An application that answers everything with its own name, or with 503."""
    app = FastAPI()

    @app.get("/{rest:path}")
    @app.post("/{rest:path}")
    async def answer(rest: str) -> dict[str, str]:
        if not works:
            raise HTTPException(503, f"{name} is broken")
        return {"by": name, "path": f"/{rest}"}

    return app


def instances(service: str, **works: bool) -> list[Instance]:
    return [
        Instance(service, name, "in-process", number, scheme="asgi", app=a_service(name, works=well))
        for number, (name, well) in enumerate(works.items(), 1)
    ]


settings = MemoryStore({"feature_flags": {"new_checkout": False}})

mesh = ServiceMesh(
    "order-service",
    service_version="1.0.0",
    discovery_backend="static",
    config_store=settings,
    services={
        "user-service": instances("user-service", **{"user-1": True, "user-2": False, "user-3": True}),
        "payment-gateway": instances("payment-gateway", **{"payment-1": False}),
    },
)

mesh.configure_load_balancing({"user-service": {"strategy": LoadBalancingStrategy.ROUND_ROBIN}})
mesh.configure_retry_policies(
    {"user-service": {"max_attempts": 3, "backoff_strategy": "exponential", "base_delay": 0.01}}
)
mesh.configure_circuit_breakers({"payment-gateway": {"failure_threshold": 3, "recovery_timeout": 120, "timeout": 10.0}})

last_known = {"by": "the cache"}


@mesh.health_check
async def health_check() -> dict[str, object]:
    return {"status": "healthy", "checks": {"settings": "pass"}}


@mesh.watch_config("feature_flags")
async def on_feature_flags_change(config: dict[str, object]) -> None:
    print(f"feature flags: {dict(config)}")
    flags_changed.set()


@mesh.trace_calls
async def pay(amount: int) -> object:
    """The description's degradation: a circuit that is open, a service that fails, a service that nobody knows."""
    try:
        return await mesh.call_service("payment-gateway", "/payments", {"amount": amount})
    except CircuitBreakerOpenError as error:
        return f"from {last_known['by']}, the circuit is open for {error.retry_after:.0f} s more"
    except ServiceUnavailableError as error:
        return f"not now ({error.status_code})"
    except ServiceDiscoveryError:
        return "by hand: no payment gateway is known"


flags_changed = asyncio.Event()


async def main() -> None:
    async with mesh:
        await flags_changed.wait()
        for service in await mesh.discover_services("user-service"):
            print(f"known: {service.id} ({service.health})")

        answers = [await mesh.call_service("user-service", "/users/{}", number) for number in range(6)]
        print(f"six users, no failure: by {', '.join(sorted({answer['by'] for answer in answers}))}")
        retried = [record for record in mesh.records if len(record.attempts) > 1]
        print(f"calls that took another instance after a failure: {len(retried)}")

        for amount in (10, 20, 30, 40):
            print(f"pay {amount}: {await pay(amount)}")

        flags_changed.clear()
        await settings.put("feature_flags", {"new_checkout": True})
        await flags_changed.wait()

        metrics = await mesh.get_metrics()
        print(f"service calls: {metrics.total_calls}, success rate: {metrics.success_rate:.0f}%")


if __name__ == "__main__":
    logging.basicConfig(format="log: %(message)s", stream=sys.stdout)
    asyncio.run(main())
