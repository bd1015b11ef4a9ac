"""What holds of balancing whatever instances, policies and failures there are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastapi_mesh.balancing import new_picker
from fastapi_mesh.balancing.preference import Place, new_preference
from fastapi_mesh.config.balancing import BalancingPolicy, LoadBalancingStrategy
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.state import ServiceState
from fastapi_mesh.testing.clock import FakeClock
from tests.balancing.picker_support import request

INSTANCES = st.lists(
    st.tuples(
        st.sampled_from([None, "a", "b"]),
        st.sampled_from([None, "0", "1", "7"]),
        st.floats(0.01, 100.0),
        st.sampled_from(["healthy", "unhealthy", "degraded", "unknown"]),
        st.booleans(),
        st.integers(0, 50),
    ),
    min_size=1,
    max_size=12,
)
POLICIES = st.fixed_dictionaries(
    {
        "strategy": st.sampled_from(LoadBalancingStrategy),
        "sticky_sessions": st.booleans(),
        "zone_min_instances": st.integers(1, 4),
        "overprovisioning": st.floats(1.0, 3.0),
        "slow_start": st.sampled_from([0.0, 30.0]),
        "subset_size": st.sampled_from([None, 1, 3, 50]),
        "bounded_load_from": st.sampled_from([1, 8]),
    }
)


@pytest.mark.spec("X-01", "X-02")
@settings(max_examples=150, deadline=None)
@given(given=INSTANCES, values=POLICIES, zone=st.sampled_from([None, "a"]), number=st.integers(0, 2**32))
def test_somebody_is_always_picked_and_nobody_that_is_out(
    given: list[tuple[str | None, str | None, float, str, bool, int]],
    values: dict[str, object],
    zone: str | None,
    number: int,
) -> None:
    policy = BalancingPolicy.model_validate(values)
    everyone = []
    for n, (own_zone, tier, weight, verdict, ejected, in_flight) in enumerate(given):
        metadata = {} if tier is None else {"priority": tier}
        each = InstanceState(Instance("s", f"s-{n}", "127.0.0.1", n + 1, zone=own_zone, metadata=metadata), weight)
        each.verdict = verdict  # type: ignore[assignment]
        each.ejected_until = 10.0 if ejected else 0.0
        each.in_flight = in_flight
        everyone.append(each)
    live: Live[tuple[InstanceState, ...]] = Live()
    live.publish(tuple(everyone))
    state = ServiceState("s", instances=live, picker=new_picker(policy))
    state.prefer = new_preference(policy, Place("t", zone, number), everyone, FakeClock(), state.refresh)

    for back in (False, True):
        if back:
            for each in everyone:
                each.ejected_until, each.verdict = 0.0, "healthy"
        state.refresh()
        assert bool(state.candidates) == bool(state.reserve)
        assert set(state.candidates) <= set(state.reserve)
        assert len(set(state.candidates)) == len(state.candidates)
        assert all(each.weight > 0 and not each.ejected_until for each in state.candidates)
        for n in range(5 if state.candidates else 0):
            call = request((b"x-user-id", b"%d" % n), target=b"/%d" % n)
            assert state.picker.pick(state.candidates, call) in state.candidates
            assert state.picker.pick(list(state.candidates), request()) in state.candidates
    assert state.candidates, "all are well"
