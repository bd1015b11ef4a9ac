"""A layer that makes a second attempt at another instance beside a slow first one, and takes the first good answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi_mesh.config.policies import IDEMPOTENT_METHODS
from fastapi_mesh.core.body import replayable
from fastapi_mesh.core.context import CallContext
from fastapi_mesh.core.message import Request, Response
from fastapi_mesh.core.tasks import Supervisor

if TYPE_CHECKING:
    from fastapi_mesh.config.hedging import HedgingPolicy
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.message import Header
    from fastapi_mesh.layers.base import Service

QUANTILE = 0.95
KEPT = 512
"""Response times that the quantile is of."""
FRESH = 64
"""Calls after which it is worked out anew."""
MOST_SAVED = 10.0
"""Second attempts that may be saved up."""
LONGER, LONGEST = 1.05, 100.0


class Hedges:
    """What is known of one service: its quantile, from the last 512 response times, and what may be spent.

    Where more calls exceed the quantile than there are second attempts, the delay grows, so that these go to the
    slowest; it shrinks again when there is enough.
    """

    __slots__ = ("_count", "_factor", "_quantile", "_saved", "_times", "policy")

    def __init__(self, policy: HedgingPolicy) -> None:
        self.policy = policy
        self._times: list[float] = []
        self._count = 0
        self._quantile: float | None = None
        self._factor = 1.0
        self._saved = 0.0

    def delay(self) -> float | None:
        """A call begins: seconds until its second attempt, None where too little is known yet."""
        self._saved = min(MOST_SAVED, self._saved + self.policy.max_extra)
        if self.policy.delay is not None:
            return self.policy.delay
        return None if self._quantile is None else self._quantile * self._factor

    def add(self, seconds: float) -> None:
        """How long a call took."""
        if len(self._times) < KEPT:
            self._times.append(seconds)
        else:
            self._times[self._count % KEPT] = seconds
        self._count += 1
        if self._count % FRESH == 0:
            ordered = sorted(self._times)
            self._quantile = ordered[int(QUANTILE * len(ordered))]

    def spend(self) -> bool:
        """Take a second attempt, if there is one."""
        if self._saved < 1:
            self._factor = min(LONGEST, self._factor * LONGER)
            return False
        self._saved -= 1
        self._factor = max(1.0, self._factor / LONGER)
        return True


class Hedge:
    """Outside Balance, so that the second attempt goes elsewhere; inside Retry, which sees one outcome of both."""

    __slots__ = ("_clock", "_tasks", "inner")

    def __init__(self, inner: Service, *, clock: Clock) -> None:
        self.inner = inner
        self._clock = clock
        self._tasks = Supervisor(clock=clock)

    async def __call__(self, request: Request) -> Response:
        context = request.context
        policy = context.policy.hedging
        assert policy is not None, "Hedge is only in chains of policies with a hedging section"
        body = request.body
        again = (not body or replayable(body)) and (context.hold or request.method in IDEMPOTENT_METHODS)
        if context.attempt or not again:
            return await self.inner(request)
        hedges = context.state.hedges
        if not isinstance(hedges, Hedges) or hedges.policy != policy:
            hedges = context.state.hedges = Hedges(policy)
        started = self._clock.now()
        delay = hedges.delay()
        response = await (self.inner(request) if delay is None else self._race(request, hedges, delay))
        hedges.add(self._clock.now() - started)
        return response

    async def _race(self, request: Request, hedges: Hedges, delay: float) -> Response:
        headers = list(request.headers)  # without what the first attempt will add for itself
        runs = [self._tasks.start(_outcome(self.inner, request), name="attempt")]
        try:
            await self._wait(runs[0], delay)
            twin = None if runs[0].done() else self._twin(request, hedges, headers)
            if twin is None:
                await asyncio.wait(runs)
                return _taken(runs[0].result())
            runs.append(self._tasks.start(_outcome(self.inner, twin), name="second attempt"))
            done, others = await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
            if others and not any(_is_good(each.result()) for each in done):
                await asyncio.wait(others)
            best = next((each for each in runs if each.done() and _is_good(each.result())), runs[0])
            second = best is not runs[0]
            await _release([each for each in runs if each is not best])
            runs = []
            _tell(request.context, twin.context, second=second, delay=delay)
            return _taken(best.result())
        finally:
            await _release(runs)

    async def _wait(self, run: asyncio.Task[object], delay: float) -> None:
        """Until the attempt has ended, or `delay` has passed."""
        woken = asyncio.get_running_loop().create_future()

        def wake(_: object = None) -> None:
            if not woken.done():
                woken.set_result(None)

        timer = self._clock.call_later(delay, wake)
        run.add_done_callback(wake)
        try:
            await woken
        finally:
            timer.cancel()
            run.remove_done_callback(wake)

    @staticmethod
    def _twin(request: Request, hedges: Hedges, headers: list[Header]) -> Request | None:
        """The same request once more, for another instance, where there is one and both budgets allow it."""
        context = request.context
        first, state = context.instance, context.state
        if first is None or all(each is first for each in state.candidates) or not hedges.spend():
            return None
        if state.budget is not None and not state.budget.withdraw():
            return None
        twin = CallContext(
            context.policy, state, template=context.template, inbound=context.inbound, deadline=context.deadline
        )
        for name in ("buffered", "hold", "principal", "record", "request_id", "started", "attempt"):
            setattr(twin, name, getattr(context, name))
        twin.tried = [first]
        return Request(request.method, request.service, request.target, headers, request.body, twin)


async def _outcome(inner: Service, request: Request) -> Response | Exception:
    try:
        return await inner(request)
    except Exception as error:  # whichever it is, it belongs to the caller, not to the task's log
        return error


def _is_good(outcome: Response | Exception) -> bool:
    return isinstance(outcome, Response) and outcome.status < 500


def _taken(outcome: Response | Exception) -> Response:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _tell(context: CallContext, twin: CallContext, *, second: bool, delay: float) -> None:
    """What the layers further out should know of the second attempt."""
    context.attempt = max(context.attempt, twin.attempt)
    other = twin.instance
    if second and other is not None:
        context.instance, other = other, context.instance
    if other is not None:
        context.tried.append(other)
    if context.record is not None:
        which = "second" if second else "first"
        text = f"hedged after {delay * 1000:.0f} ms: the {which} attempt counted"
        context.record.notes = (*context.record.notes, text)


async def _release(runs: list[asyncio.Task[Response | Exception]]) -> None:
    """End what nobody waits for, and give its connection back."""
    left = [each for each in runs if not each.done() or each.cancelled() or isinstance(each.result(), Response)]
    for each in left:
        each.cancel()
    if not left:
        return
    for outcome in await asyncio.gather(*left, return_exceptions=True):
        if isinstance(outcome, Response):
            await outcome.aclose()
