"""The Supervisor keeps loops going and ends them; Live and the clock do what others rely on."""

import asyncio
import itertools

import pytest

from fastapi_mesh.core.context import generate_request_id
from fastapi_mesh.core.events import LoopFailed
from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.testing import FakeClock

pytestmark = pytest.mark.anyio


async def test_a_failing_loop_is_backed_off_and_started_again(fake_clock: FakeClock) -> None:
    events: list[object] = []
    supervisor = Supervisor(clock=fake_clock, observer=events.append)
    runs: list[float] = []

    async def work() -> None:
        runs.append(fake_clock.now())
        raise OSError("registry is away")

    supervisor.keep(work, name="watch")
    await fake_clock.advance(60)
    pauses = [later - earlier for earlier, later in itertools.pairwise(runs)]
    assert 0.05 <= pauses[0] <= 0.1
    assert pauses[2] > pauses[0]
    assert all(5.0 <= pause <= 10.0 for pause in pauses[-2:]), "capped at 10 s, so it is back soon after the registry"
    assert supervisor.degraded == {"watch": "OSError: registry is away"}
    assert isinstance(events[0], LoopFailed)
    await supervisor.aclose()


async def test_a_loop_that_recovers_is_no_longer_degraded_and_backs_off_anew(fake_clock: FakeClock) -> None:
    supervisor = Supervisor(clock=fake_clock)
    runs: list[float] = []

    async def work() -> None:
        runs.append(fake_clock.now())
        if len(runs) == 5:
            supervisor.recovered("watch")
        raise OSError("again")

    supervisor.keep(work, name="watch")
    await fake_clock.advance(2.0)
    assert len(runs) >= 6
    assert runs[5] - runs[4] <= 0.1
    await supervisor.aclose()


async def test_a_kept_loop_that_returns_is_over(fake_clock: FakeClock) -> None:
    supervisor = Supervisor(clock=fake_clock)

    async def work() -> None:
        return

    await supervisor.keep(work, name="once")
    assert supervisor.statistics() == {"tasks": 0, "degraded": 0}


async def test_closing_cancels_and_waits_and_refuses_more() -> None:
    supervisor = Supervisor()
    ended = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    supervisor.start(forever(), name="forever")
    await asyncio.sleep(0)
    await supervisor.aclose()
    assert ended == [True]
    with pytest.raises(RuntimeError, match="closed"):
        supervisor.start(forever(), name="late")
    supervisor.reopen()
    supervisor.start(forever(), name="again")
    await supervisor.aclose()


async def test_a_failed_task_is_logged_and_does_not_take_others_with_it(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor()

    async def bad() -> None:
        raise ValueError("oops")

    task = supervisor.start(bad(), name="bad")
    await asyncio.wait((task,))
    assert "bad ended with ValueError: oops" in caplog.text
    await supervisor.aclose()


async def test_live_wakes_those_who_wait_for_the_first_value() -> None:
    live: Live[tuple[int, ...]] = Live()
    heard: list[tuple[int, ...]] = []
    unsubscribe = live.subscribe(heard.append)
    waiting = [asyncio.ensure_future(live.wait_first()) for _ in range(3)]  # noqa: TID251 - the test's own tasks
    await asyncio.sleep(0)
    live.publish((1,))
    assert await asyncio.gather(*waiting) == [(1,)] * 3
    unsubscribe()
    unsubscribe()
    live.publish((2,))
    assert heard == [(1,)]
    assert live.value == (2,)
    assert live.version == 2


async def test_a_cancelled_waiter_of_live_leaves_nothing() -> None:
    live: Live[int] = Live()
    waiting = asyncio.ensure_future(live.wait_first())  # noqa: TID251 - the test's own task
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert live._waiters == []


async def test_the_fake_clock_runs_timers_in_order_and_skips_cancelled_ones(fake_clock: FakeClock) -> None:
    seen: list[str] = []
    fake_clock.call_later(2.0, lambda: seen.append("b"))
    fake_clock.call_later(1.0, lambda: seen.append("a"))
    fake_clock.call_later(1.5, lambda: seen.append("never")).cancel()
    await fake_clock.advance(1.0)
    assert seen == ["a"]
    await fake_clock.advance(1.0)
    assert seen == ["a", "b"]


def test_request_ids_are_uuid7_and_sort_by_time() -> None:
    import time
    import uuid

    first = generate_request_id()
    time.sleep(0.002)
    second = generate_request_id()
    assert uuid.UUID(first).version == 7
    assert uuid.UUID(first).variant == uuid.RFC_4122
    assert first < second


@pytest.mark.parametrize(
    ("scheme", "address", "port", "authority"),
    [
        ("http", "127.0.0.1", 8000, b"127.0.0.1:8000"),
        ("http", "example", 80, b"example"),
        ("https", "example", 443, b"example"),
        ("https", "example", 80, b"example:80"),
        ("http", "::1", 8000, b"[::1]:8000"),
    ],
)
def test_the_authority_of_an_instance(scheme: str, address: str, port: int, authority: bytes) -> None:
    assert Instance("s", "s-1", address, port, scheme=scheme).authority == authority  # type: ignore[arg-type]
