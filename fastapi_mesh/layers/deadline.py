"""A layer that writes the absolute deadline of the call into its context, and cancels nothing.

Each wait further in is bounded by it and raises by itself, so that instance health and the breaker see a timeout as
what it is; only the caller's own cancellation stays neutral (gRPC deadlines, Finagle's Deadline).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.exceptions import ClientDisconnectedError, DeadlineExceededError

if TYPE_CHECKING:
    from fastapi_mesh.core.message import Request, Response
    from fastapi_mesh.layers.base import Service


class Deadline:
    """The earliest of: one already in the context, the inbound request's, and now plus the policy's timeout."""

    __slots__ = ("inner",)

    def __init__(self, inner: Service) -> None:
        self.inner = inner

    async def __call__(self, request: Request) -> Response:
        context = request.context
        timeout = context.policy.timeout
        deadline = context.deadline
        if timeout is not None and (deadline is None or context.started + timeout < deadline):
            deadline = context.started + timeout
        inbound = context.inbound
        if inbound is not None:
            if inbound.gone:
                raise ClientDisconnectedError("the client of this request is gone, so no call is made for it")
            if inbound.deadline is not None and (deadline is None or inbound.deadline < deadline):
                deadline = inbound.deadline
        context.deadline = deadline
        if deadline is not None and deadline <= context.started:
            if context.record is not None:
                context.record.refused_by = "deadline"
            raise DeadlineExceededError(f"the deadline passed before {request.service} was called")
        return await self.inner(request)
