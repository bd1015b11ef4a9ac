"""A layer that makes sure there is a list of instances: waits for the first snapshot, and never for one after it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi_mesh.exceptions import ServiceDiscoveryError

if TYPE_CHECKING:
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.message import Request, Response
    from fastapi_mesh.layers.base import Service

FIRST_SNAPSHOT = 5.0
"""Longest wait for a registry's first answer about a service, in seconds."""


class Resolve:
    """Raises ServiceDiscoveryError when no instance is known; an old list is always better than none."""

    __slots__ = ("_clock", "inner")

    def __init__(self, inner: Service, *, clock: Clock) -> None:
        self.inner = inner
        self._clock = clock

    async def __call__(self, request: Request) -> Response:
        context = request.context
        snapshot = context.state.instances.value
        if snapshot is None:
            await self._wait_first(context, request.service)
            snapshot = context.state.instances.value
        if not snapshot:
            if context.record is not None:
                context.record.refused_by = "resolve"
            raise ServiceDiscoveryError(f"no instance of {request.service!r} is known", service=request.service)
        return await self.inner(request)

    async def _wait_first(self, context: CallContext, service: str) -> None:
        live = context.state.instances
        limit = FIRST_SNAPSHOT
        if context.deadline is not None:
            limit = min(limit, context.deadline - self._clock.now())
        expired = False
        waiter = asyncio.get_running_loop().create_future()

        def wake(*_: object) -> None:
            if not waiter.done():
                waiter.set_result(None)

        def expire() -> None:
            nonlocal expired
            expired = True
            wake()

        unsubscribe = live.subscribe(wake)
        timer = self._clock.call_later(limit, expire)
        try:
            if live.value is None:
                await waiter
        finally:
            timer.cancel()
            unsubscribe()
        if expired and live.value is None:
            if context.record is not None:
                context.record.refused_by = "resolve"
            raise ServiceDiscoveryError(
                f"the registry has not answered about {service!r} within {limit:.1f} s", service=service
            )
