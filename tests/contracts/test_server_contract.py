"""What every backend on a server promises when the server, or the way to it, fails; run over all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.lists import watching
from fastapi_mesh.discovery.registration import OwnRegistrations
from fastapi_mesh.exceptions import ConfigurationError, MeshError, ServiceDiscoveryError
from fastapi_mesh.service_mesh.backends import Opened
from tests.contracts.backends import Seen, parameters, process_of
from tests.contracts.server_backends import Followed, FollowedKey, ServerBackend
from tests.contracts.servers import ALL, SECURED
from tests.support.fault_proxy import Blackhole, Cut, Delay, Drip, Fault, Garbage, HalfClose

if TYPE_CHECKING:
    from fastapi_mesh.discovery.base import Discovery

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-57", "S-400")]

RECOVERY = 20.0
"""Seconds within which a node is registered and watching again (X-57)."""

FAULTS: dict[str, Fault] = {
    "resets": Cut(),
    "cuts answers": Cut(after=150),
    "half-closes in an answer": HalfClose(after=150),
    "drips": Drip(size=1, pause=0.5),
    "says nothing": Blackhole(),
}


@pytest.fixture(params=parameters(ALL))
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ServerBackend]:
    kind: type[ServerBackend] = request.param
    async with kind(tmp_path, process_of(request)) as opened:
        yield opened


@pytest.fixture(params=parameters(SECURED))
async def secured(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ServerBackend]:
    kind: type[ServerBackend] = request.param
    async with kind(tmp_path, process_of(request)) as opened:
        yield opened


def instance(number: int = 1, service: str = "users") -> Instance:
    return Instance(service, f"{service}-{number:03}", "127.0.0.1", 8000 + number)


def published(followed: Followed) -> list[list[str]]:
    return [[each.id for each in instances] for instances in followed.lists]


async def opened(client: Discovery) -> None:
    """Open a client that can be opened."""
    if isinstance(client, Opened):
        await client.open()


async def begun(client: Discovery) -> None:
    """Open a client, or ask for a list where it can't be opened."""
    if isinstance(client, Opened):
        await client.open()
    else:
        async with watching(client, "users") as lists:
            await anext(lists)


# The list


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_list_is_kept_while_the_way_to_the_server_is_broken_and_followed_again_after_it(
    backend: ServerBackend, fault: Fault
) -> None:
    await backend.put(instance(1))
    async with Followed(backend.client()) as followed:
        await followed.until_ids("users-001")

        backend.play(fault)
        await followed.until(lambda: followed.failure is not None)
        await backend.put(instance(2))
        assert followed.ids == ["users-001"]

        backend.heal()
        await followed.until_ids("users-001", "users-002", timeout=RECOVERY)
        assert followed.failure is None
    assert published(followed) == [["users-001"], ["users-001", "users-002"]]


async def test_a_list_is_kept_while_the_server_is_gone_and_followed_again_when_it_is_back(
    backend: ServerBackend,
) -> None:
    await backend.put(instance(1))
    async with Followed(backend.client()) as followed:
        await followed.until_ids("users-001")

        await backend.away()
        await followed.until(lambda: followed.failure is not None)
        await asyncio.sleep(1.0)  # several attempts; a minute is a soak's (scenarios)
        await backend.put(instance(2))
        assert followed.ids == ["users-001"]

        await backend.back()
        await followed.until_ids("users-001", "users-002", timeout=RECOVERY)
        assert followed.failure is None
    assert published(followed) == [["users-001"], ["users-001", "users-002"]]


async def test_a_list_is_kept_whatever_nonsense_is_answered(backend: ServerBackend) -> None:
    await backend.put(instance(1))
    async with Followed(backend.client()) as followed:
        await followed.until_ids("users-001")

        for content in backend.garbage:
            backend.play(Garbage(content))
            await followed.until(lambda: followed.failure is not None)
            assert followed.failure is not None
            assert "Traceback" not in followed.failure
            backend.heal()
            await followed.until(lambda: followed.failure is None, timeout=RECOVERY)

        await backend.put(instance(2))
        await followed.until_ids("users-001", "users-002", timeout=RECOVERY)
    assert published(followed) == [["users-001"], ["users-001", "users-002"]]


async def test_a_long_list_that_is_cut_in_the_middle_is_no_list(backend: ServerBackend) -> None:
    everything = [instance(number) for number in range(1, 301)]
    await backend.put_all(everything)
    backend.play(Cut(after=2_000))
    async with Followed(backend.client()) as followed:
        await followed.until(lambda: followed.failure is not None)
        assert followed.lists == []

        backend.heal()
        await followed.until(lambda: len(followed.ids) == 300, timeout=RECOVERY)
    assert [len(each) for each in followed.lists] == [300]


async def test_a_slow_server_is_waited_for(backend: ServerBackend) -> None:
    backend.play(Delay(0.3))
    async with Followed(backend.client()) as followed:
        await followed.until_ids()
        await followed.until(lambda: followed.lists == [()])
        await backend.put(instance(1))
        await followed.until_ids("users-001")
        assert followed.failure is None


async def test_a_server_that_resets_every_connection_is_not_hammered(backend: ServerBackend) -> None:
    async with Followed(backend.client()) as followed:
        await followed.until(lambda: followed.lists == [()])
        before = backend.proxy.accepted
        backend.play(Cut())

        await asyncio.sleep(1.5)

        assert 1 <= backend.proxy.accepted - before <= 12


async def test_a_server_that_hangs_and_goes_on_is_followed_again(backend: ServerBackend) -> None:
    await backend.put(instance(1))
    async with Followed(backend.client()) as followed:
        await followed.until_ids("users-001")
        backend.pause()
        try:
            await followed.until(lambda: followed.failure is not None)
        finally:
            backend.resume()

        await backend.put(instance(2))
        await followed.until_ids("users-001", "users-002", timeout=RECOVERY)
    assert published(followed) == [["users-001"], ["users-001", "users-002"]]


async def test_many_watches_of_a_server_that_went_away_are_all_back(backend: ServerBackend) -> None:
    client = backend.client()
    names = [f"service-{number}" for number in range(12)]
    followed = [Followed(client, name) for name in names]
    for each in followed:
        await each.__aenter__()
    try:
        for each in followed:
            await each.until(lambda each=each: each.lists == [()])  # type: ignore[misc]  # bound on purpose
        await backend.away()
        for each in followed:
            await each.until(lambda each=each: each.failure is not None)  # type: ignore[misc]  # bound on purpose
        await backend.back()
        for number, name in enumerate(names):
            await backend.put(instance(number + 1, name))
        for number, each in enumerate(followed):
            await each.until_ids(instance(number + 1, names[number]).id, timeout=RECOVERY)
    finally:
        for each in followed:
            await each.__aexit__()


# The start


async def test_a_server_that_is_away_at_the_start_is_no_mistake_of_the_settings_and_is_joined_later(
    backend: ServerBackend,
) -> None:
    await backend.put(instance(1))
    await backend.away()
    client = backend.client()
    with pytest.raises(ServiceDiscoveryError):
        await begun(client)

    async with Followed(client) as followed:
        await followed.until(lambda: followed.failure is not None)
        await backend.back()
        await followed.until_ids("users-001", timeout=RECOVERY)


async def test_whatever_answers_at_the_start_is_told_apart_from_the_server(backend: ServerBackend) -> None:
    for content in backend.garbage:
        backend.play(Garbage(content))
        client = backend.client()
        with pytest.raises(MeshError):
            await begun(client)


async def test_wrong_credentials_are_a_mistake_of_the_settings_and_are_not_shown(secured: ServerBackend) -> None:
    wrong = secured.client("wr0ng-s3cret")

    with pytest.raises(ConfigurationError) as refusal:
        await opened(wrong)

    assert "wr0ng-s3cret" not in str(refusal.value)
    await opened(secured.client(secured.new_credentials()))


async def test_credentials_that_end_later_keep_the_list(secured: ServerBackend) -> None:
    await secured.put(instance(1))
    credentials = secured.new_credentials()
    assert credentials is not None
    client = secured.client(credentials)
    await opened(client)
    async with Followed(client) as followed:
        await followed.until_ids("users-001")

        secured.revoke(credentials)
        await followed.until(lambda: followed.failure is not None)

    assert published(followed) == [["users-001"]]


# Registering


async def test_a_node_that_its_server_has_forgotten_comes_back_by_itself_and_no_list_is_shorter_meanwhile(
    backend: ServerBackend,
) -> None:
    if (registrar := backend.registrar()) is None:
        pytest.skip("it registers nobody")
    supervisor = Supervisor()
    own = OwnRegistrations(registrar, supervisor)
    assert await own.add(instance(1), timeout=RECOVERY)
    async with Followed(backend.client()) as followed:
        await followed.until_ids("users-001")

        await asyncio.to_thread(backend.restart)
        await backend.put(instance(2))
        await followed.until_ids("users-001", "users-002", timeout=RECOVERY)

        async with Seen(backend.direct(), "users") as elsewhere:
            await elsewhere.until(lambda now: len(now) == 2, RECOVERY)
    await own.withdraw_all()
    await supervisor.aclose()
    assert published(followed) == [["users-001"], ["users-001", "users-002"]]


async def test_a_node_that_was_cut_off_for_longer_than_its_lease_registers_again(backend: ServerBackend) -> None:
    if (registrar := backend.registrar()) is None:
        pytest.skip("it registers nobody")
    supervisor = Supervisor()
    own = OwnRegistrations(registrar, supervisor)
    async with Seen(backend.direct(), "users") as elsewhere:
        assert await own.add(instance(1), timeout=RECOVERY)
        await elsewhere.until(lambda now: len(now) == 1)

        await backend.away()
        await elsewhere.until(lambda now: now == (), RECOVERY)
        assert list(supervisor.degraded) == ["registration:users/users-001"]

        await backend.back()
        await elsewhere.until(lambda now: len(now) == 1, RECOVERY)
        await own.withdraw_all()
        await elsewhere.until(lambda now: now == ())
    await supervisor.aclose()


async def test_a_node_that_starts_without_its_server_is_registered_later(backend: ServerBackend) -> None:
    if (registrar := backend.registrar()) is None:
        pytest.skip("it registers nobody")
    supervisor = Supervisor()
    own = OwnRegistrations(registrar, supervisor)
    await backend.away()

    assert not await own.add(instance(1), timeout=0.2)

    await backend.back()
    async with Seen(backend.direct(), "users") as elsewhere:
        await elsewhere.until(lambda now: len(now) == 1, RECOVERY)
    await own.withdraw_all()
    await supervisor.aclose()


async def test_leaving_a_server_that_is_away_or_hangs_does_not_hold_up_the_end(backend: ServerBackend) -> None:
    if (registrar := backend.registrar()) is None:
        pytest.skip("it registers nobody")
    supervisor = Supervisor()
    own = OwnRegistrations(registrar, supervisor)
    assert await own.add(instance(1), timeout=RECOVERY)
    backend.play(Blackhole())

    async with asyncio.timeout(5):
        await own.withdraw_all(timeout=0.2)
        await supervisor.aclose()


# The config store


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_value_is_kept_while_the_way_to_the_server_is_broken_and_followed_again_after_it(
    backend: ServerBackend, fault: Fault
) -> None:
    if (store := backend.store()) is None:
        pytest.skip("it keeps no configuration")
    await store.put("settings.toml", "a = 1\n" * 100)
    async with FollowedKey(store, "settings.toml") as followed:
        await followed.until(lambda: len(followed.texts) == 1)

        backend.play(fault)
        await followed.until(lambda: followed.failure is not None)

        backend.heal()
        await followed.until(lambda: followed.failure is None, RECOVERY)
        await store.put("settings.toml", "a = 2")
        await followed.until(lambda: followed.texts[-1] == "a = 2", RECOVERY)
    assert followed.texts == ["a = 1\n" * 100, "a = 2"]


async def test_a_value_is_kept_whatever_nonsense_is_answered(backend: ServerBackend) -> None:
    if (store := backend.store()) is None:
        pytest.skip("it keeps no configuration")
    await store.put("settings.toml", "a = 1")
    async with FollowedKey(store, "settings.toml") as followed:
        await followed.until(lambda: len(followed.texts) == 1)
        for content in backend.garbage:
            backend.play(Garbage(content))
            await followed.until(lambda: followed.failure is not None)
            with pytest.raises(MeshError):
                await store.get("settings.toml")
            with pytest.raises(MeshError):
                await store.put("settings.toml", "a = 2")
            backend.heal()
            await followed.until(lambda: followed.failure is None, RECOVERY)
    assert followed.texts == ["a = 1"]
