"""A layer that chooses the instance of each attempt from the live list, and counts what is in flight there."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from fastapi_mesh.exceptions import ServiceDiscoveryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.instance import InstanceState
    from fastapi_mesh.core.message import Outcome, Request, Response
    from fastapi_mesh.layers.base import Service


class Balance:
    """Reads the live list at each attempt; releases the instance when the *body* closes, not at the head (Tower).

    An ejected instance whose time is over gets exactly one call, its trial. When nothing healthy is left, the
    longest-ejected instance is used (panic), because a wrong ejection must not become an outage.
    """

    __slots__ = ("_clock", "inner")

    def __init__(self, inner: Service, *, clock: Clock) -> None:
        self.inner = inner
        self._clock = clock

    async def __call__(self, request: Request) -> Response:
        context = request.context
        state = context.state
        candidates: Sequence[InstanceState] = state.candidates
        if context.tried or state.next_trial != inf or not candidates:
            candidates = self._choose(context)
        chosen = candidates[0] if len(candidates) == 1 else state.picker.pick(candidates, request)
        context.instance = chosen
        chosen.in_flight += 1
        try:
            response = await self.inner(request)
        except BaseException:
            chosen.in_flight -= 1
            raise
        response.on_close(_release, chosen)
        return response

    def _choose(self, context: CallContext) -> Sequence[InstanceState]:
        state = context.state
        everyone = state.instances.value
        if not everyone:  # there was one when Resolve looked; the last has left between two attempts
            raise ServiceDiscoveryError(f"no instance of {state.name!r} is known any more", service=state.name)
        if state.next_trial <= self._clock.now():
            due = min(
                (each for each in everyone if each.may_be_tried and each not in context.tried),
                key=lambda each: each.ejected_until,
                default=None,
            )
            if due is not None and due.ejected_until <= self._clock.now():
                due.trial = True
                state.refresh()
                self._note(context, due, "trial after its ejection")
                return (due,)
        fresh: Sequence[InstanceState] = state.candidates
        if context.tried:
            fresh = [each for each in fresh if each not in context.tried] or [
                each for each in state.reserve if each not in context.tried
            ]
        if fresh:
            for each in everyone:
                if (why := _why(each, context)) and each not in fresh:
                    self._note(context, each, why)
            return fresh
        return self._panic(context, everyone)

    def _panic(self, context: CallContext, everyone: Sequence[InstanceState]) -> Sequence[InstanceState]:
        """No instance is both healthy and untried."""
        alive = [each for each in context.state.reserve if each not in context.unreachable]
        if alive:
            return alive  # one that answered something is worth a second try sooner than one known to be bad
        rest = [each for each in everyone if each not in context.tried] or list(everyone)
        chosen = min(rest, key=lambda each: (each.health == "unhealthy", each.ejected_at))
        self._note(context, chosen, "no healthy instance is left, so the longest-ejected one is used")
        return (chosen,)

    @staticmethod
    def _note(context: CallContext, instance: InstanceState, why: str) -> None:
        if context.record is not None:
            context.record.skipped = (*context.record.skipped, (instance.instance.id, why))


def _why(instance: InstanceState, context: CallContext) -> str:
    """Why it gets no call although nobody is preferred to it; "" for no such reason."""
    if instance in context.tried:
        return "already tried in this call"
    if instance.ejected_until:
        return "ejected"
    health = instance.health
    if health == "unhealthy" or (health == "unknown" and context.state.health_required):
        return f"its health is {health}"
    return ""


def _release(instance: InstanceState, outcome: Outcome, error: BaseException | None) -> None:
    instance.in_flight -= 1
