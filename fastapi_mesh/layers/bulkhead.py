"""A layer that bounds the calls in flight to one service, so that one slow service can't take all of us with it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from fastapi_mesh.core.events import LimitChanged
from fastapi_mesh.core.gradient import Gradient2
from fastapi_mesh.core.priority import HIGH, LOW, NORMAL, read_priority
from fastapi_mesh.exceptions import BulkheadFullError, DeadlineExceededError, UpstreamTimeoutError

if TYPE_CHECKING:
    from fastapi_mesh.config.bulkhead import BulkheadPolicy
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.message import Outcome, Request, Response
    from fastapi_mesh.core.state import Seats
    from fastapi_mesh.layers.base import Service


class SeatQueue:
    """Seats with a queue (Resilience4j's SemaphoreBulkhead, with a bounded wait), first come, first served within a
    priority.

    A seat is handed straight to the first who waits, so nobody who comes later can overtake. Low priorities get only
    `low_share` of the seats, and make way in a full queue for whoever is more important. With `policy.adaptive` the
    number of seats follows how long calls take; a lower one counts for new calls, and takes no seat away.
    """

    __slots__ = (
        "_clock",
        "_gradient",
        "_in_flight",
        "_limit",
        "_low_limit",
        "_name",
        "_observer",
        "_policy",
        "_waiting",
    )

    def __init__(
        self, name: str | None, policy: BulkheadPolicy, *, clock: Clock, observer: Observer | None = None
    ) -> None:
        """`name` is the service; None: these are the requests that this node answers."""
        self._name = name
        self._policy = policy
        self._clock = clock
        self._observer = observer
        self._gradient = None if policy.adaptive is None else Gradient2(policy.adaptive, policy.max_concurrent)
        self._in_flight = 0
        self._waiting: tuple[deque[asyncio.Future[None]], ...] = (deque(), deque(), deque())
        self._set_limit(policy.max_concurrent if self._gradient is None else self._gradient.limit)

    def _set_limit(self, limit: int) -> None:
        self._limit = limit
        self._low_limit = max(1, int(limit * self._policy.low_share))
        if self._gradient is not None and self._observer is not None:
            self._observer(LimitChanged(self._name, limit))

    @property
    def measures(self) -> bool:
        """Whether it wants to know how long things take."""
        return self._gradient is not None

    @property
    def limit(self) -> int:
        """The number of seats."""
        return self._limit

    def statistics(self) -> dict[str, int]:
        return {"in_flight": self._in_flight, "queued": self._queued, "limit": self._limit}

    @property
    def _queued(self) -> int:
        return sum(map(len, self._waiting))

    def take(self, priority: int = NORMAL) -> bool:
        """Take a seat that is free; False where none is for this priority."""
        if self._in_flight < (self._limit if priority else self._low_limit):
            self._in_flight += 1
            return True
        return False

    async def acquire(self, deadline: float | None, priority: int = NORMAL) -> None:
        if not self.take(priority):
            await self._wait(deadline, priority)

    async def _wait(self, deadline: float | None, priority: int) -> None:
        if self._queued >= self._policy.max_queue:
            self._make_way(priority)
        seat: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._waiting[priority]
        queue.append(seat)
        timer = None
        if deadline is not None:
            timer = self._clock.call_later(deadline - self._clock.now(), lambda: self._expire(seat, queue))
        try:
            await seat
        except BaseException:
            if seat.done() and not seat.cancelled() and seat.exception() is None:
                self.release()  # the seat came in the same turn as the cancellation
            elif seat in queue:
                queue.remove(seat)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _make_way(self, priority: int) -> None:
        """Refuse one that waits and is less important, the last that came; or the caller, where there is none."""
        for lower in range(priority):
            while queue := self._waiting[lower]:
                seat = queue.pop()
                if not seat.done():
                    seat.set_exception(self._full())
                    return
        raise self._full()

    def _full(self) -> BulkheadFullError:
        error = BulkheadFullError(
            f"{self._name or 'this node'}: {self._in_flight} calls are in flight and {self._queued} wait",
            service=self._name,
        )
        error.retry_after = 1.0
        return error

    def _expire(self, seat: asyncio.Future[None], queue: deque[asyncio.Future[None]]) -> None:
        if not seat.done():
            queue.remove(seat)
            what = "a seat" if self._name is None else self._name
            error = DeadlineExceededError(f"the deadline passed in the queue for {what}", service=self._name)
            seat.set_exception(error)

    def release(self) -> None:
        self._in_flight -= 1
        self._hand_over()

    def _hand_over(self) -> None:
        for priority in (HIGH, NORMAL, LOW):
            queue = self._waiting[priority]
            while queue and self._in_flight < (self._limit if priority else self._low_limit):
                seat = queue.popleft()
                if not seat.done():
                    self._in_flight += 1
                    seat.set_result(None)

    def now(self) -> float:
        """Monotonic seconds, for `measured`; 0.0 where nothing is measured."""
        return 0.0 if self._gradient is None else self._clock.now()

    def measured(self, began: float) -> None:
        """What began then, with a seat, has its answer now."""
        if self._gradient is None:
            return
        now = self._clock.now()
        if self._gradient.sample(now, now - began, self._in_flight):
            self._set_limit(self._gradient.limit)
            self._hand_over()


class Bulkhead:
    """Takes a seat before the call and gives it back when the response's body has closed.

    What an adaptive limit learns from: the time to the head of answers, of calls that were not repeated, and time-outs.
    A quick refusal or a failed connection says nothing of how loaded a service is. A call's priority is that of its own
    `x-mesh-priority`, else of the request that it is made in.
    """

    __slots__ = ("inner",)

    def __init__(self, inner: Service) -> None:
        self.inner = inner

    async def __call__(self, request: Request) -> Response:
        context = request.context
        seats = context.state.seats
        if seats is None:
            return await self.inner(request)
        priority = read_priority(request.headers, context.priority)
        try:
            await seats.acquire(context.deadline, priority)
        except (BulkheadFullError, DeadlineExceededError):
            if context.record is not None:
                context.record.refused_by = "adaptive_limit" if seats.measures else "bulkhead"
            raise
        began = seats.now()
        try:
            response = await self.inner(request)
        except BaseException as error:
            if isinstance(error, UpstreamTimeoutError | DeadlineExceededError):
                seats.measured(began)
            seats.release()
            raise
        if response.status < 500 and context.attempt == 1:
            seats.measured(began)
        response.on_close(_give_back, seats)
        return response


def _give_back(seats: Seats, outcome: Outcome, error: BaseException | None) -> None:
    seats.release()
