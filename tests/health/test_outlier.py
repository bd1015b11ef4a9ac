"""When an instance is ejected, and when it gets its trial call."""

from __future__ import annotations

import pytest

from fastapi_mesh.config.policies import OutlierPolicy
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.state import ServiceState
from fastapi_mesh.health.outlier import note_failure, note_success

POLICY = OutlierPolicy(consecutive_failures=2, base_ejection=30.0)


class FirstOne:
    def pick(self, instances, request):
        return instances[0]


def new_state(count: int) -> tuple[ServiceState, list[InstanceState]]:
    instances = [InstanceState(Instance("users", f"u{n}", "127.0.0.1", 1 + n)) for n in range(count)]
    live: Live[tuple[InstanceState, ...]] = Live()
    live.publish(tuple(instances))
    return ServiceState("users", instances=live, picker=FirstOne()), instances


def ignore(event: object) -> None:
    """An observer."""


def eject(state: ServiceState, instance: InstanceState, now: float) -> None:
    for _ in range(POLICY.consecutive_failures):
        note_failure(state, instance, POLICY, now, ignore)


@pytest.mark.spec("X-02")
def test_after_an_outage_of_all_the_first_success_makes_trials_of_the_others_due() -> None:
    state, (first, second, third) = new_state(3)
    for at, each in enumerate((first, second, third), start=100):
        eject(state, each, at)
    assert state.candidates == ()

    note_success(state, second, ignore)

    assert state.candidates == (second,)
    assert state.next_trial <= 102  # and not half a minute later, under the load of all on one
    first.trial = True
    note_failure(state, first, POLICY, 110.0, ignore)
    assert first.ejected_until == 140.0  # the outage was everybody's: what went before does not count


@pytest.mark.spec("X-02")
def test_one_more_ejection_makes_the_trial_of_the_longest_ejected_due() -> None:
    state, (first, second, third, fourth) = new_state(4)
    eject(state, first, 100.0)
    assert first.ejected_until == 130.0

    eject(state, second, 105.0)

    assert state.candidates == (third, fourth)
    assert state.next_trial <= 105.0
    assert second.ejected_until == 135.0
    first.trial = True
    note_failure(state, first, POLICY, 106.0, ignore)
    assert first.ejected_until == 136.0  # no longer than before


@pytest.mark.spec("X-02")
def test_a_refused_connection_brings_nobody_back_early() -> None:
    state, (first, second, _) = new_state(3)
    eject(state, first, 100.0)

    note_failure(state, second, POLICY, 105.0, ignore, refused=True)

    assert first.ejected_until == 130.0
