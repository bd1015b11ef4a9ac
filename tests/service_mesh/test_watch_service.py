"""`@mesh.watch_service`: each instance that comes, changes or goes is told once, in order, whatever happens between."""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import replace

import anyio
import pytest

from fastapi_mesh import ServiceMesh
from fastapi_mesh.core.instance import Instance
from fastapi_mesh.discovery.memory import MemoryRegistry
from fastapi_mesh.exceptions import ServiceDiscoveryError
from fastapi_mesh.service_mesh.watching import MOST_PENDING, ServiceWatches, changes
from fastapi_mesh.testing.clock import FakeClock
from tests.discovery.scripted import ScriptedDiscovery, instance
from tests.support.leaks import leaked_tasks

pytestmark = pytest.mark.anyio

Told = list[tuple[str, str]]


async def settle() -> None:
    await FakeClock().advance(0.0)


class Lists:
    """A discovery that yields every list that was put, one after the other."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[Instance, ...]] = asyncio.Queue()

    def put(self, *instances: Instance) -> None:
        self.queue.put_nowait(instances)

    async def watch(self, service: str):  # type: ignore[no-untyped-def]
        while True:
            yield await self.queue.get()


def mesh_over(discovery: object) -> ServiceMesh:
    return ServiceMesh("caller", discovery=discovery, enable_metrics=False, clock=FakeClock())  # type: ignore[arg-type]


@pytest.mark.spec("S-114")
async def test_the_description_s_example_hears_of_every_instance() -> None:
    registry = MemoryRegistry()
    printed = []
    async with (
        ServiceMesh("watcher", discovery=registry) as mesh,
        ServiceMesh("notification-service", discovery=registry) as other,
    ):

        @mesh.watch_service("notification-service")
        async def on_notification_service_change(event, service):  # type: ignore[no-untyped-def]
            if event == "added":
                printed.append(f"New notification service instance: {service.address}")
            elif event == "removed":
                printed.append(f"Notification service instance removed: {service.address}")
            elif event == "updated":
                printed.append(f"Notification service instance updated: {service.address}")

        await settle()
        await other.register_service(service_id="n-1", address="10.0.0.1", port=1)
        await settle()
        await other.register_service(service_id="n-1", address="10.0.0.2", port=1)
        await settle()
        await other.deregister()
        await settle()
    assert printed == [
        "New notification service instance: 10.0.0.1",
        "Notification service instance updated: 10.0.0.2",
        "Notification service instance removed: 10.0.0.2",
    ]


@pytest.mark.spec("S-114")
async def test_handlers_before_and_after_the_start_hear_of_what_is_there_as_added() -> None:
    discovery = ScriptedDiscovery()
    discovery.set("users", "u1", "u2")
    mesh = mesh_over(discovery)
    early: Told = []
    late: Told = []

    @mesh.watch_service("users")
    async def registered_early(event: str, service: Instance) -> None:
        early.append((event, service.id))

    async with mesh:
        await settle()

        @mesh.watch_service("users")
        async def registered_late(event: str, service: Instance) -> None:
            late.append((event, service.id))

        await settle()
        discovery.set("users", "u2", "u3")
        await settle()
    assert early == late == [("added", "u1"), ("added", "u2"), ("added", "u3"), ("removed", "u1")]
    assert discovery.watched.count("users") == 1, "one watch for all handlers"


@pytest.mark.spec("S-114")
async def test_what_a_handler_raises_is_logged_and_the_watch_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    discovery = ScriptedDiscovery()
    discovery.set("users", "u1", "u2")
    mesh = mesh_over(discovery)
    heard: Told = []
    second: Told = []

    @mesh.watch_service("users")
    async def fails(event: str, service: Instance) -> None:
        heard.append((event, service.id))
        raise ZeroDivisionError("a mistake of the user's")

    @mesh.watch_service("users")
    async def works(event: str, service: Instance) -> None:
        second.append((event, service.id))

    async with mesh:
        await settle()
        discovery.set("users", "u2")
        await settle()
    assert heard == second == [("added", "u1"), ("added", "u2"), ("removed", "u1")]
    assert caplog.text.count("a handler of the service 'users' failed") == 3
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.spec("S-114")
async def test_calls_of_a_handler_come_one_after_the_other_and_a_slow_one_holds_up_nobody() -> None:
    discovery = ScriptedDiscovery()
    discovery.set("users", "u1", "u2")
    mesh = mesh_over(discovery)
    go = asyncio.Event()
    running = 0
    slow: Told = []
    fast: Told = []

    @mesh.watch_service("users")
    async def waits(event: str, service: Instance) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await go.wait()
        slow.append((event, service.id))
        running -= 1

    @mesh.watch_service("users")
    async def quick(event: str, service: Instance) -> None:
        fast.append((event, service.id))

    async with mesh:
        await settle()
        for ids in (("u1",), ("u1", "u3"), ("u3",)):
            discovery.set("users", *ids)
            await settle()
        assert slow == []
        assert len(fast) == 5
        go.set()
        await settle()
    assert slow == fast == [("added", "u1"), ("added", "u2"), ("removed", "u2"), ("added", "u3"), ("removed", "u1")]


async def test_def_handlers_run_in_a_thread_and_callable_objects_work_too() -> None:
    discovery = ScriptedDiscovery()
    discovery.set("users", "u1")
    mesh = mesh_over(discovery)
    threads: list[threading.Thread] = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    @mesh.watch_service("users")
    def plain(event: str, service: Instance) -> None:
        threads.append(threading.current_thread())
        loop.call_soon_threadsafe(done.set)

    class Handler:
        def __init__(self) -> None:
            self.heard: Told = []
            self.done = asyncio.Event()

        async def __call__(self, event: str, service: Instance) -> None:
            self.heard.append((event, service.id))
            self.done.set()

    handler = mesh.watch_service("users")(Handler())
    async with mesh:
        with anyio.fail_after(20):
            await done.wait()
            await handler.done.wait()
    assert threads != [threading.main_thread()]
    assert handler.heard == [("added", "u1")]


@pytest.mark.spec("S-114")
async def test_a_registry_that_fails_and_comes_back_repeats_nothing() -> None:
    discovery = ScriptedDiscovery()
    discovery.set("users", "u1", "u2")
    clock = FakeClock()
    mesh = ServiceMesh("caller", discovery=discovery, enable_metrics=False, clock=clock)
    heard: Told = []

    @mesh.watch_service("users")
    async def handler(event: str, service: Instance) -> None:
        heard.append((event, service.id))

    async with mesh:
        await settle()
        discovery.fail(ServiceDiscoveryError("the registry is away"))
        await settle()
        assert "watch:users" in mesh.degraded
        discovery.set("users", "u2", "u3")
        await clock.advance(20.0)
        assert "watch:users" not in mesh.degraded
        discovery.fail(ServiceDiscoveryError("the registry is away again"))
        await settle()
        assert "watch:users" in mesh.degraded
    assert "watch:users" not in mesh.degraded, "nobody watches any more"
    assert heard == [("added", "u1"), ("added", "u2"), ("added", "u3"), ("removed", "u1")]


@pytest.mark.spec("S-114")
async def test_a_mesh_that_is_started_again_tells_what_is_different_only() -> None:
    discovery = ScriptedDiscovery()
    discovery.set("users", "u1", "u2")
    mesh = mesh_over(discovery)
    heard: Told = []

    @mesh.watch_service("users")
    async def handler(event: str, service: Instance) -> None:
        heard.append((event, service.id))

    async with mesh:
        await settle()
    assert discovery.open == 0
    discovery.set("users", "u2", "u3")
    await settle()
    assert len(heard) == 2, "it has ended at the stop"
    async with mesh:
        await settle()
    assert heard[2:] == [("added", "u3"), ("removed", "u1")]


@pytest.mark.spec("S-114")
async def test_nothing_old_is_told_after_a_stop() -> None:
    discovery = ScriptedDiscovery()
    discovery.set("users", "u1")
    mesh = mesh_over(discovery)
    go = asyncio.Event()
    slow: Told = []
    late: Told = []

    @mesh.watch_service("users")
    async def waits(event: str, service: Instance) -> None:
        slow.append((event, service.id))
        await go.wait()

    async with mesh:
        await settle()
        discovery.set("users", "u1", "u2")
        await settle()
    go.set()
    discovery.set("users", "u1", "u3")
    async with mesh:

        @mesh.watch_service("users")
        async def registered_late(event: str, service: Instance) -> None:
            late.append((event, service.id))

        await settle()
    assert slow == late == [("added", "u1"), ("added", "u3")], "u2 came and went while nobody listened"


async def test_a_handler_that_hangs_ends_with_the_mesh() -> None:
    discovery = ScriptedDiscovery()
    discovery.set("users", "u1")
    mesh = mesh_over(discovery)
    ended = asyncio.Event()

    @mesh.watch_service("users")
    async def hangs(event: str, service: Instance) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    before = asyncio.all_tasks()
    async with mesh:
        await settle()
    assert ended.is_set()
    assert await leaked_tasks(before) == []


async def test_a_handler_may_stop_its_mesh_and_register_others() -> None:
    discovery = ScriptedDiscovery()
    discovery.set("users", "u1", "u2")
    discovery.set("orders", "o1")
    mesh = mesh_over(discovery)
    heard: Told = []

    @mesh.watch_service("users")
    async def handler(event: str, service: Instance) -> None:
        heard.append((event, service.id))
        if service.service == "users":
            mesh.watch_service("orders")(handler)
            await settle()
            await mesh.stop()
            heard.append(("stopped", service.id))

    await mesh.start()
    for _ in range(5):
        await settle()
    assert not mesh.started
    assert heard == [("added", "u1"), ("added", "o1"), ("stopped", "u1")]
    await mesh.stop()


async def test_more_lists_than_may_wait_are_told_as_one_change() -> None:
    lists = Lists()
    mesh = mesh_over(lists)
    go = asyncio.Event()
    heard: Told = []

    @mesh.watch_service("users")
    async def handler(event: str, service: Instance) -> None:
        await go.wait()
        heard.append((event, service.id))

    async with mesh:
        for number in range(MOST_PENDING + 500):
            lists.put(instance("u0"), instance(f"u{number % 7}x{number}"))
            await asyncio.sleep(0)
        while lists.queue.qsize():
            await settle()
        assert mesh._watches.statistics() == {"services": 1, "handlers": 1, "waiting": MOST_PENDING}
        go.set()
        while mesh._watches.statistics()["waiting"]:
            await settle()
    there: set[str] = set()
    for event, id in heard:
        assert (id in there) is (event != "added")
        there ^= {id} if event != "updated" else set()
    assert len(there) == 2
    assert heard.count(("added", "u0")) == 1


def test_changes_told_one_by_one_lead_from_any_list_to_any_other() -> None:
    source = random.Random(5)
    known: dict[str, Instance] = {}
    for _ in range(300):
        ids = source.sample(range(8), source.randint(0, 8))
        now = tuple(replace(instance(f"u{n}"), weight=source.choice([1.0, 2.0])) for n in sorted(ids))
        before = dict(known)
        told = list(changes(before, now))
        assert len({each.id for _, each in told}) == len(told), "each instance once"
        for event, each in told:
            if event == "removed":
                assert known.pop(each.id) == each
            else:
                assert (each.id in known) is (event == "updated")
                assert known.get(each.id) != each
                known[each.id] = each
        assert tuple(known[id] for id in sorted(known)) == now


def test_a_forgotten_name_is_told_at_once() -> None:
    watches = ServiceWatches(ScriptedDiscovery(), None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"@mesh.watch_service\('user-service'\)"):
        watches.watch(lambda event, service: None)  # type: ignore[arg-type]
