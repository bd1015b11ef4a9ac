"""Several sources in order."""

from __future__ import annotations

import pytest

from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.chained import ChainedDiscovery
from fastapi_mesh.discovery.lists import known_services
from fastapi_mesh.discovery.static import StaticDiscovery
from fastapi_mesh.exceptions import ServiceDiscoveryError
from fastapi_mesh.testing.clock import FakeClock
from tests.contracts.backends import Seen
from tests.discovery.scripted import ScriptedDiscovery

pytestmark = [pytest.mark.anyio, pytest.mark.spec("B25")]

DOWN = ServiceDiscoveryError("the registry is down")


def ids(instances):
    return [each.id for each in instances]


async def test_the_first_source_with_an_instance_wins_for_each_service():
    first, second = ScriptedDiscovery(users="static"), ScriptedDiscovery(users="registered", orders="registered")
    chain = ChainedDiscovery([first, second])

    async with Seen(chain, "users") as users, Seen(chain, "orders") as orders, Seen(chain, "nobody") as nobody:
        await users.until(lambda now: ids(now) == ["static"])
        await orders.until(lambda now: ids(now) == ["registered"])
        await nobody.until(lambda now: now == ())
        assert "users" not in second.watched


async def test_it_switches_live_in_both_directions():
    first, second = ScriptedDiscovery(), ScriptedDiscovery(users="registered")
    async with Seen(ChainedDiscovery([first, second]), "users") as seen:
        await seen.until(lambda now: ids(now) == ["registered"])

        first.set("users", "static")
        await seen.until(lambda now: ids(now) == ["static"])
        second.set("users", "registered", "registered-too")

        first.set("users")
        await seen.until(lambda now: ids(now) == ["registered", "registered-too"])

        second.set("users")
        await seen.until(lambda now: now == ())
    assert [ids(each) for each in seen.lists] == [["registered"], ["static"], ["registered", "registered-too"], []]
    assert (first.open, second.open) == (0, 0)


async def test_a_later_source_that_fails_does_not_break_an_earlier_hit():
    static, registry = StaticDiscovery({"users": "http://127.0.0.1:1"}), ScriptedDiscovery()
    registry.fail(DOWN)
    async with Seen(ChainedDiscovery([static, registry]), "users") as seen:
        await seen.until(lambda now: ids(now) == ["users-1"])

        static.add("users", "http://127.0.0.1:2")

        await seen.until(lambda now: len(now) == 2)


async def test_a_failure_is_raised_when_no_other_source_has_an_instance(caplog):
    registry = ScriptedDiscovery(users="registered")
    chain = ChainedDiscovery([StaticDiscovery(), registry])
    async with Seen(chain, "users") as seen:
        await seen.until(lambda now: ids(now) == ["registered"])
        registry.fail(DOWN)
        with pytest.raises(ServiceDiscoveryError, match="the registry is down"):
            await seen.until(lambda now: False)
    assert registry.open == 0
    assert [record.name for record in caplog.records if "source" in record.message] == [], "whoever watches logs it"

    registry.recover()
    async with Seen(chain, "users") as again:
        await again.until(lambda now: ids(now) == ["registered"])


@pytest.mark.spec("X-57")
async def test_an_earlier_source_that_fails_is_tried_again_while_a_later_one_helps_out():
    clock = FakeClock()
    supervisor = Supervisor(clock=clock)
    first, second = ScriptedDiscovery(users="first"), ScriptedDiscovery(users="second")
    async with Seen(ChainedDiscovery([first, second], supervisor=supervisor), "users") as seen:
        await seen.until(lambda now: ids(now) == ["first"])

        first.fail(DOWN)
        await seen.until(lambda now: ids(now) == ["second"])
        assert list(supervisor.degraded) == ["discovery-source:users/1"]

        first.recover()
        await clock.advance(10.0)

        await seen.until(lambda now: ids(now) == ["first"])
        assert supervisor.degraded == {}
    assert supervisor.statistics() == {"tasks": 0, "degraded": 0}


async def test_a_source_whose_watch_ends_by_itself_is_a_failing_one():
    class Ending:
        async def watch(self, service):
            yield ()

    async with Seen(ChainedDiscovery([Ending()]), "users") as seen:
        with pytest.raises(ServiceDiscoveryError, match="the watch ended by itself"):
            await seen.until(lambda now: False)


async def test_no_sources_at_all_know_nobody():
    async with Seen(ChainedDiscovery([]), "users") as seen:
        await seen.until(lambda now: now == ())


class Listing(ScriptedDiscovery):
    """Lists what it knows of as services, or fails."""

    async def watch_services(self):
        last = None
        while True:
            if self._error is not None:
                raise self._error
            now = known_services(self._lists)
            if now != last:
                last = now
                yield now
            else:
                await self._changes.wait_change()


@pytest.mark.spec("S-203")
async def test_the_services_of_all_sources_are_listed_and_those_of_one_that_fails_stay():
    clock = FakeClock()
    supervisor = Supervisor(clock=clock)
    fixed, registry = Listing(users="u1"), Listing(orders="o1")
    chained = ChainedDiscovery([fixed, ScriptedDiscovery(hidden="h1"), registry], supervisor=supervisor)
    services = chained.watch_services()

    assert [each.name for each in await anext(services)] == ["orders", "users"]
    registry.fail(OSError("no route to the registry"))
    fixed.set("billing", "b1")
    assert [each.name for each in await anext(services)] == ["billing", "orders", "users"]
    assert "OSError" in supervisor.degraded["discovery-services:2"]
    registry.set("orders")
    await clock.advance(1.0)
    assert [each.name for each in await anext(services)] == ["billing", "users"]
    assert supervisor.degraded == {}

    await services.aclose()
    assert supervisor.statistics()["tasks"] == 0


@pytest.mark.spec("S-203")
async def test_a_source_that_fails_from_the_start_does_not_keep_the_services_of_the_others_back():
    supervisor = Supervisor(clock=FakeClock())
    broken = Listing()
    broken.fail(OSError("no route to the registry"))
    services = ChainedDiscovery([Listing(users="u1"), broken], supervisor=supervisor).watch_services()

    assert [each.name for each in await anext(services)] == ["users"]

    await services.aclose()
