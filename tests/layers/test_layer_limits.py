"""Deadline, bulkhead, and what the record of a call says."""

import anyio
import pytest

from fastapi_mesh.config.policies import BulkheadPolicy, RetryPolicy, ServicePolicy, TimeoutPolicy
from fastapi_mesh.core.context import Inbound
from fastapi_mesh.core.events import CallFinished
from fastapi_mesh.exceptions import BulkheadFullError, ClientDisconnectedError, DeadlineExceededError
from fastapi_mesh.testing.wire import Answer, refused
from tests.layers.stack_support import Rig

pytestmark = pytest.mark.anyio


def sent_header(bench: Rig, name: bytes) -> bytes | None:
    return dict(bench.wire.calls[-1].headers).get(name)


@pytest.mark.spec("X-06")
async def test_what_is_left_of_the_deadline_goes_with_each_attempt() -> None:
    bench = Rig([200], ServicePolicy(timeouts=TimeoutPolicy(timeout=10, attempt_timeout=2)))
    await bench.call()
    assert sent_header(bench, b"x-mesh-timeout-ms") == b"10000"


@pytest.mark.spec("X-06")
async def test_the_inbound_deadline_bounds_the_call() -> None:
    bench = Rig([Answer(200, delay=5)])
    context = bench.context(inbound=Inbound(None, deadline=bench.clock.now() + 1.0))
    async with anyio.create_task_group() as group:
        group.start_soon(bench.clock.advance, 3.0)
        with pytest.raises(DeadlineExceededError):
            await bench.call(context=context)
    assert sent_header(bench, b"x-mesh-timeout-ms") == b"1000"


@pytest.mark.spec("X-06")
async def test_a_deadline_that_has_passed_makes_no_call() -> None:
    bench = Rig([200])
    with pytest.raises(DeadlineExceededError):
        await bench.call(context=bench.context(deadline=bench.clock.now() - 0.1))
    assert bench.wire.calls == []
    assert bench.stack.records[-1].refused_by == "deadline"


@pytest.mark.spec("X-06")
async def test_no_call_is_made_for_a_client_that_is_gone() -> None:
    bench = Rig([200])
    inbound = Inbound(None)
    inbound.gone = True
    with pytest.raises(ClientDisconnectedError):
        await bench.call(context=bench.context(inbound=inbound))
    assert bench.wire.calls == []


@pytest.mark.spec("X-07")
async def test_a_bulkhead_queues_up_to_its_limit_and_refuses_the_rest() -> None:
    policy = ServicePolicy(bulkhead=BulkheadPolicy(max_concurrent=2, max_queue=1))
    bench = Rig([Answer(200, delay=1.0)], policy)
    results = []

    async def one() -> None:
        try:
            response = await bench.call()
            await response.aclose()
            results.append(response.status)
        except BulkheadFullError:
            results.append("full")

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(one)
        await bench.clock.advance(0.5)
        assert bench.wire.in_flight == 2
        await bench.clock.advance(5.0)
    assert sorted(results, key=str) == [200, 200, 200, "full", "full"]
    assert bench.state.seats.statistics()["in_flight"] == bench.state.seats.statistics()["queued"] == 0


@pytest.mark.spec("X-07")
async def test_waiting_for_a_seat_is_bounded_by_the_deadline_and_by_cancellation() -> None:
    policy = ServicePolicy(
        bulkhead=BulkheadPolicy(max_concurrent=1, max_queue=5), timeouts=TimeoutPolicy(timeout=20, attempt_timeout=20)
    )
    bench = Rig([Answer(200, delay=10.0)], policy)
    outcomes = []

    async def short() -> None:
        try:
            await bench.call(context=bench.context(deadline=bench.clock.now() + 2.0))
        except DeadlineExceededError:
            outcomes.append("deadline")

    async with anyio.create_task_group() as group:
        group.start_soon(bench.call)
        await bench.clock.advance(0.0)
        group.start_soon(short)
        await bench.clock.advance(3.0)
        assert outcomes == ["deadline"]
        assert bench.state.seats.statistics()["queued"] == 0
        group.start_soon(short)
        await bench.clock.advance(0.1)
        group.cancel_scope.cancel()
    assert bench.state.seats.statistics()["in_flight"] == bench.state.seats.statistics()["queued"] == 0


@pytest.mark.spec("X-07")
async def test_a_retry_takes_no_second_seat() -> None:
    policy = ServicePolicy(
        bulkhead=BulkheadPolicy(max_concurrent=1), retry=RetryPolicy(base_delay=0.0, jitter=False), circuit_breaker=None
    )
    bench = Rig([refused(), 200], policy)
    response = await bench.call()
    assert response.status == 200
    await response.aclose()
    assert bench.state.seats.statistics()["in_flight"] == 0


@pytest.mark.spec("X-12")
async def test_the_record_says_what_was_tried_and_what_came_of_it() -> None:
    bench = Rig(
        [refused(), 503, Answer(200, body=b"x")], ServicePolicy(retry=RetryPolicy(base_delay=0.0, jitter=False))
    )
    response = await bench.call("PUT")
    record = bench.stack.records[-1]
    assert [(a.error, a.status) for a in record.attempts] == [("connection-failed", None), (None, 503), (None, 200)]
    assert len({a.instance for a in record.attempts}) == 3
    assert record.outcome == "success"
    assert record.body_outcome == ""
    await response.read()
    assert record.body_outcome == "complete"
    assert ("users-1", "already tried in this call") in record.skipped
    plain = record.as_dict()
    assert plain["method"] == "PUT"
    assert plain["attempts"][1]["status"] == 503
    assert response.header(b"x-mesh-attempts") == b"3"


@pytest.mark.spec("X-12")
async def test_every_call_is_recorded_once_and_the_ring_is_bounded() -> None:
    bench = Rig([200])
    for _ in range(250):
        await bench.call()
    assert len(bench.stack.records) == 200
    assert len(bench.seen(CallFinished)) == 250
    assert bench.state.statistics.calls == 250
