"""Ejection by success rate: who is an outlier, and how many may be out at once."""

from __future__ import annotations

import pytest

from fastapi_mesh.config.outlier import SuccessRatePolicy
from fastapi_mesh.config.policies import OutlierPolicy, ServicePolicy
from fastapi_mesh.core.events import InstanceEjected, InstanceRestored
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.health.success_rate import lowest_accepted
from fastapi_mesh.testing.wire import Answer
from tests.layers.stack_support import Rig

pytestmark = pytest.mark.anyio

RULE = SuccessRatePolicy()


def rates(*given: float) -> dict[InstanceState, float]:
    return {InstanceState(Instance("users", f"u{n}", "127.0.0.1", 1 + n)): rate for n, rate in enumerate(given)}


@pytest.mark.spec("X-02")
def test_an_outlier_is_more_than_1_9_deviations_below_the_mean() -> None:
    """Envoy's success_rate_stdev_factor of 1900. With five hosts one alone is two deviations below the mean."""
    assert lowest_accepted(rates(1, 1, 1, 1, 0.5), RULE) == pytest.approx(0.9 - 1.9 * 0.2)
    assert lowest_accepted(rates(1, 1, 1, 0.5, 0.5), RULE) < 0.5, "two of five are no outliers"


@pytest.mark.spec("X-02")
def test_nobody_is_judged_without_five_to_compare_or_for_a_single_failure() -> None:
    assert lowest_accepted(rates(1, 1, 1, 0.1), RULE) == 0.0
    assert lowest_accepted(rates(1, 1, 1, 1, 0.99), RULE) < 0.99
    assert lowest_accepted(rates(1, 1, 1, 1, 0.99), RULE.model_copy(update={"margin": 0.0})) > 0.99


class Bad:
    """Answers 503 to every n-th request to an instance, for the given instances."""

    def __init__(self, every: dict[str, int]) -> None:
        self.every = every
        self.counts: dict[str, int] = {}

    def __call__(self, request: object) -> Answer | int:
        id = request.context.instance.instance.id  # type: ignore[attr-defined]
        self.counts[id] = count = self.counts.get(id, 0) + 1
        every = self.every.get(id)
        return Answer(503) if every and count % every == 0 else 200


async def load(rig: Rig, calls: int, seconds: float) -> None:
    for _ in range(20):
        for _ in range(calls // 20):
            await rig.call()
        await rig.clock.advance(seconds / 20)


def rig_of(bad: Bad, *, instances: int = 5, outlier: OutlierPolicy | None = None) -> Rig:
    policy = ServicePolicy(retry=None, circuit_breaker=None, outlier=outlier or OutlierPolicy())
    return Rig(bad, policy, instances=instances)


@pytest.mark.spec("X-02")
async def test_an_instance_that_fails_every_third_request_is_ejected_though_never_five_times_in_a_row() -> None:
    rig = rig_of(Bad({"users-2": 3}))

    await load(rig, 2000, 22)

    assert [(each.instance, each.seconds) for each in rig.seen(InstanceEjected)] == [("users-2", 30.0)]
    assert len(rig.state.candidates) == 4


@pytest.mark.spec("X-02")
async def test_it_is_back_through_one_trial_and_out_for_longer_the_next_time() -> None:
    bad = Bad({"users-2": 3})
    rig = rig_of(bad)
    await load(rig, 2000, 22)
    bad.counts.clear()

    await rig.clock.advance(31)
    await load(rig, 2000, 22)

    assert [each.instance for each in rig.seen(InstanceRestored)] == ["users-2"]
    assert [each.seconds for each in rig.seen(InstanceEjected)] == [30.0, 60.0]


@pytest.mark.spec("X-02")
async def test_a_trial_that_fails_prolongs_it() -> None:
    bad = Bad({"users-2": 3})
    rig = rig_of(bad)
    await load(rig, 2000, 22)
    bad.every = {"users-2": 1}

    for pause in (31, 61):
        await rig.clock.advance(pause)
        await load(rig, 20, 1)

    assert [each.seconds for each in rig.seen(InstanceEjected)] == [30.0, 60.0, 90.0]


@pytest.mark.spec("X-02")
async def test_few_requests_or_few_instances_eject_nobody() -> None:
    few = rig_of(Bad({"users-2": 3}))
    await load(few, 400, 22)  # about 36 per instance in 10 s
    small = rig_of(Bad({"users-2": 3}), instances=4)
    await load(small, 2000, 22)

    assert few.seen(InstanceEjected) == small.seen(InstanceEjected) == []


@pytest.mark.spec("X-02")
async def test_no_more_than_a_tenth_are_ejected_by_it_whatever_happens() -> None:
    bad = Bad({"users-1": 2, "users-2": 2, "users-3": 2})
    rig = rig_of(bad, instances=20)

    await load(rig, 8000, 42)

    assert len(rig.seen(InstanceEjected)) == 2
    assert len(rig.state.candidates) == 18


@pytest.mark.spec("X-02")
async def test_those_out_for_failures_in_a_row_count_and_have_no_cap_themselves() -> None:
    rig = rig_of(Bad({"users-1": 1, "users-2": 1, "users-3": 1, "users-4": 3}), instances=10)

    await load(rig, 4000, 22)

    assert {each.instance for each in rig.seen(InstanceEjected)} == {"users-1", "users-2", "users-3"}


@pytest.mark.spec("X-02")
async def test_it_can_be_switched_off_and_nothing_is_kept_while_all_is_well() -> None:
    off = rig_of(Bad({"users-2": 3}), outlier=OutlierPolicy(success_rate=None))
    await load(off, 2000, 22)
    well = rig_of(Bad({}))
    await load(well, 200, 22)

    assert off.seen(InstanceEjected) == []
    assert well.state.rates is None
