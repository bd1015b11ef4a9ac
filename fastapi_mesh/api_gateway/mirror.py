"""A layer that sends copies of requests to another service and forgets the answers (Envoy's request mirroring)."""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi_mesh.core.message import Request
from fastapi_mesh.exceptions import MeshError

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.auth.identity import Told
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.api_gateway.observe import Meter
    from fastapi_mesh.config.edge.traffic import MirrorPolicy
    from fastapi_mesh.core.message import Response
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

logger = logging.getLogger("fastapi_mesh.gateway")

SHADOW = (b"x-mesh-shadow", b"true")
"""Tells the service that nobody waits for its answer, so that it can leave out what must not happen twice."""

READ_AT_MOST = 1024 * 1024
"""Bytes of an answer that are read so that its connection can be used again; a longer one is cut."""


class Mirror:
    """Copies requests whose body is here (at most 64 KiB, see `buffer`); a streamed one can't be sent twice.

    The copy has one attempt, the shadow service's own timeouts, and no deadline of the caller's. A copy that finds
    `max_concurrent` others under way is left out: the mirror never holds anything up, and never grows. `told` says who
    the client is to the shadow service, where the service itself is told.
    """

    __slots__ = ("_draw", "_mesh", "_meter", "_policy", "_running", "_told", "inner")

    def __init__(
        self,
        inner: GatewayService,
        policy: MirrorPolicy,
        mesh: ServiceMesh,
        meter: Meter | None,
        draw: random.Random | None = None,
        told: Told | None = None,
    ) -> None:
        self.inner = inner
        self._policy = policy
        self._mesh = mesh
        self._meter = meter
        self._running = 0
        self._told = told
        self._draw = (draw or random).random

    async def __call__(self, request: Exchange) -> Response:
        if self._draw() * 100 < self._policy.percent:
            self._copy(request)
        return await self.inner(request)

    def _copy(self, request: Exchange) -> None:
        body = request.body
        if not isinstance(body, bytes) or request.scope["type"] != "http":
            self._count(request, "streamed")
            return
        if self._running >= self._policy.max_concurrent:
            self._count(request, "left-out")
            return
        service = self._policy.service
        policy = replace(self._mesh.policies.compiled(service), retry=None)
        context = self._mesh.new_context(service, template=request.context.template, policy=policy)
        context.inbound = None  # neither the caller's deadline nor its going away ends the copy
        context.request_id = request.context.request_id
        headers = request.headers
        if self._told is not None and request.principal is not None:
            headers = self._told.for_copy(headers, request.principal, service)
        copy = Request(request.method, service, request.target, [*headers, SHADOW], body, context)
        self._running += 1
        try:
            task = self._mesh.supervisor.start(self._send(copy), name=f"mirror-{service}")
        except RuntimeError:  # the mesh has just been closed; the request itself will say so
            self._running -= 1
            return
        task.add_done_callback(self._ended)
        self._count(request, "sent")

    def _ended(self, task: object) -> None:
        self._running -= 1

    async def _send(self, copy: Request) -> None:
        try:
            response = await self._mesh.stack(copy)
        except MeshError as error:
            logger.debug("the copy of a request to %s failed: %s", copy.service, error)
            return
        try:
            await response.read_all(READ_AT_MOST)
        except (MeshError, ValueError) as error:  # it broke off, or is longer than that
            logger.debug("the answer of %s to a copy was not read: %s", copy.service, error)
        finally:
            await response.aclose()

    def _count(self, request: Exchange, result: str) -> None:
        if self._meter is not None:
            self._meter.mirrored(request.context.template, result)
