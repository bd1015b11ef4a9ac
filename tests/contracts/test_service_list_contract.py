"""What every backend that lists its services promises (`ServiceList` in discovery/base.py), run over all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.discovery.base import KnownService, ServiceList
from tests.contracts.backends import Backend, RegistryBackend, parameters, process_of
from tests.contracts.every import DISCOVERIES, REGISTRIES

pytestmark = [pytest.mark.anyio, pytest.mark.spec("S-203")]

LISTING = tuple(kind for kind in DISCOVERIES if kind.lists_services)


@pytest.fixture(params=parameters(LISTING))
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    async with request.param(tmp_path, process_of(request)) as opened:
        yield opened


@pytest.fixture(params=parameters(kind for kind in REGISTRIES if kind.lists_services))
async def registry(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RegistryBackend]:
    async with request.param(tmp_path, process_of(request)) as opened:
        yield opened


def instance(service: str, number: int = 1, tags: tuple[str, ...] = ()) -> Instance:
    return Instance(service, f"{service}-{number}", "127.0.0.1", 8000 + number, tags=tags)


@asynccontextmanager
async def listed(backend: Backend) -> AsyncIterator[AsyncIterator[tuple[KnownService, ...]]]:
    view = backend.view()
    assert isinstance(view, ServiceList)
    services = view.watch_services()
    try:
        yield services
    finally:
        await services.aclose()  # type: ignore[attr-defined]  # all of ours are generators


def of_test(known: tuple[KnownService, ...]) -> list[str]:
    """The names, but for the service that some backends under test have from the start."""
    return [each.name for each in known if each.name != "somebody-else"]


async def until(services: AsyncIterator[tuple[KnownService, ...]], names: list[str], timeout: float) -> None:
    async with asyncio.timeout(timeout):
        while of_test(await anext(services)) != names:
            continue


async def test_a_registry_without_services_is_an_empty_list_at_once(backend):
    async with listed(backend) as services:
        assert of_test(await anext(services)) == []


async def test_all_services_come_at_once_sorted_by_name(backend):
    for name in ("users", "billing", "orders"):
        await backend.put(instance(name, ord(name[0])))

    async with listed(backend) as services:
        assert of_test(await anext(services)) == ["billing", "orders", "users"]


async def test_the_tags_of_a_service_are_those_of_any_of_its_instances(backend):
    await backend.put(instance("users", 1, ("a", "b")))
    await backend.put(instance("users", 2, ("b", "c")))

    async with listed(backend) as services:
        known = {each.name: each for each in await anext(services)}

    assert known["users"] == KnownService("users", frozenset("abc"))


async def test_a_service_that_appears_and_vanishes_is_told_within_a_second(backend):
    async with listed(backend) as services:
        await anext(services)
        await backend.put(instance("users"))
        await until(services, ["users"], backend.settle)
        await backend.put(instance("orders", 2))
        await until(services, ["orders", "users"], backend.settle)
        await backend.remove("users", "users-1")
        await until(services, ["orders"], backend.settle)


async def test_changed_tags_are_told_and_another_instance_with_the_same_ones_is_not(backend):
    await backend.put(instance("users", 1, ("a",)))
    async with listed(backend) as services:
        await anext(services)
        await backend.put(instance("users", 2, ("a",)))
        await backend.put(instance("users", 1, ("b",)))
        async with asyncio.timeout(backend.settle):
            told = [each for each in await anext(services) if each.name == "users"]

    assert told == [KnownService("users", frozenset("ab"))]


async def test_a_service_whose_last_lease_is_over_is_gone(registry):
    async with listed(registry) as services:
        await anext(services)
        await registry.registrar().register(instance("users"))
        await until(services, ["users"], 1.0)
        await until(services, [], registry.lease + 5.0)


async def test_a_list_that_is_given_up_leaves_no_task(backend):
    before = asyncio.all_tasks()
    async with listed(backend) as services:
        await anext(services)

    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
