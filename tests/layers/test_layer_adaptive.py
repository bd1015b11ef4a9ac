"""Seats with priorities, and the adaptive limit (Gradient2)."""

from __future__ import annotations

import anyio
import pytest
from stack_support import Rig

from fastapi_mesh.config.policies import AdaptiveLimit, BulkheadPolicy, ServicePolicy
from fastapi_mesh.core.context import Inbound
from fastapi_mesh.core.events import LimitChanged
from fastapi_mesh.core.gradient import MIN_SAMPLES, Gradient2
from fastapi_mesh.core.priority import HIGH, LOW, NORMAL, read_priority
from fastapi_mesh.exceptions import BulkheadFullError
from fastapi_mesh.layers.bulkhead import SeatQueue
from fastapi_mesh.testing.clock import FakeClock
from fastapi_mesh.testing.wire import Answer

pytestmark = pytest.mark.anyio


def seats_of(count: int, queue: int = 0, **settings: object) -> SeatQueue:
    policy = BulkheadPolicy(max_concurrent=count, max_queue=queue, **settings)
    return SeatQueue("users", policy, clock=FakeClock())


async def settle() -> None:
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


@pytest.mark.spec("X-07")
def test_low_priority_leaves_seats_for_the_others() -> None:
    seats = seats_of(5)
    assert [seats.take(LOW) for _ in range(5)] == [True] * 4 + [False]
    assert seats.take(NORMAL)
    assert not seats.take(HIGH)


@pytest.mark.spec("X-07")
async def test_whoever_waits_is_served_by_priority_and_then_in_order() -> None:
    seats, order = seats_of(1, queue=9), []
    assert seats.take()

    async def wait(name: str, priority: int) -> None:
        await seats.acquire(None, priority)
        order.append(name)
        seats.release()

    async with anyio.create_task_group() as group:
        for name, priority in [("low", LOW), ("first", NORMAL), ("second", NORMAL), ("high", HIGH)]:
            group.start_soon(wait, name, priority)
            await settle()
        seats.release()
    assert order == ["high", "first", "second", "low"]
    assert seats.statistics() == {"in_flight": 0, "queued": 0, "limit": 1}


@pytest.mark.spec("X-07")
async def test_in_a_full_queue_the_lowest_that_came_last_makes_way() -> None:
    seats, outcomes = seats_of(1, queue=2), {}
    assert seats.take()

    async def wait(name: str, priority: int) -> None:
        try:
            await seats.acquire(None, priority)
        except BulkheadFullError as error:
            outcomes[name] = f"refused for {error.retry_after} s"
        else:
            outcomes[name] = "served"
            seats.release()

    async with anyio.create_task_group() as group:
        for name, priority in [("low 1", LOW), ("low 2", LOW), ("normal", NORMAL), ("high", HIGH), ("low 3", LOW)]:
            group.start_soon(wait, name, priority)
            await settle()
        assert outcomes == dict.fromkeys(["low 1", "low 2", "low 3"], "refused for 1.0 s")
        seats.release()
    assert outcomes["normal"] == outcomes["high"] == "served"
    assert seats.statistics()["in_flight"] == 0


@pytest.mark.spec("X-07")
async def test_ten_thousand_cancellations_in_the_queue_leave_no_seat_behind() -> None:
    seats = seats_of(2, queue=100)

    async def one(priority: int) -> None:
        try:
            await seats.acquire(None, priority)
        except BulkheadFullError:
            return
        try:
            await anyio.lowlevel.checkpoint()
        finally:
            seats.release()

    for turn in range(100):
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(one, number % 3)
            for _ in range(turn % 7):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    assert seats.statistics() == {"in_flight": 0, "queued": 0, "limit": 2}


def feed(limit: Gradient2, seconds: float, windows: int, in_flight: int = 200, start: float = 0.0) -> float:
    now = start
    for _ in range(windows):
        now += 1.0
        for _ in range(MIN_SAMPLES):
            limit.sample(now, seconds, in_flight)
    return now


@pytest.mark.spec("X-07")
def test_the_limit_grows_while_calls_take_as_long_as_ever_and_shrinks_when_they_take_longer() -> None:
    limit = Gradient2(AdaptiveLimit(), 200)
    assert limit.limit == 20

    now = feed(limit, 0.1, 100)
    grown = limit.limit
    assert 90 <= grown <= 105  # by smoothing * 4 in each window

    now = feed(limit, 0.5, 10, start=now)
    assert limit.limit < grown / 2

    feed(limit, 10.0, 100, start=now)
    assert limit.limit >= 20


@pytest.mark.spec("X-07")
def test_the_limit_stays_between_its_ends_and_where_seats_are_not_used() -> None:
    limit = Gradient2(AdaptiveLimit(), 200)
    now = feed(limit, 0.1, 1000)
    assert limit.limit == 200
    feed(limit, 5.0, 1000, in_flight=90, start=now)
    assert limit.limit >= 180  # of the first window, which still has some of before


@pytest.mark.spec("X-07", "X-12")
async def test_an_adaptive_limit_refuses_with_its_own_name_and_tells_its_changes() -> None:
    adaptive = AdaptiveLimit(min_concurrent=2)
    bench = Rig([Answer(200, delay=1.0)], ServicePolicy(bulkhead=BulkheadPolicy(max_concurrent=200, adaptive=adaptive)))
    refused = 0

    async def one() -> None:
        nonlocal refused
        try:
            await (await bench.call()).aclose()
        except BulkheadFullError:
            refused += 1

    for _ in range(30):
        async with anyio.create_task_group() as group:
            for _ in range(bench.state.seats.limit + 1):
                group.start_soon(one)
            await bench.clock.advance(0.1)
            await bench.clock.advance(1.0)
    assert refused == 30
    assert bench.state.seats.limit > 4
    assert bench.state.seats.statistics()["in_flight"] == 0
    assert "adaptive_limit" in {record.refused_by for record in bench.stack.records}
    assert {event.service for event in bench.seen(LimitChanged)} == {"users"}


@pytest.mark.spec("X-07")
async def test_a_call_has_the_priority_of_the_request_it_is_made_in_and_says_so() -> None:
    bench = Rig([Answer(200)], ServicePolicy(bulkhead=BulkheadPolicy(max_concurrent=5)))
    inbound = Inbound(None)
    inbound.priority = LOW
    for _ in range(4):
        bench.state.seats.take(NORMAL)

    with pytest.raises(BulkheadFullError):
        await bench.call(context=bench.context(inbound=inbound))
    await bench.call(context=bench.context(inbound=inbound), headers=[(b"x-mesh-priority", b"high")])

    assert [read_priority(call.headers) for call in bench.wire.calls] == [HIGH]


@pytest.mark.spec("X-07")
def test_a_lowest_limit_over_the_highest_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_concurrent \(10\) is lower than adaptive.min_concurrent \(20\)"):
        BulkheadPolicy(max_concurrent=10, adaptive=AdaptiveLimit())


@pytest.mark.spec("X-07")
@pytest.mark.parametrize(("given", "adaptive"), [(True, AdaptiveLimit()), ("true", AdaptiveLimit()), ("false", None)])
def test_an_adaptive_limit_is_switched_on_by_a_word(given: object, adaptive: AdaptiveLimit | None) -> None:
    assert BulkheadPolicy.model_validate({"max_concurrent": 50, "adaptive": given}).adaptive == adaptive
