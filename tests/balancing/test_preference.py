"""Tiers, zones, slow start and subsets: who of the instances gets calls, and how many."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from fastapi_mesh.balancing import new_picker
from fastapi_mesh.balancing.preference import Place, new_preference
from fastapi_mesh.balancing.subset import subset_of
from fastapi_mesh.config.balancing import BalancingPolicy
from fastapi_mesh.config.policies import ServicePolicy
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.state import ServiceState
from fastapi_mesh.service_mesh.mesh import ServiceMesh
from fastapi_mesh.testing.clock import FakeClock
from fastapi_mesh.testing.simulation import Server, Simulation, constant, simulate
from tests.balancing.picker_support import request


def instance(number: int, *, zone: str | None = None, tier: str | None = None) -> Instance:
    metadata = {} if tier is None else {"priority": tier}
    return Instance("users", f"users-{number}", "127.0.0.1", 9000 + number, zone=zone, metadata=metadata)


class Service:
    """A service's state with the preference of a policy."""

    def __init__(
        self, members: Sequence[Instance], *, zone: str | None = None, number: int = 0, **policy: object
    ) -> None:
        self.clock = FakeClock()
        self.policy = BalancingPolicy.model_validate(policy)
        self.states = tuple(InstanceState(each) for each in members)
        live: Live[tuple[InstanceState, ...]] = Live()
        live.publish(self.states)
        self.state = ServiceState("users", instances=live, picker=new_picker(self.policy))
        self.state.prefer = new_preference(
            self.policy, Place("tests", zone, number), self.states, self.clock, self.state.refresh
        )
        self.state.refresh()

    def lose(self, *numbers: int) -> None:
        """Instances stop being well."""
        for each in self.states:
            each.verdict = "unhealthy" if int(each.instance.id[6:]) in numbers else "healthy"
        self.state.refresh()

    @property
    def chosen(self) -> list[int]:
        return sorted(int(each.instance.id[6:]) for each in self.state.candidates)

    def shares(self) -> dict[int, float]:
        """The share of calls of each instance that gets some, as round robin deals them out."""
        count = 2000
        picked = Counter(self.state.picker.pick(self.state.candidates, request()) for _ in range(count))
        return {int(each.instance.id[6:]): number / count for each, number in picked.items()}


TWO_TIERS = [instance(n, tier="0" if n <= 4 else "1") for n in range(1, 9)]


@pytest.mark.spec("X-01")
def test_a_second_tier_gets_nothing_while_the_first_is_well() -> None:
    service = Service(TWO_TIERS)
    assert service.chosen == [1, 2, 3, 4]

    service.lose(1)  # 3 of 4 times 1.4 is more than all
    assert service.chosen == [2, 3, 4]


@pytest.mark.spec("X-01")
def test_a_second_tier_gets_what_the_first_can_not_carry() -> None:
    """Envoy: 50 % of a tier is well, times 1.4 is 70 % of the calls; the next tier gets the other 30 %."""
    service = Service(TWO_TIERS)

    service.lose(1, 2)

    assert service.chosen == [3, 4, 5, 6, 7, 8]
    shares = service.shares()
    assert shares[3] + shares[4] == pytest.approx(0.7, abs=0.01)
    assert shares[3] == pytest.approx(0.35, abs=0.01)
    assert shares[5] == pytest.approx(0.075, abs=0.01)

    service.lose(1, 2, 3, 4)
    assert service.chosen == [5, 6, 7, 8]
    assert service.shares()[5] == pytest.approx(0.25, abs=0.01)

    service.lose()
    assert service.chosen == [1, 2, 3, 4]
    assert service.shares()[1] == pytest.approx(0.25, abs=0.01)


@pytest.mark.spec("X-01")
def test_tiers_that_can_not_carry_all_together_share_it_and_panic_uses_all() -> None:
    service = Service(TWO_TIERS)
    service.lose(1, 2, 3, 5, 6, 7)  # each a quarter times 1.4
    assert service.shares() == pytest.approx({4: 0.5, 8: 0.5}, abs=0.01)

    service.lose(*range(1, 9))
    assert service.chosen == [1, 2, 3, 4, 5, 6, 7, 8][:4], "nobody is well, so all of the first tier are taken for it"


@pytest.mark.spec("X-01")
def test_tiers_by_policy_win_and_nonsense_in_metadata_is_the_first_tier() -> None:
    members = [instance(1, tier="x"), instance(2, tier="-1"), instance(3, tier="2"), instance(4, tier="9" * 50)]
    assert Service(members).chosen == [1, 2, 4]
    assert Service(members, priorities={"users-3": 0, "users-1": 1}).chosen == [2, 3, 4]


ZONES = [instance(n, zone="ab"[n > 4]) for n in range(1, 9)]


@pytest.mark.spec("X-01")
def test_the_own_zone_comes_first_while_enough_of_it_is_well() -> None:
    service = Service(ZONES, zone="a")
    assert service.chosen == [1, 2, 3, 4]
    service.lose(2)
    assert service.chosen == [1, 3, 4]
    service.lose(2, 3)
    assert service.chosen == [1, 4, 5, 6, 7, 8], "half of a zone can't carry what was all of it"
    service.lose()
    assert service.chosen == [1, 2, 3, 4]


@pytest.mark.spec("X-01")
def test_a_zone_with_one_instance_is_used_alone_only_where_the_policy_says_so() -> None:
    members = [instance(1, zone="a"), instance(2, zone="b"), instance(3)]
    assert Service(members, zone="a").chosen == [1, 2, 3]
    assert Service(members, zone="a", zone_min_instances=1).chosen == [1]
    assert Service(members, zone="c", zone_min_instances=1).chosen == [1, 2, 3]
    assert Service(ZONES, zone="a", zone_aware=False).state.prefer is None
    assert Service(ZONES).state.prefer is None


@pytest.mark.spec("X-01")
@pytest.mark.anyio
async def test_an_instance_that_is_new_or_back_starts_slowly() -> None:
    """Envoy: weight times max(10 %, (time / window) ** (1 / aggression))."""
    service = Service([instance(n) for n in range(1, 5)], slow_start=60.0)
    assert {each.weight for each in service.states} == {1.0}, "the first list has been there for long"

    service.lose(4)
    await service.clock.advance(100)
    service.lose()
    weights = []
    for _ in range(7):
        weights.append(round(service.states[3].weight, 2))
        await service.clock.advance(10)

    assert weights == pytest.approx([0.1, 0.15, 0.3, 0.5, 0.65, 0.8, 1.0], abs=0.06)
    assert service.states[0].weight == 1.0
    assert service.state.prefer.slow_start._timer is None, "nothing is worked out any more"  # type: ignore[union-attr]


@pytest.mark.spec("X-01")
@pytest.mark.anyio
async def test_slow_start_with_aggression_gives_more_at_first() -> None:
    service = Service([instance(1), instance(2)], slow_start=100.0, slow_start_aggression=2.0)
    service.lose(2)
    service.lose()
    await service.clock.advance(25)
    assert service.states[1].weight == pytest.approx(0.5)  # (1/4) ** (1/2)


@pytest.mark.spec("X-01")
def test_subsets_are_even_and_each_instance_is_in_as_many() -> None:
    """Google SRE book, chapter 20: clients numbered from 0, 300 of them, 12 backends, subsets of 4."""
    members = [InstanceState(instance(n)) for n in range(12)]

    subsets = [subset_of(members, 4, client)[:4] for client in range(300)]

    counts = Counter(each for subset in subsets for each in subset)
    assert set(counts.values()) == {100}
    assert all(len(set(subset)) == 4 for subset in subsets)
    assert len({frozenset(subset) for subset in subsets}) > 100, "each round has its own"


@pytest.mark.spec("X-01")
def test_an_instance_that_leaves_moves_a_subset_by_one_and_no_more() -> None:
    """Shuffling by the round's number, as in the book, would move nearly all."""
    members = [InstanceState(instance(n)) for n in range(105)]
    for client in range(40):
        before = set(subset_of(members, 10, client)[:10])
        after = set(subset_of(members[:37] + members[38:], 10, client)[:10])
        assert len(before - after) <= 1


@pytest.mark.spec("X-01")
def test_a_subset_is_filled_up_when_one_of_it_is_not_well() -> None:
    service = Service([instance(n) for n in range(1, 21)], subset_size=5, number=3)
    first = service.chosen
    assert len(first) == 5

    service.lose(first[0])
    assert len(service.chosen) == 5
    assert set(first[1:]) < set(service.chosen)


@pytest.mark.spec("X-01")
def test_retries_go_beyond_the_preferred_instances() -> None:
    async def scenario(sim: Simulation) -> tuple[float, list[Server]]:
        servers = sim.service("users", [Server(f"s{n}", constant(0.01), zone="ab"[n > 1]) for n in range(4)])
        policy = ServicePolicy(circuit_breaker=None)
        client = await sim.client(policy=policy, zone="a")
        await sim.load([client], "users", rate=50, seconds=2)
        assert servers[2].accepted + servers[3].accepted == 0
        servers[0].down = servers[1].down = True
        results = await sim.load([client], "users", rate=50, seconds=5)
        return results.success_rate, servers

    rate, servers = simulate(scenario)

    assert rate == 1.0
    assert servers[2].served > 50


@pytest.mark.spec("X-01", "S-121")
def test_everything_is_changed_live() -> None:
    async def scenario(sim: Simulation) -> list[tuple[int, ...]]:
        servers = sim.service("users", [Server(f"s{n}", zone="ab"[n > 2]) for n in range(6)])
        client: ServiceMesh = await sim.client(zone="a")
        seen = []
        for section in (
            {},
            {"zone_aware": False},
            {"priorities": {"s0": 1, "s1": 1, "s2": 1}, "zone_aware": False},
            {"subset_size": 2, "zone_aware": False},
            {"strategy": "least_response_time", "weights": {"s0": 2.0}},
        ):
            client.configure_load_balancing({"users": section})
            before = [each.accepted for each in servers]
            await sim.load([client], "users", rate=100, seconds=20 if "strategy" in section else 2)
            seen.append(tuple(n for n, each in enumerate(servers) if each.accepted > before[n]))
        return seen

    everything, no_zone, tiers, subset, quickest = simulate(scenario)

    assert everything == (0, 1, 2)
    assert no_zone == (0, 1, 2, 3, 4, 5)
    assert tiers == (3, 4, 5)
    assert len(subset) == 2
    assert quickest == (0, 1, 2)


@pytest.mark.spec("X-01")
def test_an_instance_that_is_registered_later_starts_slowly_in_a_mesh() -> None:
    async def scenario(sim: Simulation) -> list[float]:
        servers = sim.service("users", [Server("a"), Server("b")])
        policy = ServicePolicy.model_validate({"load_balancing": {"slow_start": 20.0}})
        client = await sim.client(policy=policy)
        await sim.load([client], "users", rate=100, seconds=2)
        sim.service("users", [*servers, Server("c")])
        new = sim.server("users", "c")
        shares = []
        for _ in range(3):
            before = new.accepted
            results = await sim.load([client], "users", rate=100, seconds=10)
            shares.append((new.accepted - before) / len(results))
        return shares

    first, second, third = simulate(scenario)

    assert first < 0.17 < second < 0.31
    assert third == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.spec("X-01")
def test_a_mesh_that_is_stopped_has_no_timers_left_and_prefers_as_before_when_it_is_started_again() -> None:
    async def scenario(sim: Simulation) -> tuple[int, list[int]]:
        servers = sim.service("users", [Server(f"s{n}", zone="ab"[n > 1]) for n in range(4)])
        policy = ServicePolicy.model_validate({"load_balancing": {"slow_start": 1000.0}})
        client = await sim.client(policy=policy, zone="a")
        await sim.load([client], "users", rate=50, seconds=1)
        servers = sim.service("users", [*servers, Server("s4", zone="a")])
        await sim.load([client], "users", rate=50, seconds=1)
        await client.stop()
        loop = asyncio.get_running_loop()
        timers = [each for each in loop._scheduled if not each.cancelled()]  # type: ignore[attr-defined]
        before = [each.accepted for each in servers]
        await client.start()
        await sim.load([client], "users", rate=50, seconds=4)
        return len(timers), [each.accepted - was for each, was in zip(servers, before, strict=True)]

    timers, calls = simulate(scenario)

    assert timers == 0
    assert calls[2:4] == [0, 0]
    assert calls[4] == pytest.approx(calls[0], abs=1)
