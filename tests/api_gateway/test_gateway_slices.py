"""Settings are taken over in slices: requests go on meanwhile, and whatever comes between leaves nothing half done."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from pathlib import Path

import pytest

from fastapi_mesh.api_gateway import APIGateway, slices
from fastapi_mesh.api_gateway.pipeline import LateChain
from fastapi_mesh.api_gateway.slices import Slices
from fastapi_mesh.exceptions import ConfigurationError

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-30")]

ROUTES = 40


@pytest.fixture(autouse=True)
def each_step_is_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE", 0.0)


def write(path: Path, version: str, extra: str = "") -> None:
    routes = "".join(f'[[routes]]\npath = "/{version}/{index}"\nservice = "up"\n' for index in range(ROUTES))
    path.write_text(f'{extra}\n[services]\nup = "http://127.0.0.1:1"\n{routes}')


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    write(path, "one")
    return path


def version(gateway: APIGateway) -> str:
    """Of the routes that are found, which are all of one version."""
    found = {route.path.split("/")[1] for route in gateway._table.routes}
    assert len(found) == 1
    assert all(route.chain is not None for route in gateway._table.routes)
    return found.pop()


async def under_way(gateway: APIGateway) -> None:
    """A reload has taken its first steps, and not the last one."""
    while gateway._slices._running is None:  # noqa: ASYNC110 - another thread reads the file
        await asyncio.sleep(0.001)


async def test_the_old_routes_count_until_all_new_ones_are_there(file: Path) -> None:
    gateway = APIGateway(config_file=str(file), watch_config=False)
    async with gateway.opened({}):
        write(file, "two")
        reload = asyncio.ensure_future(gateway.reload())  # noqa: TID251 - the test's own
        await under_way(gateway)
        turns = 0
        while not reload.done():
            assert version(gateway) == ("two" if gateway._slices._running is None else "one")
            turns += 1
            await asyncio.sleep(0)

        assert turns > ROUTES / 2, "the event loop was free in between"
        assert version(gateway) == "two"
        assert (await reload).changed == ("routes",)


async def test_what_is_set_in_code_meanwhile_counts_too(file: Path) -> None:
    gateway = APIGateway(config_file=str(file), watch_config=False)
    async with gateway.opened({}):
        write(file, "two")
        reload = asyncio.ensure_future(gateway.reload())  # noqa: TID251 - the test's own
        await under_way(gateway)

        gateway.configure_circuit_breakers({"up": None})

        assert version(gateway) == "two", "it reads the file as well"
        assert gateway.config.services["up"].circuit_breaker is None
        await reload
        assert version(gateway) == "two"
        assert gateway.config.services["up"].circuit_breaker is None


async def test_a_reload_that_is_overtaken_again_and_again_holds_requests_up_once(file: Path) -> None:
    gateway = APIGateway(config_file=str(file), watch_config=False)
    async with gateway.opened({}):
        reload = None
        for index in range(20):
            write(file, f"v{index}", extra=f"retry_backoff = {2 + index}")
            if reload is None:
                reload = asyncio.ensure_future(gateway.reload())  # noqa: TID251 - the test's own
            while gateway._slices._running is None and not reload.done():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.001)
            if reload.done():
                break
            gateway._take(gateway.config)

        assert reload is not None
        assert reload.done(), "four times were enough"


async def test_a_gateway_that_closes_meanwhile_leaves_nothing_behind(file: Path) -> None:
    gateway = APIGateway(config_file=str(file), watch_config=False)
    async with gateway.opened({}):
        life = gateway.life
        assert life is not None
        write(file, "two", extra="cache_ttl = 5")
        reload = asyncio.ensure_future(gateway.reload())  # noqa: TID251 - the test's own
        await under_way(gateway)

    await reload
    assert life._engines._running == {}
    assert life._engines._next == {}
    assert gateway.config.cache_ttl == 5, "it counts when the gateway opens again"


async def test_what_is_refused_half_way_changes_nothing(file: Path) -> None:
    gateway = APIGateway(config_file=str(file), watch_config=False)
    async with gateway.opened({}):
        file_of_now = file.read_text()  # noqa: ASYNC240 - small
        broken = file_of_now.replace("one", "two").replace('service = "up"', 'service = "down"', 1)
        file.write_text(broken)  # noqa: ASYNC240 - small

        with pytest.raises(ConfigurationError, match="'down' is not a known service"):
            await gateway.reload()

        assert version(gateway) == "one"
        assert gateway._slices._running is None


async def test_steps_that_fail_or_are_cancelled_are_undone() -> None:
    undone: list[str] = []

    def steps(name: str, fails: bool) -> Generator[None, None, None]:
        try:
            yield
            if fails:
                raise ConfigurationError("no")
            while True:
                yield
        finally:
            undone.append(name)

    work = Slices()
    with pytest.raises(ConfigurationError):
        await work.run(steps("failing", fails=True))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await work.run(steps("cancelled", fails=False))
    endless = asyncio.ensure_future(work.run(steps("given up", fails=False)))  # noqa: TID251 - the test's own
    await asyncio.sleep(0)
    work.give_up()

    assert await endless is False
    assert undone == ["failing", "cancelled", "given up"]


async def test_the_layers_of_a_handshake_are_made_for_the_first_one(file: Path) -> None:
    gateway = APIGateway(config_file=str(file), watch_config=False)
    async with gateway.opened({}):
        for route in gateway._table.routes:
            assert isinstance(route.upgrade, LateChain)
            assert route.upgrade._chain is None
