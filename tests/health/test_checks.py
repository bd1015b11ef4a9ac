"""Health checks: what they may return, how they run, and what is seen of them."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import re
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.health.checks import HealthChecks, judge
from fastapi_mesh.testing.clock import FakeClock
from tests.support.process import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def checks(**settings: object) -> AsyncIterator[HealthChecks]:
    health = HealthChecks(**settings)  # type: ignore[arg-type] # passes each test's own settings on
    try:
        yield health
    finally:
        await health.aclose()


@pytest.mark.spec("S-111", "B20")
async def test_the_description_s_mix_of_bools_and_words_becomes_pass_and_fail_beside_what_was_returned():
    async with checks() as health:

        @health.register
        async def health_check() -> dict[str, object]:
            return {"status": "unhealthy", "checks": {"db": False, "cache": "ok"}}

        report = await health.report()

    assert (report.status, report.http_status) == ("unhealthy", 503)
    assert report.checks == {"db": "fail", "cache": "pass"}
    assert report.details == {"health_check": {"status": "unhealthy", "checks": {"db": False, "cache": "ok"}}}


@pytest.mark.parametrize(
    ("returned", "healthy"),
    [
        (None, True),
        (True, True),
        (False, False),
        ("OK", True),
        ("pass", True),
        ("warn", True),
        ("down", False),
        ("", False),
        ({"status": "healthy"}, True),
        ({"status": True, "checks": {"spare": False}}, True),
        ({"checks": {"db": True, "cache": "fail"}}, False),
        ({"db": True, "cache": {"status": "ok", "latency": 0.1}}, True),
        ({"db": True, "cache": {"status": "down"}}, False),
        ({"status": "healthy", "checks": ["db"]}, True),
        (1, True),
        (0, False),
    ],
)
async def test_every_shape_of_answer_is_understood(returned, healthy):
    assert judge(returned).healthy is healthy


@pytest.mark.spec("X-03")
@pytest.mark.parametrize(
    ("returned", "status"),
    [
        ("degraded", "degraded"),
        (" Warn ", "degraded"),
        ({"status": "degraded"}, "degraded"),
        ({"status": "degraded", "checks": {"db": "ok", "cache": "warn"}}, "degraded"),
        ({"checks": {"db": "ok", "cache": "warn"}}, "degraded"),
        ({"db": {"status": "warn"}}, "degraded"),
        ({"status": "healthy", "checks": {"cache": "warn"}}, "healthy"),
        ({"db": "warn", "cache": False}, "unhealthy"),
        ("ok", "healthy"),
    ],
)
async def test_a_check_that_says_degraded_passes_and_makes_the_report_degraded(returned: object, status: str) -> None:
    async with checks() as health:
        health.register(lambda: returned, name="one")
        health.register(lambda: True, name="two")
        report = await health.report()

    assert report.status == status
    assert (report.http_status, report.healthy) == ((503, False) if status == "unhealthy" else (200, True))
    assert report.checks["two"] == "pass"
    assert report.also_failing("drain", "draining").status == "unhealthy"
    assert report.noting({"a": 1}).status == status


async def test_without_checks_the_report_is_healthy_and_its_time_is_rfc_3339_in_utc():
    report = await HealthChecks().report()

    assert report.as_dict() == {"status": "healthy", "checks": {}, "timestamp": report.timestamp}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", report.timestamp)


async def test_an_error_shows_its_type_only_and_is_logged_once_until_it_passes_again(caplog):
    working = False

    def database() -> None:
        if not working:
            raise ConnectionError("no route to 10.1.2.3 as admin:secret")

    caplog.set_level(logging.WARNING)
    async with checks(cache=0.0) as health:
        health.register(database)
        report = await health.report()
        await health.report()
        assert report.checks == {"database": "fail"}
        assert b"secret" not in report.as_json()
        assert json.loads(report.as_json())["details"] == {"database": {"error": "ConnectionError"}}
        assert len(caplog.records) == 1
        assert health.statistics() == {"checks": 1, "failing": 1}

        working = True
        assert (await health.report()).healthy
        working = False
        await health.report()
        assert len(caplog.records) == 2


async def test_checks_run_at_the_same_time_sync_ones_in_threads():
    loop_thread = threading.get_ident()
    barrier = threading.Barrier(2, timeout=10)
    met = asyncio.Event()

    def one() -> bool:
        barrier.wait()
        return threading.get_ident() != loop_thread

    def two() -> bool:
        barrier.wait()
        return True

    async def three() -> bool:
        await met.wait()
        return True

    async def four() -> bool:
        met.set()
        return threading.get_ident() == loop_thread

    async with checks() as health:
        for check in (one, two, three, four):
            health.register(check)
        report = await health.report()

    assert report.checks == {"one": "pass", "two": "pass", "three": "pass", "four": "pass"}


async def test_each_check_has_its_own_timeout_and_a_slow_one_does_not_hide_the_others():
    clock = FakeClock()
    never = asyncio.Event()
    cancelled = []

    async def slow() -> None:
        try:
            await never.wait()
        except asyncio.CancelledError:
            cancelled.append("slow")
            raise

    async with checks(clock=clock) as health:
        health.register(slow, timeout=0.5)
        health.register(lambda: True, name="quick")
        waiting = asyncio.ensure_future(health.report())  # noqa: TID251 - the test is the caller
        await clock.advance(0.4)
        assert not waiting.done()
        await clock.advance(0.2)
        report = await waiting

    assert report.checks == {"slow": "fail", "quick": "pass"}
    assert report.details == {"slow": {"error": "TimeoutError"}}
    assert cancelled == ["slow"]


async def test_a_sync_check_that_hangs_is_not_started_again_until_it_has_ended():
    clock = FakeClock()
    release = threading.Event()
    started = []

    def hangs() -> bool:
        started.append(1)
        release.wait(10)
        return True

    async def has_ended() -> bool:
        running = health._checks["hangs"].running
        return running is None or running.done()

    async with checks(clock=clock, cache=0.0) as health:
        health.register(hangs)
        for _ in range(3):
            waiting = asyncio.ensure_future(health.report())  # noqa: TID251 - the test is the caller
            await clock.advance(2.1)
            assert not (await waiting).healthy
        assert len(started) == 1

        release.set()
        await until(has_ended, "the thread has ended")
        assert (await health.report()).healthy
        assert len(started) == 2


async def test_callers_share_a_run_and_a_young_report_is_reused_for_a_second():
    clock = FakeClock()
    gate = asyncio.Event()
    runs = []

    async def counted() -> bool:
        runs.append(1)
        await gate.wait()
        return True

    async with checks(clock=clock) as health:
        health.register(counted)
        callers = [asyncio.ensure_future(health.report()) for _ in range(10)]  # noqa: TID251 - the test is the caller
        await clock.advance(0)
        callers[0].cancel()  # the one that began the run goes away: the others must not notice
        gate.set()
        reports = await asyncio.gather(*callers[1:])
        assert len({id(report) for report in reports}) == 1

        await clock.advance(0.9)
        assert await health.report() is reports[0]
        assert len(runs) == 1
        await clock.advance(0.2)
        assert await health.report() is not reports[0]
        assert len(runs) == 2


async def test_a_check_registered_later_is_in_the_next_report_although_the_last_is_young():
    async with checks() as health:
        health.register(lambda: True, name="first")
        await health.report()
        health.register(lambda: False, name="second")
        assert (await health.report()).checks == {"first": "pass", "second": "fail"}


async def test_the_same_part_of_two_checks_keeps_both():
    async with checks() as health:
        health.register(lambda: {"db": True}, name="reads")
        health.register(lambda: {"db": False}, name="writes")
        assert (await health.report()).checks == {"db": "pass", "writes.db": "fail"}


async def test_two_functions_of_one_name_are_refused_with_the_way_out():
    health = HealthChecks()
    health.register(len, name="db")  # type: ignore[type-var] # never called
    with pytest.raises(ConfigurationError, match=r"two health checks are called 'db'.*name="):
        health.register(print, name="db")


async def test_liveness_runs_no_check():
    health = HealthChecks()
    health.register(lambda: 1 / 0, name="explodes")
    assert health.live().healthy
    assert health.live().checks == {}


async def test_a_sync_function_that_returns_a_coroutine_is_awaited():
    async def inner() -> bool:
        return False

    async with checks() as health:
        health.register(functools.partial(lambda call: call(), inner), name="wrapped")
        assert not (await health.report()).healthy


async def test_closing_ends_a_running_check_and_answers_who_waits():
    async with checks() as health:
        health.register(asyncio.Event().wait, name="endless")
        waiting = asyncio.ensure_future(health.report())  # noqa: TID251 - the test is the caller
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await health.aclose()
        assert not (await waiting).healthy


def test_reports_of_one_loop_do_not_disturb_those_of_another():
    health = HealthChecks(cache=0.0)
    health.register(lambda: True, name="db")
    assert all(asyncio.run(health.report()).healthy for _ in range(3))
