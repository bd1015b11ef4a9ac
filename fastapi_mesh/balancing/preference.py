"""Who of the instances that are well gets calls: tiers with failover, the own zone, a subset, slow start.

Worked out when something changes and not when an instance is picked: what it leaves are the candidates, with weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.balancing.slow_start import SlowStart
from fastapi_mesh.balancing.subset import number_of, subset_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastapi_mesh.config.balancing import BalancingPolicy
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.instance import InstanceState

    Instances = Sequence[InstanceState]


class Place:
    """Where and who this node is: its zone ("" for none), and its number among the clients (None: any)."""

    __slots__ = ("_number", "name", "zone")

    def __init__(self, name: str, zone: str | None = None, number: int | None = None) -> None:
        self.name = name
        self.zone = zone or ""
        self._number = number

    @property
    def number(self) -> int:
        return number_of(self.name) if self._number is None else self._number


class Preference:
    """Applies slow start, the tiers, the zone within a tier and the subset of `policy`, as seen from `place`.

    1. A tier gets the share of calls that its well instances can carry with `overprovisioning` (Envoy's 1.4: all of
       them while 72 % of its instances are well), the next tier what is left of it. The share is put into the weights.
    2. Of a tier only the instances in the own zone are left, while `zone_min_instances` of them are well, and as many
       of them in relation to all of the zone as 1 says of a tier.
    3. Of those `subset_size` are left.
    """

    __slots__ = ("_place", "_policy", "slow_start")

    def __init__(self, policy: BalancingPolicy, place: Place, slow_start: SlowStart | None = None) -> None:
        self._policy = policy
        self._place = place
        self.slow_start = slow_start

    def __call__(self, everyone: Instances, well: tuple[InstanceState, ...]) -> tuple[InstanceState, ...]:
        usable = set(well)
        tiers: dict[int, list[InstanceState]] = {}
        for each in everyone:
            each.weight = each.full_weight
            tiers.setdefault(self._tier(each), []).append(each)
        if self.slow_start is not None:
            self.slow_start(usable)
        if len(tiers) == 1:
            return tuple(self._within(everyone, usable))
        chosen: list[InstanceState] = []
        for members, share in self._shares([tiers[tier] for tier in sorted(tiers)], usable):
            within = self._within(members, usable)
            total = sum(each.weight for each in within)
            for each in within:
                each.weight *= share / total
            chosen += within
        return tuple(chosen)

    def close(self) -> None:
        """End what it waits for."""
        if self.slow_start is not None:
            self.slow_start.close()

    def _shares(self, tiers: Sequence[Instances], usable: set[InstanceState]) -> list[tuple[Instances, float]]:
        """The tiers that get calls, and the part of the calls that each gets (Envoy, "Priority levels")."""
        able = [
            min(1.0, self._policy.overprovisioning * sum(each in usable for each in members) / len(members))
            for members in tiers
        ]
        total = min(1.0, sum(able))  # where all together can't carry the calls, they do it in this proportion
        left = 1.0
        shares: list[tuple[Instances, float]] = []
        for members, part in zip(tiers, able, strict=True):
            share = min(left, part / total)
            if share > 1e-9:
                shares.append((members, share))
            left -= share
        return shares

    def _within(self, members: Instances, usable: set[InstanceState]) -> list[InstanceState]:
        """Those of a tier that are well, in the own zone if there are enough, and of the subset if there is one."""
        policy, zone = self._policy, self._place.zone
        if zone and policy.zone_aware:
            own = [each for each in members if each.instance.zone == zone]
            count = sum(each in usable for each in own)
            if count >= policy.zone_min_instances and count * policy.overprovisioning >= len(own):
                members = own
        if policy.subset_size is not None:
            members = subset_of(members, policy.subset_size, self._place.number)
        return [each for each in members if each in usable][: policy.subset_size]

    def _tier(self, instance: InstanceState) -> int:
        seen = instance.instance
        tier = self._policy.priorities.get(seen.id)
        if tier is None:
            text = seen.metadata.get("priority", "")
            tier = int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0
        return tier


def new_preference(
    policy: BalancingPolicy, place: Place, instances: Instances, clock: Clock, again: Callable[[], object]
) -> Preference | None:
    """None where all `instances` are alike to `policy`, so that nothing has to be worked out.

    `again` is called while an instance starts slowly, for the preference to be asked again.
    """
    if policy.slow_start:
        return Preference(policy, place, SlowStart(policy, clock, again))
    if (
        policy.subset_size is None
        and not policy.priorities
        and not (place.zone and policy.zone_aware)
        and not any("priority" in each.instance.metadata for each in instances)
    ):
        return None
    return Preference(policy, place)
