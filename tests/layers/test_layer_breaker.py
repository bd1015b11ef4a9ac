"""When the circuit opens, what counts, and how it closes again."""

import anyio
import pytest

from fastapi_mesh.config.policies import BreakerPolicy, BulkheadPolicy, RetryPolicy, ServicePolicy
from fastapi_mesh.core.events import CircuitChanged
from fastapi_mesh.core.message import Outcome, Response
from fastapi_mesh.exceptions import (
    BulkheadFullError,
    CircuitBreakerOpenError,
    InvalidRequestError,
    UpstreamConnectionError,
)
from fastapi_mesh.testing.wire import Answer, broken, refused
from tests.layers.stack_support import Rig

pytestmark = pytest.mark.anyio


def rig(script: object, *, instances: int = 1, **breaker: object) -> Rig:
    settings = {"failure_threshold": 3, "recovery_timeout": 10.0, "half_open_max_calls": 2} | breaker
    return Rig(
        script, ServicePolicy(retry=None, circuit_breaker=BreakerPolicy(**settings), outlier=None), instances=instances
    )


async def fail(bench: Rig, times: int) -> None:
    for _ in range(times):
        await bench.call()


@pytest.mark.spec("X-08", "A4", "S-311")
async def test_it_opens_after_the_threshold_and_refuses_without_a_call() -> None:
    bench = rig([500])
    await fail(bench, 3)
    with pytest.raises(CircuitBreakerOpenError) as caught:
        await bench.call()
    assert len(bench.wire.calls) == 3
    assert caught.value.counted_for == "users"
    assert caught.value.retry_after == pytest.approx(10.0)
    assert bench.stack.records[-1].refused_by == "circuit_breaker"
    assert bench.stack.records[-1].outcome == "refused"
    assert [(e.before, e.after) for e in bench.seen(CircuitChanged)] == [("closed", "open")]


@pytest.mark.spec("X-08", "A3")
@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_failure_statuses_count_and_4xx_do_not(status: int) -> None:
    bench = rig([status])
    await fail(bench, 3)
    assert bench.state.breaker.state == "open"

    bench = rig([404])
    await fail(bench, 10)
    assert bench.state.breaker.state == "closed"


@pytest.mark.spec("X-08")
async def test_a_success_ends_the_row_of_failures() -> None:
    bench = rig([500, 500, 200, 500, 500, 200])
    await fail(bench, 6)
    assert bench.state.breaker.state == "closed"


@pytest.mark.spec("X-08", "A4")
async def test_half_open_lets_exactly_its_trial_calls_through_and_closes_on_their_success() -> None:
    failing = True
    bench = rig(lambda request: Answer(500) if failing else Answer(200, delay=1.0))
    await fail(bench, 3)
    failing = False
    await bench.clock.advance(10.1)

    results = []

    async def one() -> None:
        try:
            results.append((await bench.call()).status)
        except CircuitBreakerOpenError:
            results.append("refused")

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(one)
        await bench.clock.advance(2.0)

    assert results.count(200) == 2
    assert results.count("refused") == 18
    assert bench.state.breaker.state == "closed"


@pytest.mark.spec("X-08")
async def test_a_failed_trial_opens_it_again_for_the_whole_time() -> None:
    bench = rig([500])
    await fail(bench, 3)
    await bench.clock.advance(10.1)
    await bench.call()
    with pytest.raises(CircuitBreakerOpenError):
        await bench.call()
    await bench.clock.advance(9.0)
    with pytest.raises(CircuitBreakerOpenError):
        await bench.call()


@pytest.mark.spec("X-08", "A4")
async def test_a_cancelled_trial_changes_nothing_and_gives_its_place_back() -> None:
    delay = 100.0
    failing = True
    bench = rig(lambda request: Answer(500) if failing else Answer(200, delay=delay), half_open_max_calls=1)
    await fail(bench, 3)
    failing = False
    await bench.clock.advance(10.1)
    async with anyio.create_task_group() as group:
        group.start_soon(bench.call)
        await bench.clock.advance(1.0)
        assert bench.wire.in_flight == 1
        group.cancel_scope.cancel()
    assert bench.state.breaker.state == "half-open"
    delay = 0.0
    assert (await bench.call()).status == 200
    assert bench.state.breaker.state == "closed"


@pytest.mark.spec("X-08", "A4")
async def test_a_late_failure_from_before_the_opening_does_not_prolong_it() -> None:
    answers = [Answer(500, delay=8.0)] + [Answer(500)] * 10
    bench = rig(lambda request: answers.pop(0))
    async with anyio.create_task_group() as group:
        group.start_soon(bench.call)
        await bench.clock.advance(0.0)
        await fail(bench, 3)
        await bench.clock.advance(9.0)
    await bench.clock.advance(1.5)
    await bench.call()  # a trial: 10.5 s after the opening, although something failed 2.5 s ago
    assert len(bench.wire.calls) == 5


@pytest.mark.spec("X-08")
async def test_calls_are_counted_not_attempts() -> None:
    policy = ServicePolicy(
        retry=RetryPolicy(max_attempts=3, base_delay=0.0, jitter=False),
        circuit_breaker=BreakerPolicy(failure_threshold=3),
        outlier=None,
    )
    bench = Rig([503], policy)
    await fail(bench, 2)
    assert len(bench.wire.calls) == 6
    assert bench.state.breaker.state == "closed"
    await fail(bench, 1)
    assert bench.state.breaker.state == "open"


@pytest.mark.spec("X-08")
async def test_what_the_caller_did_wrong_is_neutral() -> None:
    bench = rig([InvalidRequestError("bad header")])
    for _ in range(5):
        with pytest.raises(InvalidRequestError):
            await bench.call()
    assert bench.state.breaker.state == "closed"


@pytest.mark.spec("X-08", "X-07")
async def test_a_full_bulkhead_is_neutral() -> None:
    policy = ServicePolicy(
        retry=None,
        circuit_breaker=BreakerPolicy(failure_threshold=1),
        bulkhead=BulkheadPolicy(max_concurrent=1),
        outlier=None,
    )
    bench = Rig([Answer(200, delay=5.0)], policy)
    async with anyio.create_task_group() as group:
        group.start_soon(bench.call)
        await bench.clock.advance(0.0)
        with pytest.raises(BulkheadFullError):
            await bench.call()
        await bench.clock.advance(5.0)
    assert bench.state.breaker.state == "closed"


@pytest.mark.spec("X-08", "B24")
async def test_one_dead_instance_is_not_the_services_failure_while_others_are_untried() -> None:
    bench = rig([broken()], instances=3)
    for _ in range(10):
        with pytest.raises(UpstreamConnectionError):
            await bench.call("POST")
    assert bench.state.breaker.state == "closed"

    bench = rig([refused()], instances=1)
    for _ in range(3):
        with pytest.raises(UpstreamConnectionError):
            await bench.call("POST")
        await bench.clock.advance(0.01)
    assert bench.state.breaker.state == "open"


@pytest.mark.spec("X-08")
async def test_connections_lost_together_count_as_one_failure() -> None:
    bench = rig([Answer(error=broken(), delay=1.0)], instances=1)
    lost = 0

    async def one() -> None:
        nonlocal lost
        with pytest.raises(UpstreamConnectionError):
            await bench.call("POST")
        lost += 1

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(one)
        await bench.clock.advance(2.0)
    assert lost == 20
    assert bench.state.breaker.statistics()["failures"] == 1


@pytest.mark.spec("X-08")
async def test_a_body_that_breaks_off_counts_when_it_breaks() -> None:
    class Dying:
        at_end = False

        async def read(self) -> bytes:
            raise broken()

        async def aclose(self) -> None:
            self.at_end = True

    bench = rig([200], failure_threshold=1)

    async def answer(request):
        return Response(200, [], Dying())

    bench.stack._wire = answer  # type: ignore[assignment]
    response = await bench.call()
    assert bench.state.breaker.state == "closed"
    with pytest.raises(UpstreamConnectionError):
        await response.read()
    assert bench.state.breaker.state == "open"


async def test_closing_a_response_early_is_neutral() -> None:
    outcomes = []
    response = Response.of(200, [], b"content")
    response.on_close(lambda argument, outcome, error: outcomes.append(outcome), None)
    await response.aclose()
    await response.aclose()
    assert outcomes == [Outcome.ABANDONED]


# By the share of failures


@pytest.mark.spec("X-08", "S-402")
async def test_it_opens_when_the_share_of_failures_is_too_high_though_never_many_in_a_row() -> None:
    bench = rig([500, 200] * 6, failure_threshold=3, failure_rate=0.5, minimum_calls=10)
    await fail(bench, 9)
    assert bench.state.breaker.state == "closed"
    await fail(bench, 2)
    assert bench.state.breaker.state == "open"


@pytest.mark.spec("X-08")
async def test_failures_in_a_row_are_not_enough_below_the_minimum_of_calls() -> None:
    bench = rig([500], failure_threshold=3, failure_rate=0.5, minimum_calls=10)
    await fail(bench, 9)
    assert bench.state.breaker.state == "closed"
    await fail(bench, 1)
    assert bench.state.breaker.state == "open"


@pytest.mark.spec("X-08")
async def test_failures_older_than_the_window_are_forgotten() -> None:
    bench = rig([500], failure_rate=0.5, minimum_calls=10, window=5.0)
    await fail(bench, 9)
    await bench.clock.advance(5.6)
    await fail(bench, 9)
    assert bench.state.breaker.state == "closed"
    await fail(bench, 1)
    assert bench.state.breaker.state == "open"


@pytest.mark.spec("X-08")
async def test_after_its_trial_calls_the_share_is_counted_anew() -> None:
    bench = rig([500] * 10 + [200, 200] + [500] * 9, failure_rate=0.5, minimum_calls=10, window=1000.0)
    await fail(bench, 10)
    assert bench.state.breaker.state == "open"
    await bench.clock.advance(10.1)
    await fail(bench, 11)
    assert bench.state.breaker.state == "closed"
