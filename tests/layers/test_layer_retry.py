"""What is repeated, where, how often, and what never is."""

import itertools

import pytest

from fastapi_mesh.config.policies import RetryPolicy, ServicePolicy, TimeoutPolicy
from fastapi_mesh.core.events import BudgetExhausted
from fastapi_mesh.exceptions import DeadlineExceededError, UpstreamConnectionError, UpstreamTimeoutError
from fastapi_mesh.layers.retry import RetryBudget
from fastapi_mesh.testing.clock import FakeClock
from fastapi_mesh.testing.wire import Answer, broken, refused
from tests.layers.stack_support import Rig

pytestmark = pytest.mark.anyio

AT_ONCE = RetryPolicy(base_delay=0.0, jitter=False)


def rig(script: object, **retry: object) -> Rig:
    return Rig(script, ServicePolicy(retry=AT_ONCE.model_copy(update=retry), circuit_breaker=None))


@pytest.mark.spec("X-04")
async def test_a_refused_connection_is_tried_on_another_instance_for_any_method() -> None:
    for method in ("GET", "POST", "PATCH"):
        bench = rig([refused(), 200])
        response = await bench.call(method, body=b"payload")
        assert response.status == 200
        assert len(set(bench.tried())) == 2
        assert [call.body for call in bench.wire.calls] == [b"payload", b"payload"]


@pytest.mark.spec("X-04", "B6")
async def test_a_connection_that_broke_after_the_request_was_sent_is_repeated_for_idempotent_methods_only() -> None:
    bench = rig([broken(), 200])
    assert (await bench.call("PUT")).status == 200

    bench = rig([broken(), 200])
    with pytest.raises(UpstreamConnectionError) as caught:
        await bench.call("POST")
    assert len(bench.wire.calls) == 1
    assert caught.value.attempts == 1


@pytest.mark.spec("X-04", "B6")
async def test_an_idempotency_key_or_the_policy_makes_a_post_repeatable() -> None:
    bench = rig([broken(), 200])
    assert (await bench.call("POST", headers=[(b"Idempotency-Key", b"k1")])).status == 200

    bench = rig([broken(), 200], retry_non_idempotent=True)
    assert (await bench.call("POST")).status == 200


@pytest.mark.spec("X-04")
@pytest.mark.parametrize(("status", "attempts"), [(500, 1), (502, 2), (503, 2), (504, 2), (404, 1), (429, 1)])
async def test_statuses_that_are_worth_another_attempt(status: int, attempts: int) -> None:
    bench = rig([status, 200])
    response = await bench.call("GET")
    assert len(bench.wire.calls) == attempts
    assert response.status == (200 if attempts == 2 else status)


@pytest.mark.spec("X-04")
async def test_a_streamed_or_large_body_is_never_sent_twice() -> None:
    async def stream():
        yield b"part"

    for body in (b"x" * (64 * 1024 + 1), stream()):
        bench = rig([503, 200])
        response = await bench.call("PUT", body=body)
        assert response.status == 503
        assert len(bench.wire.calls) == 1


@pytest.mark.spec("X-04")
async def test_a_refused_connection_is_repeated_with_a_stream_that_was_not_begun() -> None:
    async def stream():
        yield b"part"

    calls = []

    def script(request):
        calls.append(request)
        return 200

    bench = rig(script)
    first = bench.wire.__call__

    async def refuse_once(request):
        if not calls:
            calls.append(None)
            raise refused()
        return await first(request)

    from fastapi_mesh.service_mesh.stack import Parts, Stack

    bench.stack = Stack(refuse_once, Parts(bench.clock, bench.events.append, "tests", None))  # type: ignore[arg-type]
    assert (await bench.call("PUT", body=stream())).status == 200
    assert bench.wire.calls[0].body == b"part"


@pytest.mark.spec("X-04")
async def test_the_last_answer_is_returned_when_all_attempts_are_used() -> None:
    bench = rig([503], max_attempts=3)
    response = await bench.call()
    assert response.status == 503
    assert len(bench.wire.calls) == 3
    assert response.header(b"x-mesh-attempts") == b"3"
    assert [each.status for each in bench.stack.records[-1].attempts] == [503, 503, 503]


@pytest.mark.spec("X-04")
async def test_the_same_instance_is_tried_again_when_it_is_the_only_one() -> None:
    bench = Rig([503, 200], ServicePolicy(retry=AT_ONCE), instances=1)
    assert (await bench.call()).status == 200
    assert bench.tried() == ["users-1", "users-1"]


@pytest.mark.spec("X-04")
async def test_retry_after_is_waited_for_when_it_fits_into_the_deadline() -> None:
    bench = rig([Answer(429, headers=[(b"Retry-After", b"2")]), 200])
    started = bench.clock.now()
    response = await run_with_time(bench, bench.call(), 3.0)
    assert response.status == 200
    assert bench.wire.calls[1].at - started == pytest.approx(2.0)


@pytest.mark.spec("X-04")
async def test_retry_after_that_passes_the_deadline_gives_the_answer_at_once() -> None:
    bench = Rig(
        [Answer(503, headers=[(b"Retry-After", b"20")]), 200],
        ServicePolicy(retry=AT_ONCE, timeouts=TimeoutPolicy(timeout=10, attempt_timeout=5)),
    )
    response = await bench.call()
    assert response.status == 503
    assert len(bench.wire.calls) == 1
    assert "deadline" in bench.stack.records[-1].notes[0]


@pytest.mark.spec("X-04")
async def test_the_waits_grow_exponentially_up_to_the_cap() -> None:
    bench = rig([503], max_attempts=5, base_delay=1.0, multiplier=2.0, max_delay=3.0)
    await run_with_time(bench, bench.call(), 20.0)
    times = [call.at for call in bench.wire.calls]
    assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([1.0, 2.0, 3.0, 3.0])


@pytest.mark.spec("X-04")
async def test_linear_waits_grow_by_the_base() -> None:
    bench = rig([503], max_attempts=4, base_delay=0.5, backoff_strategy="linear", max_delay=10.0)
    await run_with_time(bench, bench.call(), 20.0)
    times = [call.at for call in bench.wire.calls]
    assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([0.5, 1.0, 1.5])


@pytest.mark.spec("X-04")
async def test_an_attempt_timeout_is_repeated_for_idempotent_methods() -> None:
    bench = Rig(
        [Answer(200, delay=60), 200],
        ServicePolicy(retry=AT_ONCE, timeouts=TimeoutPolicy(timeout=10, attempt_timeout=2)),
    )
    response = await run_with_time(bench, bench.call(), 5.0)
    assert response.status == 200
    assert [each.error for each in bench.stack.records[-1].attempts] == ["upstream-timeout", None]

    bench = Rig(
        [Answer(200, delay=60), 200],
        ServicePolicy(retry=AT_ONCE, timeouts=TimeoutPolicy(timeout=10, attempt_timeout=2)),
    )
    with pytest.raises(UpstreamTimeoutError):
        await run_with_time(bench, bench.call("POST"), 5.0)


@pytest.mark.spec("X-04", "B5")
async def test_the_deadline_of_the_call_ends_it_whatever_the_retries() -> None:
    bench = Rig(
        [Answer(200, delay=60)],
        ServicePolicy(retry=AT_ONCE, timeouts=TimeoutPolicy(timeout=5, attempt_timeout=2)),
    )
    started = bench.clock.now()
    with pytest.raises(DeadlineExceededError) as caught:
        await run_with_time(bench, bench.call(), 10.0)
    assert [call.at - started for call in bench.wire.calls] == pytest.approx([0.0, 2.0, 4.0])
    assert caught.value.attempts == 3


@pytest.mark.spec("X-04")
async def test_retries_stop_when_the_budget_is_used_up() -> None:
    bench = rig([503], budget_ratio=0.0, budget_min_per_second=0.1)
    for _ in range(5):
        await bench.call()
    assert len(bench.wire.calls) == 6  # one retry in ten seconds, and no more
    assert len(bench.seen(BudgetExhausted)) == 5


@pytest.mark.spec("X-04")
def test_the_budget_refills_over_ten_seconds() -> None:
    clock = FakeClock()
    budget = RetryBudget(0.2, 0.0, clock=clock)
    assert not budget.withdraw()
    for _ in range(10):
        budget.deposit()
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    clock._now += 11
    assert not budget.withdraw()
    for _ in range(5):
        budget.deposit()
    assert budget.withdraw()


@pytest.mark.spec("X-04")
def test_the_reserve_of_the_budget_is_there_from_the_start() -> None:
    budget = RetryBudget(0.2, 10.0, clock=FakeClock())
    assert sum(budget.withdraw() for _ in range(200)) == 100


async def run_with_time(bench: Rig, call, seconds: float):
    """Run a call while the fake clock goes on."""
    import anyio

    outcome = []

    async def run() -> None:
        try:
            outcome.append(await call)
        except Exception as error:
            outcome.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await bench.clock.advance(seconds)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


@pytest.mark.spec("X-04", "A6")
async def test_an_answer_that_a_mesh_further_on_has_given_up_on_is_not_repeated_nor_counted() -> None:
    answer = Answer(502, headers=[(b"x-mesh-reason", b"connection-failed")])
    bench = Rig([answer], ServicePolicy(retry=AT_ONCE))
    for _ in range(20):
        assert (await bench.call()).status == 502
    assert len(bench.wire.calls) == 20
    assert bench.state.breaker.state == "closed"
    assert [each.ejections for each in bench.states] == [0, 0, 0]
