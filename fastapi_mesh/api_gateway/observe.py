"""A layer that counts what a gateway answers: status and duration per route, and which answers were its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from fastapi_mesh.exceptions import MeshError

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.core.message import Outcome, Request, Response

UNMATCHED = "__unmatched__"
"""What stands for the path of a request that is no route's, so that clients can't invent label values."""


class Meter(Protocol):
    """Where it is counted; `observability.gateway_metrics.GatewayMetrics` is one."""

    def request(self, method: bytes, path: str, status: int, seconds: float) -> None: ...

    def local(self, path: str, reason: str) -> None: ...

    def mirrored(self, path: str, result: str) -> None: ...

    def authentication(self, provider: str, result: str) -> None: ...


class Observe:
    """Counts a request when its response body has ended, or when it fails; cancelled ones are nginx's 499."""

    __slots__ = ("_meter", "inner")

    def __init__(self, inner: GatewayService, *, meter: Meter) -> None:
        self.inner = inner
        self._meter = meter

    async def __call__(self, request: Exchange) -> Response:
        started = time.monotonic()
        try:
            response = await self.inner(request)
        except BaseException as error:
            status, reason = _judge(error)
            path = request.context.template
            self._meter.request(request.method, path, status, time.monotonic() - started)
            if reason:
                self._meter.local(path, reason)
            raise
        if response.upgrade is not None:  # how long a WebSocket stays open says nothing of how fast we answer
            self._meter.request(request.method, request.context.template, response.status, time.monotonic() - started)
            return response
        response.on_close(self._closed, (request, response.status, started))
        return response

    def _closed(self, argument: tuple[Request, int, float], outcome: Outcome, error: BaseException | None) -> None:
        request, status, started = argument
        self._meter.request(request.method, request.context.template, status, time.monotonic() - started)


def _judge(error: BaseException) -> tuple[int, str]:
    """The status that the client will see, and the reason; a request that was cancelled gets no answer at all."""
    if isinstance(error, MeshError):
        return error.status, error.reason
    return (500, "internal") if isinstance(error, Exception) else (499, "")
