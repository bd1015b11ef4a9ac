"""The lists that a process uses."""

from __future__ import annotations

import timeit

import pytest

from fastapi_mesh.core.events import InstancesChanged
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.directory import Directory
from fastapi_mesh.exceptions import ServiceDiscoveryError
from fastapi_mesh.testing.clock import FakeClock
from tests.discovery.scripted import ScriptedDiscovery

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def supervisor(clock):
    return Supervisor(clock=clock)


@pytest.fixture
def discovery():
    return ScriptedDiscovery(users="one")


@pytest.fixture
def events():
    return []


@pytest.fixture
async def directory(clock, supervisor, discovery, events):
    directory = Directory(discovery, supervisor, observer=events.append, clock=clock)
    yield directory
    await directory.aclose()
    assert discovery.open == 0
    assert supervisor.statistics() == {"tasks": 0, "degraded": 0}


def ids(live):
    return None if live.value is None else [each.id for each in live.value]


async def test_a_service_is_watched_once_from_its_first_use_on(directory, discovery):
    assert discovery.watched == []

    live = directory.live("users")
    assert live.value is None
    await live.wait_first()

    assert ids(live) == ["one"]
    assert directory.live("users") is live
    assert discovery.watched == ["users"]


async def test_peeking_starts_nothing_and_is_no_use(directory, discovery, clock):
    assert directory.peek("users") is None
    assert discovery.watched == []
    await directory.live("users").wait_first()
    await clock.advance(300)
    assert [each.id for each in directory.peek("users")] == ["one"]
    await clock.advance(301)
    assert directory.peek("users") is None


async def test_changes_are_published_and_told_to_the_observer(directory, discovery, events, clock):
    live = directory.live("users")
    await live.wait_first()
    discovery.set("users", "two", "three")
    await clock.advance(0)
    discovery.set("users")
    await clock.advance(0)

    assert events == [
        InstancesChanged("users", added=("one",), removed=(), total=1),
        InstancesChanged("users", added=("three", "two"), removed=("one",), total=2),
        InstancesChanged("users", added=(), removed=("three", "two"), total=0),
    ]
    assert live.value == ()


async def test_a_service_that_nobody_offers_is_an_empty_list_and_no_event(directory, events):
    assert await directory.live("nobody").wait_first() == ()
    assert events == []


@pytest.mark.spec("X-57")
async def test_the_last_good_list_stays_while_the_registry_fails(directory, discovery, supervisor, clock, events):
    live = directory.live("users")
    await live.wait_first()
    discovery.fail(ServiceDiscoveryError("down"))
    await clock.advance(120)

    assert ids(live) == ["one"]
    assert list(supervisor.degraded) == ["discovery:users"]
    assert directory.failure("users") == "ServiceDiscoveryError: down"

    version = live.version
    discovery.recover()
    await clock.advance(10)  # the longest pause between two tries

    assert supervisor.degraded == {}
    assert directory.failure("users") is None
    assert live.version == version, "the same list is not published again"
    discovery.set("users", "two")
    await clock.advance(0)
    assert ids(live) == ["two"]
    assert len([event for event in events if isinstance(event, InstancesChanged)]) == 2


@pytest.mark.spec("X-57")
async def test_a_registry_that_was_down_at_first_is_there_within_ten_seconds_of_its_return(directory, discovery, clock):
    discovery.fail(ServiceDiscoveryError("down"))
    live = directory.live("users")
    await clock.advance(300)
    assert live.value is None
    assert directory.failure("users") is not None

    discovery.recover()
    await clock.advance(10)

    assert ids(live) == ["one"]


async def test_a_watch_that_nobody_uses_ends_after_ten_minutes_and_starts_anew_when_used(directory, discovery, clock):
    ended = []
    directory.on_end(ended.append)
    live = directory.live("users")
    directory.live("orders")
    await clock.advance(599)
    directory.live("orders")  # touched
    await clock.advance(2)

    assert ended == ["users"]
    assert directory.statistics() == {"watches": 1, "waiting": 0, "updates": 2, "evicted": 1}
    assert discovery.open == 1

    again = directory.live("users")
    await again.wait_first()
    assert again is not live
    await clock.advance(1000)
    assert ended == ["users", "orders", "users"]
    assert discovery.open == 0


async def test_a_used_watch_stays_for_ever(directory, discovery, clock):
    live = directory.live("users")
    for _ in range(10):
        await clock.advance(400)
        assert directory.live("users") is live
    assert discovery.watched == ["users"]


@pytest.mark.parametrize("failing", [False, True])
async def test_names_used_once_do_not_use_memory_for_ever(clock, supervisor, failing):
    discovery = ScriptedDiscovery()
    if failing:
        discovery.fail(ServiceDiscoveryError("down"))
    directory = Directory(discovery, supervisor, clock=clock, limit=10)
    used = directory.live("used")
    for number in range(100):
        assert directory.live("used") is used
        directory.live(f"unknown-{number}")
        if number % 20 == 0:
            await clock.advance(0)
    await clock.advance(0)

    assert directory.statistics()["watches"] == 10
    assert discovery.open == (0 if failing else 10)
    assert len(supervisor.degraded) == (10 if failing else 0)
    await directory.aclose()
    assert supervisor.statistics() == {"tasks": 0, "degraded": 0}


async def test_a_watch_that_ends_by_itself_is_a_failure(clock, supervisor):
    class Ending:
        async def watch(self, service):
            yield ()

    directory = Directory(Ending(), supervisor, clock=clock)
    await directory.live("users").wait_first()
    await clock.advance(0)

    assert directory.failure("users") == "ServiceDiscoveryError: the watch ended by itself"
    await directory.aclose()


async def test_a_watch_whose_subscriber_fails_is_closed_and_tried_again(directory, discovery, clock):
    def fail_once(instances):
        unsubscribe()
        raise RuntimeError("a bug in a subscriber")

    unsubscribe = directory.live("users").subscribe(fail_once)
    await clock.advance(0)
    assert discovery.open == 0

    await clock.advance(1)
    assert discovery.open == 1
    assert directory.failure("users") is None


async def test_a_use_costs_microseconds(directory):
    directory.live("users")
    assert timeit.timeit(lambda: directory.live("users"), number=10_000) / 10_000 < 20e-6
