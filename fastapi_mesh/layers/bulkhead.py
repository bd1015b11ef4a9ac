"""A layer that bounds the calls in flight to one service, so that one slow service can't take all of us with it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from fastapi_mesh.exceptions import BulkheadFullError, DeadlineExceededError

if TYPE_CHECKING:
    from fastapi_mesh.config.policies import BulkheadPolicy
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.message import Outcome, Request, Response
    from fastapi_mesh.core.state import Seats
    from fastapi_mesh.layers.base import Service


class SeatQueue:
    """Seats with a first-come queue (Resilience4j's SemaphoreBulkhead, with a bounded wait).

    A seat is handed straight to the first who waits, so nobody who comes later can overtake.
    """

    __slots__ = ("_clock", "_free", "_name", "_policy", "_waiting")

    def __init__(self, name: str, policy: BulkheadPolicy, *, clock: Clock) -> None:
        self._name = name
        self._policy = policy
        self._clock = clock
        self._free = policy.max_concurrent
        self._waiting: deque[asyncio.Future[None]] = deque()

    def statistics(self) -> dict[str, int]:
        return {"in_flight": self._policy.max_concurrent - self._free, "queued": len(self._waiting)}

    async def acquire(self, deadline: float | None) -> None:
        if self._free:
            self._free -= 1
            return
        if len(self._waiting) >= self._policy.max_queue:
            raise BulkheadFullError(
                f"{self._name}: {self._policy.max_concurrent} calls are in flight and {len(self._waiting)} wait",
                service=self._name,
            )
        seat: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(seat)
        timer = None
        if deadline is not None:
            timer = self._clock.call_later(deadline - self._clock.now(), lambda: self._expire(seat))
        try:
            await seat
        except BaseException:
            if seat.done() and not seat.cancelled() and seat.exception() is None:
                self.release()  # the seat came in the same turn as the cancellation
            elif seat in self._waiting:
                self._waiting.remove(seat)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _expire(self, seat: asyncio.Future[None]) -> None:
        if not seat.done():
            self._waiting.remove(seat)
            seat.set_exception(
                DeadlineExceededError(f"the deadline passed in the queue for {self._name}", service=self._name)
            )

    def release(self) -> None:
        while self._waiting:
            seat = self._waiting.popleft()
            if not seat.done():
                seat.set_result(None)
                return
        self._free += 1


class Bulkhead:
    """Takes a seat before the call and gives it back when the response's body has closed."""

    __slots__ = ("inner",)

    def __init__(self, inner: Service) -> None:
        self.inner = inner

    async def __call__(self, request: Request) -> Response:
        context = request.context
        seats = context.state.seats
        if seats is None:
            return await self.inner(request)
        try:
            await seats.acquire(context.deadline)
        except (BulkheadFullError, DeadlineExceededError):
            if context.record is not None:
                context.record.refused_by = "bulkhead"
            raise
        try:
            response = await self.inner(request)
        except BaseException:
            seats.release()
            raise
        response.on_close(_give_back, seats)
        return response


def _give_back(seats: Seats, outcome: Outcome, error: BaseException | None) -> None:
    seats.release()
