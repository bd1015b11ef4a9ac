"""A layer that plants faults on purpose: waits, and answers with errors (Envoy's fault filter)."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.conditions import Carries
from fastapi_mesh.core.message import Response
from fastapi_mesh.core.problem import document

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.api_gateway.observe import Meter
    from fastapi_mesh.config.edge.traffic import FaultPolicy

REASON = "fault-injected"


class Fault:
    """Sits outside of the mesh, so planted faults hit the gateway's clients: nothing retries them or counts them
    against the service. A delay is not part of the request's deadline, as in Envoy.
    """

    __slots__ = ("_abort", "_carries", "_delay", "_draw", "_meter", "inner")

    def __init__(
        self, inner: GatewayService, policy: FaultPolicy, meter: Meter | None, draw: random.Random | None = None
    ) -> None:
        self.inner = inner
        self._delay = policy.delay
        self._abort = policy.abort
        self._carries = Carries(policy.headers) if policy.headers else None
        self._meter = meter
        self._draw = (draw or random).random

    async def __call__(self, request: Exchange) -> Response:
        if self._carries is not None and not self._carries(request.headers):
            return await self.inner(request)
        delay, abort = self._delay, self._abort
        if delay is not None and self._draw() * 100 < delay.percent:
            await asyncio.sleep(delay.seconds)
        if abort is None or self._draw() * 100 >= abort.percent:
            return await self.inner(request)
        if self._meter is not None:
            self._meter.local(request.context.template, REASON)
        status, headers, body = document(
            abort.status,
            REASON,
            "this error was planted on purpose by the gateway's configuration",
            service=request.service,
            trace_id=request.context.request_id,
        )
        return Response.of(status, headers, body)
