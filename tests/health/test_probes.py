"""Active probes: when an instance is asked, what its answers make of it, and what calls make of that."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random

import pytest

from fastapi_mesh.balancing import new_picker
from fastapi_mesh.config.policies import BalancingPolicy, OutlierPolicy, RetryPolicy, ServicePolicy
from fastapi_mesh.config.probes import ProbePolicy
from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.core.context import Inbound, current_inbound
from fastapi_mesh.core.events import (
    CircuitChanged,
    Event,
    InstanceEjected,
    InstanceHealthChanged,
    InstanceProbed,
    InstancesProbed,
)
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.message import Request, Response
from fastapi_mesh.core.state import ServiceState
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.health.probe import FIRST_WITHIN, JITTER, MOST_AT_ONCE, Probes
from fastapi_mesh.health.verdict import Row, read
from fastapi_mesh.testing.fake_mesh import FakeMesh
from fastapi_mesh.testing.wire import Answer, broken, refused
from tests.health.probe_support import rig, user

pytestmark = pytest.mark.anyio

JSON = [(b"content-type", b"application/json")]


@pytest.mark.spec("X-03")
async def test_a_probe_is_a_get_of_the_path_soon_after_an_instance_appears() -> None:
    async with rig(user(1)) as bench:
        await bench.use()
        await bench.clock.advance(FIRST_WITHIN)
        (call,) = bench.probed()
        assert (call.method, call.target, call.body) == ("GET", "/health", b"")
        assert await bench.health() == {"users-1": "healthy"}

        bench.listed.set(user(1), user(2))
        await bench.clock.advance(FIRST_WITHIN)
        assert [call.instance for call in bench.probed()] == ["users-1", "users-2"]


@pytest.mark.spec("S-015", "X-03")
async def test_probes_come_every_interval_with_jitter_and_not_in_step() -> None:
    async with rig(*(user(n) for n in range(1, 9)), policy=ProbePolicy(path="/health", interval=30.0)) as bench:
        await bench.use()
        for _ in range(60):
            await bench.clock.advance(10.0)
            await bench.use()
        pauses = []
        for number in range(1, 9):
            times = bench.times(f"users-{number}")
            pauses += [later - earlier for earlier, later in itertools.pairwise(times)]

    assert len(pauses) > 8 * 15
    assert min(pauses) >= 30.0 * (1 - JITTER) - 1e-6
    assert max(pauses) <= 30.0 * (1 + JITTER) + 1e-6
    assert abs(sum(pauses) / len(pauses) - 30.0) < 1.5
    last = [bench.times(f"users-{n}")[-1] for n in range(1, 9)]
    assert max(last) - min(last) > 5.0, "instances that appeared together drift apart"


@pytest.mark.spec("X-03")
async def test_an_instance_falls_after_three_failures_in_a_row_and_rises_after_one_success() -> None:
    async with rig(user(1), user(2)) as bench:
        await bench.use()
        await bench.clock.advance(2.0)
        bench.answers["users-2"] = 503
        await bench.until_probed(2 * 3)
        assert await bench.health() == {"users-1": "healthy", "users-2": "healthy"}, "two failures are not three"
        assert set(await bench.call(4)) == {"users-1", "users-2"}

        while (await bench.health())["users-2"] == "healthy":
            await bench.clock.advance(1.0)
        probes = [each for each in bench.seen(InstanceProbed) if each.instance == "users-2"]
        assert [each.result for each in probes] == ["healthy", "failed", "failed", "failed"]
        assert set(await bench.call(6)) == {"users-1"}
        assert ("users-2", "its health is unhealthy") in bench.mesh.records[-1].skipped or set(bench.called()[-6:]) == {
            "users-1"
        }

        bench.answers["users-2"] = 204
        while (await bench.health())["users-2"] == "unhealthy":
            await bench.clock.advance(1.0)
        assert set(await bench.call(4)) == {"users-1", "users-2"}

    changes = [(each.before, each.after) for each in bench.seen(InstanceHealthChanged) if each.instance == "users-2"]
    assert changes == [("unknown", "healthy"), ("healthy", "unhealthy"), ("unhealthy", "healthy")]


@pytest.mark.spec("X-03")
def test_fall_and_rise_count_in_a_row_from_any_state() -> None:
    policy = ProbePolicy(path="/health", fall=3, rise=2)

    def after(results: str, verdict: str = "unknown") -> str:
        row, words = Row(), {"h": "healthy", "d": "degraded", "f": "failed"}
        for letter in results:
            verdict = row.add(words[letter], verdict, policy)  # type: ignore[arg-type]
        return verdict

    assert [after(each) for each in ("", "h", "hh", "hd", "f", "ff", "fff")] == [
        "unknown",
        "unknown",
        "healthy",
        "degraded",
        "unknown",
        "unknown",
        "unhealthy",
    ]
    assert [after(each, "healthy") for each in ("ff", "ffhff", "fff", "fffh", "fffhfh", "fffhh", "d", "dh")] == [
        "healthy",
        "healthy",
        "unhealthy",
        "unhealthy",
        "unhealthy",
        "healthy",
        "degraded",
        "healthy",
    ]


def test_any_row_of_results_obeys_fall_and_rise() -> None:
    source = random.Random(3)
    for _ in range(200):
        policy = ProbePolicy(path="/", fall=source.randint(1, 4), rise=source.randint(1, 4))
        row, verdict, history = Row(), "unknown", []
        for _ in range(40):
            history.append(source.choice(["healthy", "degraded", "failed", "failed"]))
            before, verdict = verdict, row.add(history[-1], verdict, policy)  # type: ignore[arg-type]
            if verdict == "unhealthy" != before:
                assert history[-policy.fall :] == ["failed"] * policy.fall
            if before == "unhealthy" != verdict:
                assert len(history) >= policy.rise
                assert "failed" not in history[-policy.rise :]


@pytest.mark.spec("X-03")
@pytest.mark.parametrize(
    ("status", "kind", "body", "result"),
    [
        (200, b"text/plain", b"ok", "healthy"),
        (204, None, b"", "healthy"),
        (302, None, b"", "healthy"),
        (399, None, b"", "healthy"),
        (400, None, b"", "failed"),
        (404, None, b"", "failed"),
        (429, None, b"", "failed"),
        (503, b"application/json", b'{"status": "healthy"}', "failed"),
        (100, None, b"", "failed"),
        (200, b"application/json", b'{"status": "healthy"}', "healthy"),
        (200, b"application/json", b'{"status": "degraded"}', "degraded"),
        (200, b"Application/Health+JSON; charset=utf-8", b'{"status": " Warn "}', "degraded"),
        (200, b"application/json", b'{"status": "UNHEALTHY"}', "failed"),
        (200, b"application/json", b'{"status": "OUT_OF_SERVICE"}', "failed"),
        (200, b"application/json", b'{"status": "UP"}', "healthy"),
        (200, b"application/json", b'{"status": ["fail"]}', "healthy"),
        (200, b"application/json", b'["fail"]', "healthy"),
        (200, b"application/json", b"{broken", "healthy"),
        (200, b"application/json", b"[" * 60_000, "healthy"),
        (200, b"application/json", b"\xff\xfe", "healthy"),
        (200, b"text/html", b'{"status": "degraded"}', "healthy"),
        (200, None, b'{"status": "degraded"}', "healthy"),
    ],
)
def test_what_an_answer_says(status: int, kind: bytes | None, body: bytes, result: str) -> None:
    assert read(status, kind, body).result == result


@pytest.mark.spec("X-03")
async def test_a_degraded_instance_gets_half_its_share() -> None:
    async with rig(user(1), user(2), answers={"users-2": Answer(200, b'{"status": "degraded"}', JSON)}) as bench:
        await bench.use()
        await bench.clock.advance(2.0)
        assert await bench.health() == {"users-1": "healthy", "users-2": "degraded"}
        assert sorted(await bench.call(9)) == ["users-1"] * 6 + ["users-2"] * 3

        bench.answers["users-2"] = Answer(200, b'{"status": "healthy"}', JSON)
        await bench.until_probed(4)
        assert sorted(await bench.call(8)) == ["users-1"] * 4 + ["users-2"] * 4


@pytest.mark.spec("X-03")
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (refused(), "GET /health: connection-failed: scripted refusal"),
        (broken(), "GET /health: connection-failed: scripted reset"),
        (Answer(200, delay=3600.0), "GET /health: it gave no answer within 5 s"),
        (500, "GET /health: it answered 500"),
        (Answer(200, b'{"status": "down"}', JSON), "GET /health: it answered 200 and says that it is 'down'"),
    ],
)
async def test_every_way_to_fail_is_a_failure_and_says_why(answer: object, why: str) -> None:
    async with rig(user(1), answers={"users-1": answer}) as bench:  # type: ignore[dict-item]
        await bench.use()
        await bench.until_probed(3)
        await bench.clock.advance(6.0)
        assert await bench.health() == {"users-1": "unhealthy"}
        (change,) = bench.seen(InstanceHealthChanged)
        assert (change.service, change.instance, change.after, change.why) == ("users", "users-1", "unhealthy", why)


async def test_a_mistake_in_a_wire_is_a_failed_probe_and_does_not_end_the_probing(caplog) -> None:  # type: ignore[no-untyped-def]
    async with rig(user(1), answers={"users-1": ZeroDivisionError("a mistake")}) as bench:
        await bench.use()
        await bench.until_probed(3)
        await bench.clock.advance(1.0)
        assert await bench.health() == {"users-1": "unhealthy"}
        bench.answers.clear()
        await bench.until_probed(4)
        assert await bench.health() == {"users-1": "healthy"}
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.spec("X-03", "X-02")
async def test_when_probes_fail_everywhere_all_instances_are_used() -> None:
    async with rig(user(1), user(2), answers={"users-1": 503, "users-2": 503}) as bench:
        await bench.use()
        await bench.until_probed(2 * 3)
        await bench.clock.advance(1.0)
        assert set((await bench.health()).values()) == {"unhealthy"}
        assert set(await bench.call(4)) == {"users-1", "users-2"}


@pytest.mark.spec("X-03")
async def test_nothing_of_a_probe_counts_for_calls() -> None:
    outlier = OutlierPolicy(consecutive_failures=1)
    async with rig(user(1), user(2), answers={"users-1": broken()}, outlier=outlier) as bench:
        states = await bench.use()
        await bench.until_probed(2 * 5)
        breaker = bench.mesh.breaker_of("users")
        assert breaker is not None
        assert breaker.state == "closed"
        assert [each.in_flight for each in states.values()] == [0, 0]
        assert bench.seen(InstanceEjected) == bench.seen(CircuitChanged) == []
        assert (await bench.mesh.get_metrics()).total_calls == 0
        assert len(bench.mesh.records) == 0


@pytest.mark.spec("X-03")
async def test_what_is_ejected_gets_no_trial_call_while_probes_say_that_it_is_down() -> None:
    failing = ["users-2"]
    at_once = RetryPolicy(base_delay=0.0)
    once = OutlierPolicy(consecutive_failures=1)
    async with rig(user(1), user(2), outlier=once, circuit_breaker=None, retry=at_once) as bench:
        script = bench.wire._script
        bench.wire._script = lambda request: (
            broken() if request.context.instance.instance.id in failing else script(request)
        )
        await bench.use()
        await bench.call(4)
        assert [each.instance for each in bench.seen(InstanceEjected)] == ["users-2"]
        await bench.until_probed(2 * 4)
        assert (await bench.use())["users-2"].verdict == "unhealthy"
        await bench.clock.advance(300.0)
        assert set(await bench.call(6)) == {"users-1"}

        failing.clear()
        while (await bench.use())["users-2"].verdict == "unhealthy":
            await bench.clock.advance(1.0)
        assert set(await bench.call(6)) == {"users-1", "users-2"}


@pytest.mark.spec("X-03")
@pytest.mark.parametrize(
    ("registered", "probed", "seen"),
    [
        ("healthy", 200, "healthy"),
        ("unknown", 200, "healthy"),
        ("degraded", 200, "degraded"),
        ("unhealthy", 200, "unhealthy"),
        ("healthy", 503, "unhealthy"),
        ("unknown", 503, "unhealthy"),
        ("healthy", Answer(200, b'{"status":"degraded"}', JSON), "degraded"),
        ("unhealthy", Answer(200, b'{"status":"degraded"}', JSON), "unhealthy"),
    ],
)
async def test_of_registry_and_probes_the_worse_word_counts(registered: str, probed: object, seen: str) -> None:
    async with rig(user(1, health=registered), user(2), answers={"users-1": probed}) as bench:  # type: ignore[dict-item]
        await bench.use()
        await bench.until_probed(2 * 3 + 1)
        assert (await bench.health())["users-1"] == seen


@pytest.mark.spec("X-03", "S-014")
async def test_only_where_a_path_is_set_something_is_probed() -> None:
    async with rig(user(1, health_check="/health"), policy=None) as bench:
        await bench.use()
        await bench.clock.advance(100.0)
        assert bench.probed() == []
        assert bench.mesh.probes.statistics()["instances"] == 0


@pytest.mark.spec("X-03")
async def test_registered_paths_are_used_where_the_policy_asks_for_them() -> None:
    registered = user(1, health_check="/ready"), user(2), user(3, health_check="http://elsewhere/health")
    async with rig(*registered, policy=ProbePolicy()) as bench:
        await bench.use()
        await bench.clock.advance(2.0)
        assert [(call.instance, call.target) for call in bench.probed()] == [("users-1", "/ready")]

        bench.listed.set(user(1, health_check="/alive"), user(2, health_check="/ready"))
        await bench.clock.advance(2.0)
        assert sorted((call.instance, call.target) for call in bench.probed()[1:]) == [
            ("users-1", "/alive"),
            ("users-2", "/ready"),
        ]


async def test_an_instance_that_takes_its_path_back_has_no_verdict_any_more() -> None:
    both = user(1, health_check="/ready"), user(2, health_check="/ready")
    async with rig(*both, policy=ProbePolicy(), answers={"users-1": 503}) as bench:
        await bench.use()
        await bench.until_probed(2 * 3)
        await bench.clock.advance(1.0)
        assert await bench.health() == {"users-1": "unhealthy", "users-2": "healthy"}
        bench.listed.set(user(1), both[1])
        await bench.clock.advance(100.0)
        assert await bench.health() == {"users-1": "healthy", "users-2": "healthy"}
        assert (await bench.use())["users-1"].verdict == "unknown"


@pytest.mark.spec("S-015")
async def test_the_interval_is_from_start_to_start_however_long_an_answer_takes() -> None:
    answers = {"users-1": Answer(200, delay=4.5)}
    async with rig(user(1), policy=ProbePolicy(path="/health", interval=10.0), answers=answers) as bench:  # type: ignore[arg-type]
        await bench.use()
        await bench.until_probed(12)
        pauses = [later - earlier for earlier, later in itertools.pairwise(bench.times())]
        assert all(8.0 <= pause <= 12.0 for pause in pauses), pauses


@pytest.mark.spec("S-121", "B22")
async def test_with_health_check_required_only_vouched_instances_are_used() -> None:
    waiting = user(2, health="unknown")
    async with rig(user(1), waiting, required=True, answers={"users-2": 503}) as bench:
        await bench.use()
        assert set(await bench.call(4)) == {"users-1"}, "its registration says that it is healthy"
        assert bench.mesh.records[-1].skipped == () or bench.mesh.records[-1].skipped[0][1] == "its health is unknown"
        await bench.clock.advance(2.0)
        assert set(await bench.call(4)) == {"users-1"}, "a failed probe says nothing good"

        bench.answers.clear()
        await bench.until_probed(4)
        assert set(await bench.call(4)) == {"users-1", "users-2"}


@pytest.mark.spec("S-121", "B22")
async def test_health_check_required_does_not_leave_a_service_without_instances() -> None:
    unknown = [user(1, health="unknown"), user(2, health="unknown"), user(3, health="unhealthy")]
    async with rig(*unknown, policy=None, required=True) as bench:
        await bench.use()
        assert set(await bench.call(6)) == {"users-1", "users-2"}, "unknown is better than unhealthy"
        bench.listed.set(unknown[2])
        await bench.clock.advance(0.0)
        assert await bench.call(2) == ["users-3", "users-3"]


@pytest.mark.spec("S-121", "B22")
async def test_health_check_required_can_be_switched_live() -> None:
    async with rig(user(1), user(2, health="unknown"), policy=None) as bench:
        await bench.use()
        assert set(await bench.call(4)) == {"users-1", "users-2"}
        bench.mesh.configure_load_balancing({"users": {"health_check_required": True}})
        assert set(await bench.call(4)) == {"users-1"}
        bench.mesh.configure_load_balancing({"users": {"strategy": "least_connections"}})
        await bench.call(40)
        assert set(bench.called()[-40:]) == {"users-1", "users-2"}


@pytest.mark.spec("X-03")
async def test_an_unused_service_is_probed_no_more_and_again_when_it_is_used() -> None:
    async with rig(user(1)) as bench:
        await bench.use()
        await bench.clock.advance(601.0)
        ended = len(bench.probed())
        assert ended > 15
        assert bench.mesh.probes.statistics()["instances"] == 0
        assert bench.seen(InstancesProbed)[-1].counts == {}
        await bench.clock.advance(600.0)
        assert len(bench.probed()) == ended

        assert (await bench.use())["users-1"].verdict == "unknown"
        await bench.clock.advance(FIRST_WITHIN)
        assert len(bench.probed()) == ended + 1


async def test_a_first_good_word_that_changes_no_call_costs_none_of_them_anything() -> None:
    async with rig(user(1), user(2)) as bench:
        await bench.use()
        candidates = bench.mesh.states.get("users").candidates
        await bench.clock.advance(FIRST_WITHIN)
        assert set((await bench.health()).values()) == {"healthy"}
        assert bench.mesh.states.get("users").candidates is candidates


async def test_a_fake_mesh_is_well_unless_the_test_says_otherwise() -> None:
    policy = ServicePolicy(health_check=ProbePolicy(path="/health", fall=1))
    fake = FakeMesh(policies={"users": policy, "orders": policy}, real_waits=True)
    fake.service("users", instances=1)
    fake.service("orders", instances=1).get("/health").fails(503)
    async with fake:
        for name in ("users", "orders"):
            await fake.discover_services(name)
        await fake.fake_clock.advance(FIRST_WITHIN)
        health = [(await fake.discover_services(name))[0].health for name in ("users", "orders")]
    assert health == ["healthy", "unhealthy"]
    assert [(call.service, call.target) for call in fake.calls] == [("orders", "/health")]


async def test_a_verdict_ends_with_the_probes_that_made_it() -> None:
    async with rig(user(1), user(2), answers={"users-1": 503}) as bench:
        states = await bench.use()
        await bench.until_probed(2 * 3)
        await bench.clock.advance(1.0)
        assert states["users-1"].verdict == "unhealthy"
        bench.mesh.policies.change("users", health_check=None)
        assert [each.verdict for each in states.values()] == ["unknown", "unknown"]
        assert set(await bench.call(4)) == {"users-1", "users-2"}
        seen = len(bench.probed())
        await bench.clock.advance(300.0)
        assert len(bench.probed()) == seen


@pytest.mark.spec("X-03")
async def test_a_changed_interval_counts_at_once_and_keeps_what_is_known() -> None:
    async with rig(user(1), user(2), answers={"users-1": 503}) as bench:
        states = await bench.use()
        await bench.until_probed(2 * 2)
        await bench.clock.advance(1.0)
        bench.mesh.policies.change("users", health_check={"interval": 2.0})
        await bench.clock.advance(1.0)
        assert states["users-1"].verdict == "unhealthy", "the third failure in a row, of which two came before"
        before = len(bench.probed())
        await bench.clock.advance(20.0)
        assert 2 * 8 <= len(bench.probed()) - before <= 2 * 13


@pytest.mark.spec("X-03")
async def test_a_changed_path_is_asked_at_once_and_its_row_begins_anew() -> None:
    async with rig(user(1), answers={"users-1": 503}) as bench:
        states = await bench.use()
        await bench.until_probed(2)
        await bench.clock.advance(1.0)
        bench.mesh.policies.change("users", health_check={"path": "/ready"})
        await bench.clock.advance(FIRST_WITHIN)
        assert [call.target for call in bench.probed()] == ["/health", "/health", "/ready"]
        assert states["users-1"].verdict == "unknown"
        await bench.until_probed(5)
        await bench.clock.advance(1.0)
        assert states["users-1"].verdict == "unhealthy"


async def test_a_changed_path_ends_the_probe_of_the_old_one() -> None:
    async with rig(user(1), answers={"users-1": Answer(200, delay=4.0)}) as bench:
        await bench.use()
        await bench.until_probed(1, step=0.5)
        assert bench.wire.in_flight == 1
        bench.answers["users-1"] = 200
        bench.mesh.policies.change("users", health_check={"path": "/ready"})
        await bench.clock.advance(FIRST_WITHIN)
        assert bench.wire.in_flight == 0
        assert [each.result for each in bench.seen(InstanceProbed)] == ["healthy"]


@pytest.mark.spec("X-03")
async def test_an_instance_that_vanishes_while_it_is_probed_leaves_nothing() -> None:
    async with rig(user(1), user(2), answers={"users-2": Answer(503, delay=4.0)}) as bench:
        await bench.use()
        await bench.clock.advance(FIRST_WITHIN)
        assert bench.wire.in_flight == 1
        bench.listed.set(user(1))
        await bench.clock.advance(0.0)
        assert bench.wire.in_flight == 0
        assert bench.mesh.probes.statistics() == {"services": 1, "instances": 1, "running": 0, "waiting": 0}
        await bench.clock.advance(100.0)
        assert {each.instance for each in bench.seen(InstanceProbed)} == {"users-1"}
        assert bench.seen(InstancesProbed)[-1].counts == {"healthy": 1}


async def test_a_restarted_instance_begins_anew() -> None:
    async with rig(user(1, metadata={"started": "1"}), user(2), answers={"users-1": 503}) as bench:
        await bench.use()
        await bench.until_probed(2 * 3)
        await bench.clock.advance(1.0)
        assert (await bench.health())["users-1"] == "unhealthy"
        bench.answers.clear()
        bench.listed.set(user(1, metadata={"started": "2"}), user(2))
        await bench.clock.advance(0.0)
        assert (await bench.use())["users-1"].verdict == "unknown"
        await bench.clock.advance(FIRST_WITHIN)
        assert (await bench.use())["users-1"].verdict == "healthy"


@pytest.mark.spec("X-03")
async def test_an_instance_that_hangs_costs_one_probe_at_a_time_and_does_not_hold_up_others() -> None:
    async with rig(
        user(1), user(2), policy=ProbePolicy(path="/health", interval=1.0), answers={"users-1": Answer(200, delay=1e9)}
    ) as bench:
        await bench.use()
        for _ in range(20):
            await bench.clock.advance(1.0)
            assert bench.wire.in_flight <= 1
        assert await bench.health() == {"users-1": "unhealthy", "users-2": "healthy"}
        assert len(bench.times("users-2")) > 14
    assert bench.wire.in_flight == 0


@pytest.mark.spec("X-03")
async def test_a_thousand_instances_are_probed_a_few_at_a_time() -> None:
    most = 0
    instances = [user(n) for n in range(1, 1001)]
    async with rig(*instances, answers={f"users-{n}": Answer(200, delay=0.25) for n in range(1, 1001)}) as bench:
        await bench.use()
        for _ in range(60):
            await bench.clock.advance(0.1)
            most = max(most, bench.wire.in_flight)
        assert most == MOST_AT_ONCE
        assert len({call.instance for call in bench.probed()}) == 1000
        assert bench.mesh.probes.statistics() == {"services": 1, "instances": 1000, "running": 0, "waiting": 0}
        assert bench.seen(InstancesProbed)[-1].counts == {"healthy": 1000}
        before = len(bench.probed())

        bench.listed.set(*instances[:10])
        await bench.clock.advance(60.0)
        assert {call.instance for call in bench.probed()[before:]} == {f"users-{n}" for n in range(1, 11)}


async def test_stopping_in_the_middle_of_probes_leaves_nothing() -> None:
    instances = [user(n) for n in range(1, 201)]
    async with rig(*instances, answers={each.id: Answer(200, delay=9.0) for each in instances}) as bench:
        await bench.use()
        await bench.clock.advance(FIRST_WITHIN)
        assert bench.mesh.probes.statistics() == {
            "services": 1,
            "instances": 200,
            "running": MOST_AT_ONCE,
            "waiting": 200 - MOST_AT_ONCE,
        }
        bench.listed.set(*instances[:100])
        await bench.clock.advance(0.0)
        left = bench.mesh.probes.statistics()
        assert left["running"] + left["waiting"] == left["instances"] == 100, "who has left waits no more"
    assert bench.wire.in_flight == 0
    assert bench.seen(InstanceProbed) == []


async def test_a_mesh_that_is_started_again_probes_again() -> None:
    async with rig(user(1)) as bench:
        await bench.use()
        await bench.clock.advance(FIRST_WITHIN)
        await bench.mesh.stop()
        await bench.clock.advance(200.0)
        assert len(bench.probed()) == 1
        await bench.use()
        await bench.clock.advance(FIRST_WITHIN)
        assert len(bench.probed()) == 2


class NoJitter(random.Random):
    """Draws the least, so the first probe is due at once."""

    def uniform(self, a: float, b: float) -> float:
        return a


def followed(
    *instances: Instance, wire: object, interval: float
) -> tuple[Probes, Supervisor, ServiceState, list[Event]]:
    """Probes by themselves, by the clock of the event loop."""
    events: list[Event] = []
    supervisor = Supervisor()
    probes = Probes(wire, supervisor, clock=SystemClock(), observer=events.append, source=NoJitter())  # type: ignore[arg-type]
    live = Live(tuple(InstanceState(each) for each in instances))
    state = ServiceState("users", instances=live, picker=new_picker(BalancingPolicy()))
    probes.follow(state, ProbePolicy(path="/health", interval=interval))
    return probes, supervisor, state, events


async def test_probes_keep_nothing_of_the_request_in_which_a_service_was_called_first() -> None:
    seen: asyncio.Queue[object] = asyncio.Queue()

    async def wire(request: Request) -> Response:
        seen.put_nowait(current_inbound.get())
        return Response.of(200, [], b"")

    token = current_inbound.set(Inbound(None))
    try:
        probes, supervisor, _, _ = followed(user(1), wire=wire, interval=0.01)
    finally:
        current_inbound.reset(token)
    assert [await seen.get() for _ in range(3)] == [None, None, None], "nor does any later timer"
    probes.forget("users")
    await supervisor.aclose()


async def test_an_event_loop_or_supervisor_that_ends_is_no_failure_of_an_instance() -> None:
    begun = asyncio.Event()

    async def wire(request: Request) -> Response:
        begun.set()
        return await asyncio.get_running_loop().create_future()

    probes, supervisor, state, events = followed(user(1), user(2), wire=wire, interval=3600.0)
    await begun.wait()
    await supervisor.aclose()
    await asyncio.sleep(0)
    assert [event for event in events if isinstance(event, InstanceProbed)] == []
    assert {each.verdict for each in state.instances.value or ()} == {"unknown"}
    probes.forget("users")


@pytest.mark.spec("X-03")
async def test_a_disabled_mesh_probes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_MESH_ENABLED", "false")
    async with rig(user(1)) as bench:
        assert bench.mesh.policy_of("users").health_check is None


async def test_changes_are_logged_in_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastapi_mesh.events")
    async with rig(user(1), answers={"users-1": 503}) as bench:
        await bench.use()
        await bench.until_probed(5)
        bench.answers["users-1"] = Answer(200, b'{"status": "degraded"}', JSON)
        await bench.until_probed(7)
        bench.answers.clear()
        await bench.until_probed(9)
    lines = [record for record in caplog.records if "users-1 of users" in record.message]
    assert [(record.levelname, record.message) for record in lines] == [
        ("WARNING", "users-1 of users is unhealthy, it was unknown (GET /health: it answered 503)"),
        ("INFO", "users-1 of users is degraded, it was unhealthy (GET /health: it says that it is 'degraded')"),
        ("INFO", "users-1 of users is healthy, it was degraded (GET /health: it answered 200)"),
    ]


async def test_probes_are_counted_with_bounded_labels() -> None:
    async with rig(user(1), user(2), answers={"users-2": 503}) as bench:
        await bench.use()
        await bench.until_probed(2 * 3)
        await bench.clock.advance(1.0)
        metrics = bench.mesh.metrics
        assert metrics is not None

        def value(name: str, **labels: str) -> float | None:
            return metrics.registry.get_sample_value(name, {"service": "users", **labels})

        assert value("mesh_probes_total", result="failed") == 3
        assert value("mesh_probes_total", result="healthy") == 3
        assert value("mesh_probe_verdicts_total", health="unhealthy") == 1
        assert [value("mesh_probed_instances", health=each) for each in ("unknown", "healthy", "unhealthy")] == [
            0,
            1,
            1,
        ]
    assert value("mesh_probed_instances", health="healthy") == 0
    assert "users-1" not in metrics.render()[0].decode()


def test_probes_say_what_they_have() -> None:
    assert Probes.statistics.__doc__
