"""A picker that compares two random instances and takes the one with fewer calls in flight per weight.

Power of two choices: the largest load grows with log log n instead of log n / log log n (Mitzenmacher 2001), and one
pick costs the same for any number of instances (Envoy's LEAST_REQUEST and Finagle's p2c do the same).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from fastapi_mesh.core.instance import InstanceState
    from fastapi_mesh.core.message import Request


class LeastConnections:
    """Power of two choices on calls in flight, divided by weight."""

    __slots__ = ("_random",)

    def __init__(self, source: random.Random) -> None:
        self._random = source.random

    def pick(self, instances: Sequence[InstanceState], request: Request) -> InstanceState:
        count = len(instances)
        first = int(self._random() * count)
        second = int(self._random() * (count - 1))
        if second >= first:
            second += 1  # a different one than the first, each with the same chance
        if second >= count:
            return instances[first]
        a, b = instances[first], instances[second]
        # The call that is being placed counts too: an idle heavy instance must win over an idle light one.
        return a if (a.in_flight + 1) * b.weight <= (b.in_flight + 1) * a.weight else b
