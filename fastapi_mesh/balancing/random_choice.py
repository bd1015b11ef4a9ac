"""A picker that takes any instance, each as often as its weight says."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from fastapi_mesh.core.instance import InstanceState
    from fastapi_mesh.core.message import Request


class RandomChoice:
    """Independent draws. With many callers that know nothing of each other it is as even as round robin."""

    __slots__ = ("_bounds", "_random", "_seen")

    def __init__(self, source: random.Random) -> None:
        self._random = source.random
        self._seen: Sequence[InstanceState] = ()
        self._bounds: list[float] | None = None

    def pick(self, instances: Sequence[InstanceState], request: Request) -> InstanceState:
        if instances is not self._seen:  # a list is never changed, but replaced
            self._seen = instances
            weights = [each.weight for each in instances]
            self._bounds = list(accumulate(weights)) if len(set(weights)) > 1 else None
        bounds = self._bounds
        if bounds is None:
            return instances[int(self._random() * len(instances))]
        last = len(bounds) - 1
        return instances[bisect_right(bounds, self._random() * bounds[last], 0, last)]
