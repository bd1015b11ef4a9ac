"""What the tests of the in-process wire and of the httpx2 side need: contexts, requests, and a wire that cleans up."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi_mesh.config.policies import CallPolicy, ServicePolicy
from fastapi_mesh.core.context import CallContext
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.message import Request
from fastapi_mesh.core.state import ServiceState
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.wire.asgi import AsgiWire

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.instance import ASGIApp
    from fastapi_mesh.core.message import Header

POLICY = CallPolicy.compile(ServicePolicy())


class _First:
    def pick(self, instances, request):
        return instances[0]


def new_context(instance: Instance, **policy: object) -> CallContext:
    """A context whose instance is already chosen; `policy` overrides fields of the default CallPolicy."""
    chosen = InstanceState(instance)
    state = ServiceState(instance.service, instances=Live((chosen,)), picker=_First())
    context = CallContext(replace(POLICY, **policy), state)
    context.instance = chosen
    return context


def request_to(
    app: ASGIApp,
    target: bytes = b"/",
    *,
    method: bytes = b"GET",
    headers: list[Header] | None = None,
    body: bytes | AsyncIterable[bytes] = b"",
    base_path: bytes = b"",
    **policy: object,
) -> Request:
    """A request to `app` as the only instance of `orders`."""
    instance = Instance("orders", "orders-1", "orders", 0, scheme="asgi", base_path=base_path, app=app)
    return Request(method, "orders", target, headers or [], body, new_context(instance, **policy))


@asynccontextmanager
async def asgi_wire(clock: Clock | None = None) -> AsyncIterator[AsgiWire]:
    """A wire whose supervisor ends everything at the end of the block."""
    supervisor = Supervisor(clock=clock)
    wire = AsgiWire(supervisor, clock=clock)
    try:
        yield wire
    finally:
        await wire.aclose()
        await supervisor.aclose()


async def until(condition) -> None:
    """Let the loop turn until `condition()` is true."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not happen in 1000 turns of the loop")
