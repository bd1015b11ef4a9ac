"""What every discovery backend promises (discovery/base.py), run over all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.exceptions import ConfigurationError
from tests.contracts.backends import Backend, RegistryBackend, Seen, parameters, process_of
from tests.contracts.every import DISCOVERIES, REGISTRIES

pytestmark = pytest.mark.anyio


@pytest.fixture(params=parameters(DISCOVERIES))
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    async with request.param(tmp_path, process_of(request)) as opened:
        yield opened


@pytest.fixture(params=parameters(REGISTRIES))
async def registry(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RegistryBackend]:
    async with request.param(tmp_path, process_of(request)) as opened:
        yield opened


def instance(number: int = 1, **fields: object) -> Instance:
    given: dict[str, object] = {"service": "users", "id": f"users-{number}", "address": "127.0.0.1"}
    return Instance(**{**given, "port": 8000 + number, **fields})  # type: ignore[arg-type]  # tests name real fields


def ids(instances: tuple[Instance, ...]) -> list[str]:
    return [each.id for each in instances]


async def first(backend: Backend, service: str = "users") -> tuple[Instance, ...]:
    lists = backend.view().watch(service)
    try:
        return await anext(lists)
    finally:
        await lists.aclose()  # type: ignore[attr-defined]  # all of ours are generators


# What a watch yields


async def test_an_unknown_service_is_an_empty_list_at_once(backend):
    assert await first(backend, "nobody") == ()


@pytest.mark.spec("S-113")
async def test_the_first_list_comes_at_once_and_has_everything(backend):
    full = instance(
        address="::1",
        scheme="https",
        health="degraded",
        weight=2.5,
        tags=("api", "v1"),
        metadata=MappingProxyType({"team": "core"}),
        version="1.2.3",
        zone="eu-1",
        base_path=b"/users%20api",
        health_check="/health",
    )
    await backend.put(full)

    started = time.monotonic()
    assert await first(backend) == (full,)
    assert time.monotonic() - started < 1.0


async def test_an_instance_that_appears_reaches_a_watcher_within_a_second(backend):
    async with Seen(backend.view(), "users") as seen:
        await seen.until(lambda now: now == ())

        await backend.put(instance(1))

        await seen.until(lambda now: ids(now) == ["users-1"], backend.settle)


async def test_an_instance_that_vanishes_reaches_a_watcher(backend):
    await backend.put(instance(1))
    await backend.put(instance(2))
    async with Seen(backend.view(), "users") as seen:
        await seen.until(lambda now: len(now) == 2)

        await backend.remove("users", "users-1")
        await seen.until(lambda now: ids(now) == ["users-2"])

        await backend.remove("users", "users-2")
        await seen.until(lambda now: now == ())


@pytest.mark.parametrize(
    "change",
    [
        {"port": 9999},
        {"weight": 3.0},
        {"tags": ("canary",)},
        {"metadata": MappingProxyType({"region": "eu"})},
        {"health": "unhealthy"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_change_of_an_instance_reaches_a_watcher(backend, change):
    await backend.put(instance(1))
    async with Seen(backend.view(), "users") as seen:
        await seen.until(lambda now: len(now) == 1)

        changed = replace(instance(1), **change)
        await backend.put(changed)

        await seen.until(lambda now: now == (changed,))


@pytest.mark.spec("S-113")
async def test_an_unhealthy_instance_stays_listed_with_its_flag(backend):
    await backend.put(instance(1, health="unhealthy"))
    await backend.put(instance(2, health="unknown"))

    assert [each.health for each in await first(backend)] == ["unhealthy", "unknown"]


async def test_the_list_is_sorted_by_id(backend):
    for number in (3, 1, 2):
        await backend.put(instance(number))

    assert ids(await first(backend)) == ["users-1", "users-2", "users-3"]


async def test_an_id_is_listed_once_with_its_newest_data(backend):
    await backend.put(instance(1, port=8001))
    await backend.put(instance(1, port=8002))

    assert [(each.id, each.port) for each in await first(backend)] == [("users-1", 8002)]


async def test_services_with_the_same_ids_do_not_mix(backend):
    await backend.put(instance(1, id="1"))
    await backend.put(instance(2, id="1", service="orders"))

    assert [each.port for each in await first(backend, "users")] == [8001]
    assert [each.port for each in await first(backend, "orders")] == [8002]


async def test_texts_may_be_unicode(backend):
    odd = instance(
        1,
        id="bücher-1 ✓",
        tags=("größe", "日本"),
        metadata=MappingProxyType({"Straße": "naïve \U0001f600", "": "'\";--"}),
    )
    await backend.put(odd)

    assert await first(backend) == (odd,)


async def test_a_thousand_instances_are_listed(backend):
    everything = [instance(number, address=f"10.0.{number // 250}.{number % 250}") for number in range(1000)]
    await backend.put_all(everything)

    found = await first(backend)

    assert found == tuple(sorted(everything, key=lambda each: each.id))


async def test_nothing_is_yielded_when_nothing_changed(backend):
    await backend.put(instance(1))
    async with Seen(backend.view(), "users") as seen:
        await seen.until(lambda now: len(now) == 1)

        await backend.put(instance(1))
        await backend.put(instance(9, service="orders"))
        await backend.put(instance(2))
        await seen.until(lambda now: len(now) == 2)

    assert [ids(each) for each in seen.lists] == [["users-1"], ["users-1", "users-2"]]


async def test_a_slow_reader_gets_the_newest_list_next(backend):
    lists = backend.view().watch("users")
    assert await anext(lists) == ()

    for number in range(1, 4):
        await backend.put(instance(number))
    async with asyncio.timeout(5):
        while len(await anext(lists)) < 3:
            continue
    await lists.aclose()


async def test_several_watchers_see_the_same(backend):
    view = backend.view()
    async with (
        Seen(view, "users") as one,
        Seen(view, "users") as two,
        Seen(backend.view(), "users") as elsewhere,
        Seen(view, "orders") as other,
    ):
        for seen in (one, two, elsewhere, other):
            await seen.until(lambda now: now == ())

        await backend.put(instance(1))

        for seen in (one, two, elsewhere):
            await seen.until(lambda now: ids(now) == ["users-1"])
        assert other.lists == [()]


async def test_a_cancelled_watcher_leaves_nothing_and_disturbs_nobody(backend):
    view = backend.view()
    before = asyncio.all_tasks()
    async with Seen(view, "users") as staying:
        tasks_of_one = asyncio.all_tasks()
        async with Seen(view, "users") as going, Seen(view, "users") as going_too:
            for seen in (staying, going, going_too):
                await seen.until(lambda now: now == ())
        assert asyncio.all_tasks() - tasks_of_one <= {*asyncio.all_tasks() - before}

        await backend.put(instance(1))
        await staying.until(lambda now: len(now) == 1)

    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


# What a registry promises besides


async def test_an_instance_can_be_withdrawn_twice_and_does_not_come_back(registry):
    registration = await registry.registrar().register(instance(1))

    await registration.withdraw()
    await registration.withdraw()
    await registration.beat()

    assert await first(registry) == ()


async def test_an_instance_that_stops_beating_is_gone_when_its_lease_is_over(registry):
    async with Seen(registry.view(), "users") as seen:
        await registry.registrar().register(instance(1))
        await seen.until(lambda now: len(now) == 1)

        await seen.until(lambda now: now == (), registry.lease + 5.0)


async def test_an_instance_that_beats_outlives_its_lease(registry):
    registration = await registry.registrar().register(instance(1))
    assert 0 < registration.interval < registry.lease
    async with Seen(registry.view(), "users") as seen:
        end = time.monotonic() + 1.5 * registry.lease
        while time.monotonic() < end:
            await registration.beat()
            await asyncio.sleep(registration.interval)

    assert [ids(each) for each in seen.lists] == [["users-1"]]


@pytest.mark.spec("X-57")
async def test_a_beat_registers_anew_when_the_registry_has_forgotten_us(registry):
    registration = await registry.registrar().register(instance(1))
    await registry.wipe()
    assert await first(registry) == ()

    await registration.beat()

    assert ids(await first(registry)) == ["users-1"]


async def test_a_beat_registers_anew_after_the_lease_was_over(registry):
    registration = await registry.registrar().register(instance(1))
    async with Seen(registry.view(), "users") as seen:
        await seen.until(lambda now: now == (), registry.lease + 5.0)

        await registration.beat()

        await seen.until(lambda now: len(now) == 1)


async def test_a_process_restarted_on_its_port_replaces_the_one_that_crashed(registry):
    crashed = await registry.registrar().register(instance(1, id="before"))
    await registry.registrar().register(instance(1, id="after"))

    assert ids(await first(registry)) == ["after"]
    del crashed


async def test_two_workers_on_one_port_are_one_instance_that_stays_when_one_of_them_leaves(registry):
    one = await registry.registrar().register(instance(1, id="one"))
    two = await registry.registrar().register(instance(1, id="two"))
    async with Seen(registry.view(), "users") as seen:
        for _ in range(3):
            await one.beat()
            await two.beat()
            await seen.until(lambda now: ids(now) == ["two"])

        await two.withdraw()
        await seen.until(lambda now: ids(now) == ["one"])

    assert () not in seen.lists


async def test_workers_that_are_instances_of_their_own_are_told_apart_on_one_port(registry):
    one = await registry.registrar().register(instance(1, id="one", metadata={"worker": "11"}))
    await registry.registrar().register(instance(1, id="two", metadata={"worker": "12"}))
    async with Seen(registry.view(), "users") as seen:
        await seen.until(lambda now: ids(now) == ["one", "two"])
        await one.withdraw()
        await seen.until(lambda now: ids(now) == ["two"])


async def test_an_instance_registered_anew_is_not_undone_by_its_old_registration(registry):
    registrar = registry.registrar()
    old = await registrar.register(instance(1, port=8001))
    new = await registrar.register(instance(1, port=8002))

    await old.beat()
    assert [each.port for each in await first(registry)] == [8002]

    await old.withdraw()
    assert [each.port for each in await first(registry)] == [8002]

    await new.withdraw()
    assert await first(registry) == ()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"address": "0.0.0.0"}, "address: 0.0.0.0 is where a server listens"),
        ({"address": ""}, "address"),
        ({"port": 0}, "port: 0"),
        ({"weight": float("nan")}, "weight: nan"),
        ({"id": "a\nb"}, "id"),
        ({"base_path": b"x"}, "base_path"),
        ({"scheme": "gopher"}, "scheme: 'gopher'"),
        ({"health": "ok"}, "health: 'ok'"),
    ],
    ids=str,
)
async def test_an_instance_that_nobody_could_call_is_refused(registry, fields, named):
    with pytest.raises(ConfigurationError) as refusal:
        await registry.registrar().register(instance(1, **fields))

    assert named in str(refusal.value)
    assert await first(registry) == ()
