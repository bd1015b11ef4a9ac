"""A layer that measures how long each attempt takes, for picking instances by it (`least_response_time`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.balancing.least_response_time import note_response_time

if TYPE_CHECKING:
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.instance import InstanceState
    from fastapi_mesh.core.message import Request, Response
    from fastapi_mesh.layers.base import Service


class ResponseTime:
    """Feeds the moving average of the attempt's instance: seconds until the response head.

    The body is left out, since how long it takes is often the reader's doing. What failed, timed out or was given up
    counts only where it took longer than the average: then at least so long an answer would have taken.
    """

    __slots__ = ("_clock", "inner")

    def __init__(self, inner: Service, *, clock: Clock) -> None:
        self.inner = inner
        self._clock = clock

    async def __call__(self, request: Request) -> Response:
        started = self._clock.now()
        try:
            response = await self.inner(request)
        except BaseException:
            self._note(request, started, failed=True)
            raise
        self._note(request, started, failed=response.status >= 500)
        return response

    def _note(self, request: Request, started: float, *, failed: bool) -> None:
        instance: InstanceState | None = request.context.instance
        assert instance is not None, "Balance sits outside ResponseTime"
        policy = request.context.policy.balancing
        now = self._clock.now()
        note_response_time(
            instance,
            now - started,
            now,
            default=policy.default_response_time,
            decay=policy.response_time_decay,
            failed=failed,
        )
