"""The registry inside one process."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.discovery.memory import MemoryRegistry
from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.testing.clock import FakeClock
from tests.contracts.backends import Seen

pytestmark = pytest.mark.anyio


async def app(scope, receive, send):
    """An ASGI application."""


async def other_app(scope, receive, send):
    """Another ASGI application."""


async def test_a_lease_ends_exactly_when_it_is_over():
    clock = FakeClock()
    registry = MemoryRegistry(lease=15.0, heartbeat=5.0, clock=clock)
    registration = await registry.register(Instance("users", "1", "127.0.0.1", 8000))
    async with Seen(registry, "users") as seen:
        await clock.advance(10)
        await registration.beat()
        await clock.advance(14.9)
        assert [len(each) for each in seen.lists] == [1]

        await clock.advance(0.2)

        assert [len(each) for each in seen.lists] == [1, 0]
    assert await registry.services() == ()


async def test_applications_of_one_service_do_not_replace_each_other():
    registry = MemoryRegistry()
    for name, each in (("one", app), ("two", other_app)):
        await registry.register(Instance("users", name, "users", 80, scheme="asgi", app=each))

    assert [each.app for each in await registry.instances()] == [app, other_app]
    assert await registry.services() == ("users",)


async def test_event_loops_of_several_threads_can_share_it():
    registry = MemoryRegistry()

    def other_thread() -> None:
        asyncio.run(registry.register(Instance("users", "1", "127.0.0.1", 8000)))

    async with Seen(registry, "users") as seen:
        await seen.until(lambda now: now == ())
        thread = threading.Thread(target=other_thread)
        thread.start()

        await seen.until(lambda now: len(now) == 1)

    thread.join()


async def test_a_loop_that_ended_in_the_middle_of_a_watch_disturbs_nobody():
    registry = MemoryRegistry()

    async def watch_a_little() -> None:
        lists = registry.watch("users")
        await anext(lists)
        waiting = asyncio.get_running_loop().create_future()
        registry._bell._waiters[waiting] = asyncio.get_running_loop()
        await lists.aclose()

    await asyncio.to_thread(asyncio.run, watch_a_little())

    await registry.register(Instance("users", "1", "127.0.0.1", 8000))
    assert await registry.services() == ("users",)


@pytest.mark.parametrize(
    ("times", "why"),
    [
        ({"lease": 5.0, "heartbeat": 5.0}, r"discovery.heartbeat: 5 s is not shorter than discovery.lease \(5 s\)"),
        ({"lease": 0.0}, "discovery.lease: 0.0 is not a positive number"),
        ({"heartbeat": float("nan")}, "discovery.heartbeat: nan is not a positive number"),
    ],
)
async def test_times_that_make_no_sense_are_refused(times, why):
    with pytest.raises(ConfigurationError, match=why):
        MemoryRegistry(**times)
