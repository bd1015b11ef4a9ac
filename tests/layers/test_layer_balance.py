"""Which instance gets the attempt, how long it counts as busy, and what happens to one that fails."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from fastapi_mesh.balancing import new_picker
from fastapi_mesh.config.policies import (
    BalancingPolicy,
    LoadBalancingStrategy,
    OutlierPolicy,
    RetryPolicy,
    ServicePolicy,
)
from fastapi_mesh.core.events import InstanceEjected, InstanceRestored
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.exceptions import ServiceDiscoveryError, UpstreamConnectionError
from fastapi_mesh.testing.wire import Answer, broken, refused
from tests.layers.stack_support import Rig

pytestmark = pytest.mark.anyio

FAST = RetryPolicy(max_attempts=3, base_delay=0.0, jitter=False)


def states(*weights: float) -> tuple[InstanceState, ...]:
    return tuple(
        InstanceState(Instance("users", f"users-{n}", "127.0.0.1", 9000 + n), weight)
        for n, weight in enumerate(weights, 1)
    )


FIRST: Any = SimpleNamespace(context=SimpleNamespace(tried=()))
"""A request at its first attempt."""


@pytest.mark.spec("X-01", "S-120")
async def test_round_robin_takes_turns() -> None:
    bench = Rig([200])
    for _ in range(6):
        await bench.call()
    assert bench.tried() == ["users-1", "users-2", "users-3"] * 2


@pytest.mark.spec("X-01", "X-04")
async def test_the_calls_of_an_instance_that_fails_are_shared_by_all_others() -> None:
    policy = ServicePolicy(retry=FAST, circuit_breaker=None, outlier=None)
    bench = Rig(lambda r: Answer(503) if r.context.instance.instance.id == "users-2" else 200, policy)

    for _ in range(30):
        assert (await bench.call()).status == 200

    assert Counter(bench.tried()) == {"users-1": 15, "users-2": 10, "users-3": 15}


@pytest.mark.spec("X-01")
def test_weighted_round_robin_is_smooth() -> None:
    picker = new_picker(BalancingPolicy())
    instances = states(5.0, 1.0, 1.0)
    order = [picker.pick(instances, FIRST).instance.id[-1] for _ in range(7)]
    assert order == ["1", "1", "2", "1", "3", "1", "1"]  # nginx's order for 5:1:1


@pytest.mark.spec("X-01")
def test_least_connections_prefers_the_less_busy_of_two() -> None:
    import random

    picker = new_picker(BalancingPolicy(strategy=LoadBalancingStrategy.LEAST_CONNECTIONS), source=random.Random(7))
    busy, idle = states(1.0, 1.0)
    busy.in_flight = 5
    assert all(picker.pick((busy, idle), None) is idle for _ in range(50))  # type: ignore[arg-type]

    light, heavy = states(1.0, 10.0)
    light.in_flight, heavy.in_flight = 1, 5
    assert all(picker.pick((light, heavy), None) is heavy for _ in range(50))  # type: ignore[arg-type]

    every = states(*([1.0] * 10))
    seen = Counter(picker.pick(every, None).instance.id for _ in range(5000))  # type: ignore[arg-type]
    assert len(seen) == 10
    assert max(seen.values()) < 1.3 * min(seen.values())


async def test_an_instance_is_busy_until_the_body_has_closed() -> None:
    bench = Rig([Answer(200, body=b"content")])
    response = await bench.call()
    assert bench.states[0].in_flight == 1
    await response.read()
    assert bench.states[0].in_flight == 0
    await response.aclose()
    assert bench.states[0].in_flight == 0


async def test_a_cancelled_call_gives_its_instance_back() -> None:
    bench = Rig([Answer(200, delay=50.0)])
    async with anyio.create_task_group() as group:
        group.start_soon(bench.call)
        await bench.clock.advance(1.0)
        assert bench.states[0].in_flight == 1
        group.cancel_scope.cancel()
    assert [each.in_flight for each in bench.states] == [0, 0, 0]


@pytest.mark.spec("S-112", "S-312")
async def test_no_instance_is_a_discovery_error_at_once() -> None:
    bench = Rig([200], instances=0)
    with pytest.raises(ServiceDiscoveryError, match="no instance of 'users'"):
        await bench.call()
    assert bench.stack.records[-1].refused_by == "resolve"


@pytest.mark.spec("S-112", "S-312")
async def test_a_list_that_empties_between_two_attempts_is_a_discovery_error() -> None:
    def leave_and_refuse(_: object) -> UpstreamConnectionError:
        bench.state.instances.publish(())
        bench.state.refresh()
        return refused()

    bench = Rig(leave_and_refuse, ServicePolicy(retry=FAST))

    with pytest.raises(ServiceDiscoveryError, match="no instance of 'users' is known any more"):
        await bench.call()

    assert bench.tried() == ["users-1"]


async def test_a_first_list_is_waited_for_and_its_absence_is_an_error_after_five_seconds() -> None:
    bench = Rig([200], known=False)
    outcomes = []

    async def one() -> None:
        try:
            outcomes.append((await bench.call()).status)
        except ServiceDiscoveryError as error:
            outcomes.append(str(error))

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        await bench.clock.advance(5.1)
        assert "has not answered" in outcomes[0]
        group.start_soon(one)
        await bench.clock.advance(1.0)
        bench.state.instances.publish(bench.states)
        bench.state.refresh()
    assert outcomes[1] == 200


@pytest.mark.spec("X-02")
async def test_five_failures_in_a_row_eject_an_instance() -> None:
    bad = "users-2"
    policy = ServicePolicy(retry=FAST, circuit_breaker=None)
    bench = Rig(lambda r: broken() if r.context.instance.instance.id == bad else 200, policy)
    for _ in range(30):
        assert (await bench.call()).status == 200
    assert bench.tried().count(bad) == 5
    ejected = bench.seen(InstanceEjected)
    assert [(e.instance, e.seconds) for e in ejected] == [(bad, 30.0)]
    assert bench.states[1].as_seen().health == "unhealthy"
    assert any(("users-2", "ejected") in record.skipped for record in bench.stack.records) or bench.state.candidates


@pytest.mark.spec("X-02", "X-57")
async def test_one_refused_connection_ejects_an_instance_for_a_short_time() -> None:
    gone = True

    def answer(request):
        if gone and request.context.instance.instance.id == "users-2":
            error = UpstreamConnectionError("could not connect")
            error.__cause__ = ConnectionRefusedError(111, "Connection refused")
            return error
        return 200

    bench = Rig(answer, ServicePolicy(retry=FAST, circuit_breaker=None))
    for _ in range(10):
        assert (await bench.call()).status == 200
    assert bench.tried().count("users-2") == 1
    assert [(e.instance, e.seconds) for e in bench.seen(InstanceEjected)] == [("users-2", 2.0)]

    await bench.clock.advance(2.1)
    for _ in range(10):
        assert (await bench.call()).status == 200
    assert bench.tried().count("users-2") == 2
    assert bench.seen(InstanceEjected)[-1].seconds == 4.0

    gone = False
    await bench.clock.advance(4.1)
    for _ in range(10):
        await bench.call()
    assert [e.instance for e in bench.seen(InstanceRestored)] == ["users-2"]


@pytest.mark.spec("X-02")
async def test_an_ejected_instance_comes_back_through_one_trial_call() -> None:
    failing = True
    policy = ServicePolicy(retry=FAST, circuit_breaker=None)
    bench = Rig(lambda r: broken() if failing and r.context.instance.instance.id == "users-2" else 200, policy)
    for _ in range(30):
        await bench.call()
    before = len(bench.wire.calls)
    await bench.clock.advance(29.0)
    for _ in range(6):
        await bench.call()
    assert "users-2" not in bench.tried()[before:]

    await bench.clock.advance(1.5)
    for _ in range(6):
        await bench.call()
    assert bench.tried()[before:].count("users-2") == 1, "one trial, which failed"
    assert bench.seen(InstanceEjected)[-1].seconds == 60.0

    failing = False
    await bench.clock.advance(60.5)
    for _ in range(6):
        await bench.call()
    assert [e.instance for e in bench.seen(InstanceRestored)] == ["users-2"]
    assert bench.tried()[-6:].count("users-2") >= 2


@pytest.mark.spec("X-02")
async def test_only_one_trial_at_a_time() -> None:
    failing = True
    policy = ServicePolicy(retry=FAST, circuit_breaker=None)
    bench = Rig(
        lambda r: (
            (broken() if failing else Answer(200, delay=5)) if r.context.instance.instance.id == "users-2" else 200
        ),
        policy,
    )
    for _ in range(30):
        await bench.call()
    failing = False
    await bench.clock.advance(30.5)
    before = len(bench.wire.calls)
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(bench.call)
        await bench.clock.advance(1.0)
        assert bench.tried()[before:].count("users-2") == 1
        await bench.clock.advance(10.0)


@pytest.mark.spec("X-02")
async def test_three_instances_with_two_bad_ones_work() -> None:
    policy = ServicePolicy(retry=FAST, circuit_breaker=None)
    bench = Rig(lambda r: 200 if r.context.instance.instance.id == "users-1" else Answer(503), policy)
    statuses = [(await bench.call()).status for _ in range(50)]
    assert statuses == [200] * 50
    assert len(bench.wire.calls) < 70


@pytest.mark.spec("X-02")
async def test_when_all_are_ejected_the_longest_ejected_is_used() -> None:
    policy = ServicePolicy(retry=None, circuit_breaker=None, outlier=OutlierPolicy(consecutive_failures=1))
    bench = Rig([broken()], policy)
    while bench.state.candidates:
        with pytest.raises(UpstreamConnectionError):
            await bench.call()
        await bench.clock.advance(1.0)
    assert len(bench.seen(InstanceEjected)) >= 3
    for _ in range(3):
        longest = min(bench.states, key=lambda each: each.ejected_at)
        with pytest.raises(UpstreamConnectionError):
            await bench.call()
        await bench.clock.advance(1.0)
        assert bench.tried()[-1] == longest.instance.id
    assert "longest-ejected" in bench.stack.records[-1].skipped[-1][1]


@pytest.mark.spec("X-02")
async def test_an_ejected_instance_is_used_before_one_that_just_refused_the_connection() -> None:
    """An instance that was ejected may be back by now; one that refuses connections is surely gone."""
    gone = {"users-1"}
    policy = ServicePolicy(retry=FAST, circuit_breaker=None, outlier=OutlierPolicy(consecutive_failures=1))
    bench = Rig(lambda r: refused() if r.context.instance.instance.id in gone else 200, policy, instances=2)
    for _ in range(2):
        assert (await bench.call()).status == 200
    gone = {"users-2"}  # users-1 is back, but still ejected here
    for _ in range(3):
        assert (await bench.call()).status == 200


@pytest.mark.spec("X-02", "X-03")
async def test_an_ejected_instance_is_used_before_one_that_is_said_to_be_down() -> None:
    """When calls fail and probes fail, the one whose probes are well is the better guess."""
    policy = ServicePolicy(retry=None, circuit_breaker=None, outlier=OutlierPolicy(consecutive_failures=1))
    bench = Rig([broken(), 200], policy, instances=2)
    bench.states[1].verdict = "unhealthy"
    bench.state.refresh()
    with pytest.raises(UpstreamConnectionError):
        await bench.call()
    assert (await bench.call()).status == 200
    assert bench.tried() == ["users-1", "users-1"]


@pytest.mark.spec("X-03")
async def test_what_probes_say_is_not_overruled_by_a_trial_call() -> None:
    policy = ServicePolicy(retry=FAST, circuit_breaker=None, outlier=OutlierPolicy(consecutive_failures=1))
    bench = Rig(lambda r: broken() if r.context.instance.instance.id == "users-2" else 200, policy)
    for _ in range(3):
        await bench.call()
    bench.states[1].verdict = "unhealthy"
    bench.state.refresh()
    await bench.clock.advance(31.0)
    before = len(bench.wire.calls)
    for _ in range(6):
        await bench.call()
    assert "users-2" not in bench.tried()[before:]
    bench.states[1].verdict = "healthy"
    bench.state.refresh()
    await bench.call()
    assert "users-2" in bench.tried()[before:]


async def test_unhealthy_instances_are_not_used_unless_there_are_no_others() -> None:
    import dataclasses

    bench = Rig([200])
    for each in bench.states[:2]:
        each.instance = dataclasses.replace(each.instance, health="unhealthy")
    bench.state.refresh()
    for _ in range(4):
        await bench.call()
    assert set(bench.tried()) == {"users-3"}

    bench.states[2].instance = dataclasses.replace(bench.states[2].instance, health="unhealthy")
    bench.state.refresh()
    for _ in range(3):
        await bench.call()
    assert len(set(bench.tried())) == 3
