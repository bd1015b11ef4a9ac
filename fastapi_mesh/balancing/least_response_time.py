"""A picker that compares two random instances and takes the one that would answer sooner, and its measuring.

Finagle's and Linkerd's peak-EWMA over power of two choices: what an instance costs is its response time, a moving
average that follows a slower answer at once and a faster one over time, times the calls in flight, divided by weight.
"""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from fastapi_mesh.core.instance import InstanceState
    from fastapi_mesh.core.message import Request


class LeastResponseTime:
    """Power of two choices on the response time, the calls in flight and the weight.

    An instance that hasn't answered yet is taken to need `default` seconds. An estimate fades to a third within `decay`
    seconds without answers, so that a new or slow instance is tried sooner or later.
    """

    __slots__ = ("_decay", "_default", "_now", "_random")

    def __init__(self, source: random.Random, now: Callable[[], float], *, default: float, decay: float) -> None:
        self._random = source.random
        self._now = now
        self._default = default
        self._decay = decay

    def pick(self, instances: Sequence[InstanceState], request: Request) -> InstanceState:
        count = len(instances)
        first = int(self._random() * count)
        second = int(self._random() * (count - 1))
        if second >= first:
            second += 1  # a different one than the first, each with the same chance
        if second >= count:
            return instances[first]
        a, b = instances[first], instances[second]
        now = self._now()
        # The call that is being placed counts too, as for least connections.
        cost_of_a = self.estimate(a, now) * (a.in_flight + 1) * b.weight
        return a if cost_of_a <= self.estimate(b, now) * (b.in_flight + 1) * a.weight else b

    def estimate(self, instance: InstanceState, now: float) -> float:
        """Seconds that `instance` is taken to need at the moment."""
        seconds = instance.response_time
        if seconds < 0:
            seconds = self._default
            if not instance.answered_at:  # seen for the first time: this guess fades too, or nobody would ever check it
                instance.answered_at = now
        return seconds * exp((instance.answered_at - now) / self._decay)


def note_response_time(
    instance: InstanceState, seconds: float, now: float, *, default: float, decay: float, failed: bool
) -> None:
    """An attempt took `seconds` until its response head, or until it `failed` or was given up.

    A failure counts only where it took longer than answers do: one that fails quickly must not attract calls.
    """
    known = instance.response_time
    if known < 0:
        if failed and seconds < default:
            return
    else:
        share = exp((instance.answered_at - now) / decay)
        known *= share
        if seconds < known:
            if failed:
                return
            seconds = known + seconds * (1 - share)
    instance.response_time = seconds
    instance.answered_at = now
