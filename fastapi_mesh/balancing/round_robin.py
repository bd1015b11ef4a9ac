"""A picker that takes instances in turn, each as often as its weight says (nginx's smooth weighted round robin)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.core.instance import InstanceState
    from fastapi_mesh.core.message import Request


class RoundRobin:
    """With weights 5, 1, 1 the order is a a b a c a a: an instance never gets its whole share in one burst.

    Equal weights, the usual case, are a plain rotation in constant time. Second attempts have a rotation of their own:
    in one with the first attempts, a failing instance whose calls all go to its neighbour would be next again at once,
    and others never.
    """

    __slots__ = ("_equal", "_next", "_next_retry", "_seen")

    def __init__(self) -> None:
        self._next = self._next_retry = -1
        self._seen: Sequence[InstanceState] = ()
        self._equal = True

    def pick(self, instances: Sequence[InstanceState], request: Request) -> InstanceState:
        if request.context.tried and len({each.weight for each in instances}) == 1:
            self._next_retry = (self._next_retry + 1) % len(instances)
            return instances[self._next_retry]
        if instances is not self._seen:
            self._seen = instances
            self._equal = len({each.weight for each in instances}) == 1
        if self._equal:
            self._next = (self._next + 1) % len(instances)
            return instances[self._next]
        total = 0.0
        best = instances[0]
        for each in instances:
            total += each.weight
            each.current_weight += each.weight
            if each.current_weight > best.current_weight:
                best = each
        best.current_weight -= total
        return best
