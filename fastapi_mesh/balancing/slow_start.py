"""Instances that are new or back get few calls at first, and more and more: Envoy's slow start."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.config.balancing import BalancingPolicy
    from fastapi_mesh.core.clock import Clock, Timer
    from fastapi_mesh.core.instance import InstanceState

STEPS = 20
"""How often the weights are worked out anew while an instance starts."""


def ramp(policy: BalancingPolicy, joined: float, now: float) -> float:
    """From `slow_start_min_weight` to 1: (time since it came / window) ** (1 / aggression), as Envoy has it.

    >>> from fastapi_mesh.config.balancing import BalancingPolicy
    >>> ramp(BalancingPolicy(slow_start=60.0), joined=100.0, now=130.0)
    0.5
    """
    window = policy.slow_start
    age = now - joined
    if age >= window:
        return 1.0
    share: float = (max(age, 0.0) / window) ** (1 / policy.slow_start_aggression)
    return max(policy.slow_start_min_weight, share)


class SlowStart:
    """Lowers weights, and calls `again` whenever they have to be worked out anew.

    New is who is well now and was not when asked the last time: just registered, back after an ejection, or well
    again by its probes or registration. Those of the first list have been running for who knows how long.
    """

    __slots__ = ("_again", "_before", "_clock", "_policy", "_timer")

    def __init__(self, policy: BalancingPolicy, clock: Clock, again: Callable[[], object]) -> None:
        self._policy = policy
        self._clock = clock
        self._again = again
        self._before: set[InstanceState] | None = None
        self._timer: Timer | None = None

    def __call__(self, usable: set[InstanceState]) -> None:
        """Lower the weights of those of `usable` that are starting."""
        now = self._clock.now()
        if self._before is not None:
            for each in usable - self._before:
                each.joined = now
        self._before = usable
        starting = False
        for each in usable:
            share = ramp(self._policy, each.joined, now)
            if share < 1.0:
                each.weight *= share
                starting = True
        if starting and self._timer is None:
            self._timer = self._clock.call_later(self._policy.slow_start / STEPS, self._step)

    def close(self) -> None:
        """Work out nothing any more, until asked."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _step(self) -> None:
        self._timer = None
        self._again()
