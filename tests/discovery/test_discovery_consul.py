"""How the registry on Consul asks: which queries, how many, how often, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import tomllib
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastapi_mesh.config.backends import DiscoveryConfig
from fastapi_mesh.config.consul import ConsulConfig
from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.base import KnownService
from fastapi_mesh.exceptions import ServiceDiscoveryError, UpstreamConnectionError
from fastapi_mesh.testing.clock import FakeClock
from tests.contracts.backends import Seen
from tests.contracts.server_backends import Followed
from tests.discovery.consul_script import Asked, Said, ScriptedConsul, entry
from tests.docs.snippets import snippets_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.anyio, pytest.mark.spec("S-102")]

WEB = Instance("web", "web-1", "10.0.0.1", 8001)


def blocking(asked: Asked) -> bool:
    return "index" in asked.params


async def _turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@asynccontextmanager
async def seeing(script: ScriptedConsul, *services: str, **settings: object) -> AsyncIterator[list[Seen]]:
    registry = script.registry(**settings)
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Seen(registry, service)) for service in services]


# What is asked


async def test_a_query_says_where_which_and_how_fresh():
    consul = ScriptedConsul(lambda asked: None if blocking(asked) else Said([], index=7))
    settings = {
        "datacenter": "dc2",
        "namespace": "team",
        "partition": "part",
        "tags": ["v1"],
        "consistency": "stale",
        "wait": 20.0,
    }
    async with seeing(consul, "a web/ü", consul=settings, request_timeout=3.0) as (seen,):
        await seen.until(lambda now: now == ())
        await _turns()

    first, second = consul.asked
    everywhere = {"tag": "v1", "ns": "team", "partition": "part", "dc": "dc2", "stale": ""}
    assert (first.method, first.path) == ("GET", "/v1/health/service/a%20web%2F%C3%BC")
    assert first.params == everywhere
    assert second.params.pop("index") == 7
    assert 18_000 <= int(str(second.params.pop("wait")).removesuffix("ms")) <= 20_000
    assert second.params == everywhere
    assert second.timeout is not None
    assert 18.0 * 17 / 16 + 3 <= second.timeout <= 20.0 * 17 / 16 + 3


async def test_enterprise_parameters_are_not_sent_to_a_consul_that_would_refuse_them():
    consul = ScriptedConsul(lambda asked: None if blocking(asked) else Said([]))
    async with seeing(consul, "web") as (seen,):
        await seen.until(lambda now: now == ())

    assert consul.asked[0].params == {}


async def test_two_watchers_of_a_service_share_a_query_and_the_second_has_its_list_at_once():
    consul = ScriptedConsul(lambda asked: None if blocking(asked) else Said([entry()]))
    async with seeing(consul, "web", "web") as (one, two):
        await one.until(lambda now: len(now) == 1)
        await two.until(lambda now: len(now) == 1)
        await _turns()

    assert [blocking(each) for each in consul.asked] == [False, True]


async def test_a_watcher_that_leaves_in_the_middle_of_a_query_hands_it_on():
    waiting: list[asyncio.Future[Said]] = []

    def answer(asked: Asked) -> Said | asyncio.Future[Said]:
        if not blocking(asked):
            return Said([entry()], index=1)
        waiting.append(asyncio.get_running_loop().create_future())
        return waiting[-1]

    registry = ScriptedConsul(answer).registry()
    async with AsyncExitStack() as going:
        first = await going.enter_async_context(Seen(registry, "web"))
        await first.until(lambda now: len(now) == 1)
        async with Seen(registry, "web") as staying:
            await staying.until(lambda now: len(now) == 1)
            await _turns()
            assert len(waiting) == 1

            await going.aclose()
            await _turns()
            waiting[-1].set_result(Said([entry(), entry("web-2", port=2)], index=2))
            await staying.until(lambda now: len(now) == 2)

    assert waiting[0].cancelled()


async def test_a_service_that_is_watched_again_is_asked_for_anew_and_nothing_old_is_shown():
    known = [entry(), entry("web-2", port=2)]
    consul = ScriptedConsul(lambda asked: None if blocking(asked) else Said(known))
    registry = consul.registry()
    async with Seen(registry, "web") as seen:
        await seen.until(lambda now: len(now) == 2)
    known.pop()
    async with Seen(registry, "web") as seen:
        await seen.until(lambda now: now != ())

    assert [[each.id for each in now] for now in seen.lists] == [["web-1"]]
    assert registry.statistics() == {"watches": 0, "blocking": 0}


async def test_an_index_that_changes_all_the_time_does_not_make_queries_without_end():
    index = iter(range(1, 10_000))
    consul = ScriptedConsul(lambda asked: Said([entry()], index=next(index)))
    async with seeing(consul, "web") as (seen,):
        await seen.until(lambda now: len(now) == 1)
        await consul.clock.advance(10.0)

        assert len(consul.asked) <= 2 + 5 + 2 * 10
        assert len(consul.asked) >= 10
    assert len(seen.lists) == 1


async def test_an_unchanged_index_is_not_read_again():
    consul = ScriptedConsul(lambda asked: Said([entry()] if not blocking(asked) else b"never parsed", index=5))
    async with seeing(consul, "web") as (seen,):
        await seen.until(lambda now: len(now) == 1)
        await consul.clock.advance(3.0)

    assert len(consul.asked) > 3


# How many


@pytest.mark.spec("X-57")
async def test_more_services_than_blocking_queries_are_polled_in_turn():
    consul = ScriptedConsul(lambda asked: None if blocking(asked) else Said([entry(asked.path[-3:])]))
    names = [f"s-{number:03}" for number in range(30)]
    async with seeing(consul, *names, consul={"max_watches": 10}) as all_seen:
        for seen in all_seen:
            await seen.until(lambda now: len(now) == 1)
        await consul.clock.advance(0.001)
        before = len(consul.asked)
        await consul.clock.advance(20.0)

        polls = consul.asked[before:]
        blocked = [each for each in consul.asked if blocking(each)]
        assert len(blocked) == 10
        assert not any(map(blocking, polls))
        assert 180 <= len(polls) <= 220  # ten a second
        times = {name: [each.at for each in polls if each.path.endswith(name)] for name in names}
        polled = [name for name in names if times[name]]
        assert len(polled) == 20
        assert {len(times[name]) for name in polled} <= {9, 10, 11}  # all alike


async def test_a_blocking_query_that_becomes_free_goes_to_one_that_polls():
    consul = ScriptedConsul(lambda asked: None if blocking(asked) else Said([entry()]))
    registry = consul.registry(consul={"max_watches": 1})
    async with Seen(registry, "second") as second:
        async with Seen(registry, "first") as first:
            await first.until(lambda now: len(now) == 1)
            await second.until(lambda now: len(now) == 1)
            await consul.clock.advance(2.0)
            holder = next(each.path for each in consul.asked if blocking(each))
        if holder.endswith("first"):
            await consul.clock.advance(2.0)
            assert [each.path[-6:] for each in consul.asked if blocking(each)] == ["/first", "second"]
    assert registry.statistics()["blocking"] == 0


async def test_a_consul_that_takes_fewer_connections_gets_fewer_blocking_queries():
    refuse = False

    def answer(asked: Asked) -> Said | None:
        if refuse:
            return Said(b"Too many concurrent connections", 429)
        return None if blocking(asked) else Said([entry()])

    consul = ScriptedConsul(answer)
    registry = consul.registry()
    async with AsyncExitStack() as stack:
        for number in range(20):
            seen = await stack.enter_async_context(Seen(registry, f"s-{number}"))
            await seen.until(lambda now: len(now) == 1)
        assert registry.statistics()["blocking"] == 20
        refuse = True
        late = registry.watch("one-more")
        with pytest.raises(ServiceDiscoveryError, match="429"):
            await anext(late)
        refuse = False
        async with Seen(registry, "another") as seen:
            await seen.until(lambda now: len(now) == 1)
            await consul.clock.advance(3.0)
            assert not any(blocking(each) for each in consul.asked if each.path.endswith("another"))


# What is made of the answers


@pytest.mark.spec("X-57")
@pytest.mark.parametrize("how", ["an error", "the index went back"])
async def test_instances_that_are_missing_after_an_interruption_have_time_to_come_back(how: str):
    phase = 0
    waiting: list[asyncio.Future[Said]] = []

    def answer(asked: Asked) -> Said | asyncio.Future[Said]:
        if phase == 0 and blocking(asked):
            waiting.append(asyncio.get_running_loop().create_future())
            return waiting[-1]
        if phase == 0:
            return Said([entry("a", port=1), entry("b", port=2), entry("c", port=3)], index=90)
        if phase == 1:  # c is not kept: z is at its address now
            return Said([entry("a", port=1), entry("z", port=3)], index=3)
        return Said([entry("a", port=1)], index=4)

    consul = ScriptedConsul(answer)
    registry = consul.registry(heartbeat=4.0)
    lists: list[list[str]] = []
    supervisor = Supervisor(clock=consul.clock)

    async def follow() -> None:
        async for instances in registry.watch("web"):
            lists.append([each.id for each in instances])  # noqa: PERF401 - they are looked at meanwhile

    supervisor.keep(follow, name="follow")
    await consul.clock.advance(0.01)
    assert lists == [["a", "b", "c"]]

    phase = 1
    if how == "an error":
        waiting[0].set_exception(UpstreamConnectionError("cut"))
    else:
        waiting[0].set_result(Said([], index=2))
    await consul.clock.advance(10.0)
    assert lists[-1] == ["a", "b", "z"]
    assert [] not in lists

    await consul.clock.advance(10.0)
    assert lists[-1] == ["a", "z"]
    phase = 2  # leaving in good order is no interruption
    await consul.clock.advance(2.0)
    assert lists[-1] == ["a"]
    await supervisor.aclose()


async def test_one_of_several_that_has_gone_during_an_interruption_is_gone():
    known = [entry("a", port=1), entry("b", port=2), entry("c", port=3)]
    failing = False
    consul = ScriptedConsul(lambda asked: UpstreamConnectionError("cut") if failing else Said(known, index=len(known)))
    async with Followed(
        consul.registry(), "web"
    ) as followed:  # of real time, so that it takes some hundredths of a second
        await followed.until_ids("a", "b", "c")
        failing = True
        await consul.clock.advance(3.0)
        await followed.until(lambda: followed.failure is not None)
        known.pop()
        failing = False
        await followed.until_ids("a", "b")


async def test_a_list_emptied_by_missing_rights_is_no_list():
    said = Said([], index=3)
    consul = ScriptedConsul(lambda asked: said)
    registry = consul.registry()
    said = FilteredSaid([], index=3)

    with pytest.raises(ServiceDiscoveryError, match=r"may not read 'web' \(ACL\)") as refusal:
        await anext(registry.watch("web"))
    assert refusal.value.service == "web"


class FilteredSaid(Said):
    @property
    def headers(self) -> dict[str, str]:
        return {**super().headers, "x-consul-results-filtered-by-acls": "true"}


@pytest.mark.parametrize(
    "said",
    [
        Said(b"No cluster leader", 500),
        Said(b"Permission denied", 403),
        Said(b"<html>", 200),
        Said([], index=None),
        Said({}, index=2),
        Said(b"", 404),
        Said(b"moved", 301),
        Said([{"Service": None}]),
        Said(b"[" * 100_000),
    ],
    ids=lambda said: f"{said.status} {said.content[:20]!r} {said.index}",
)
async def test_an_answer_that_is_none_is_an_error_with_the_service(said: Said):
    with pytest.raises(ServiceDiscoveryError) as refusal:
        await anext(ScriptedConsul(lambda asked: said).registry().watch("web"))
    assert refusal.value.service == "web"
    assert len(str(refusal.value)) < 500


@pytest.mark.spec("S-203")
async def test_the_services_are_ours_and_those_of_nobody_s_mesh_without_consul_itself():
    names = {
        "consul": [],
        "plain": ["v1"],
        "ours": ["api", "mesh-namespace=shop"],
        "both": ["mesh-namespace=other", "mesh-namespace=shop"],
        "theirs": ["api", "mesh-namespace=other"],
    }
    consul = ScriptedConsul(lambda asked: Said(names if asked.path.endswith("services") else []))
    services = consul.registry(namespace="shop").watch_services()

    assert await anext(services) == (
        KnownService("both"),
        KnownService("ours", frozenset({"api"})),
        KnownService("plain", frozenset({"v1"})),
    )
    await services.aclose()


@pytest.mark.spec("S-203")
async def test_a_service_of_ours_whose_instances_have_all_crashed_is_not_listed():
    lease = {"CheckID": "web:w-x-1:lease", "ServiceName": "web", "Status": "critical"}
    others = {"CheckID": "disk", "ServiceName": "", "Status": "critical"}
    there: list[object] = []

    def answer(asked: Asked) -> Said:
        if asked.path == "/v1/catalog/services":
            return Said({"web": ["mesh-namespace=default"], "api": []})
        if asked.path == "/v1/health/state/critical":
            return Said([lease, others])
        assert asked.path == "/v1/health/service/web"
        return Said(there)

    consul = ScriptedConsul(answer, clock=FakeClock(skip_sleeps=True))
    services = consul.registry().watch_services()
    assert [each.name for each in await anext(services)] == ["api"]

    there.append(entry())  # one of several is left
    assert [each.name for each in await anext(services)] == ["api", "web"]
    await services.aclose()


def test_the_settings_on_its_page_are_settings():
    page = Path(__file__).resolve().parents[2] / "docs" / "backends" / "consul.md"
    (settings,) = (tomllib.loads(each.source) for each in snippets_of(page, "toml"))
    config = DiscoveryConfig(**settings["discovery"])

    assert set(ConsulConfig.model_fields) == set(settings["discovery"]["consul"])
    assert config.consul.wait == ConsulConfig().wait
