"""Discovery by DNS: what is made of each kind of answer, how often is asked, and what no answer means."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import ValidationError

from fastapi_mesh import ServiceMesh
from fastapi_mesh.config.backends import DiscoveryConfig
from fastapi_mesh.config.dns import DnsConfig
from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.base import ServiceList
from fastapi_mesh.discovery.dns import DnsDiscovery
from fastapi_mesh.discovery.lists import watching
from fastapi_mesh.exceptions import ConfigurationError, ServiceDiscoveryError
from fastapi_mesh.service_mesh import backends
from fastapi_mesh.service_mesh.backends.dns import nameserver
from fastapi_mesh.testing import FakeClock
from tests.contracts.backends import Seen
from tests.contracts.server_backends import Followed
from tests.support.consul import ConsulServer
from tests.support.dns_server import NEGATIVE_TTL, DnsServer
from tests.support.process import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.spec("S-113", "X-57")]

NAME = "_http._tcp.users."


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


def finder(server: DnsServer, *, clock: FakeClock | None = None, timeout: float = 5.0, **settings: object):
    config = DnsConfig.model_validate(settings)
    return DnsDiscovery(config, nameserver=("127.0.0.1", server.port), timeout=timeout, clock=clock, jitter=lambda: 0.0)


def by_address(server: DnsServer, **settings: object) -> DnsDiscovery:
    return finder(server, record="address", service_port=8000, **settings)


async def first(discovery: DnsDiscovery, service: str = "users") -> tuple[Instance, ...]:
    async with asyncio.timeout(20), watching(discovery, service) as lists:
        return await anext(lists)


def places(instances: tuple[Instance, ...]) -> list[str]:
    return [each.id for each in instances]


# SRV


async def test_srv_records_are_instances_with_ports_and_weights(server: DnsServer):
    server.add(NAME, "SRV", "1 10 8001 one.test.", "1 30 8002 two.test.")
    server.add("one.test.", "A", "10.0.0.1")
    server.add("two.test.", "A", "10.0.0.2")

    assert await first(finder(server)) == (
        Instance("users", "10.0.0.1:8001", "10.0.0.1", 8001, health="unknown", weight=10.0),
        Instance("users", "10.0.0.2:8002", "10.0.0.2", 8002, health="unknown", weight=30.0),
    )
    assert server.asked == [f"udp {NAME} SRV"], "the addresses came along"


async def test_targets_whose_addresses_did_not_come_along_are_asked_for(server: DnsServer):
    server.additional = False
    server.add(NAME, "SRV", *(f"1 1 {8000 + number} t{number}.test." for number in range(40)))
    for number in range(40):
        server.add(f"t{number}.test.", "A", f"10.0.0.{number}")

    assert len(await first(finder(server))) == 40
    assert len(server.asked) == 41


async def test_a_target_with_several_addresses_is_several_instances_that_share_its_weight(server: DnsServer):
    server.add(NAME, "SRV", "1 30 8001 one.test.")
    server.add("one.test.", "A", "10.0.0.1", "10.0.0.2", "10.0.0.3")

    assert [(each.id, each.weight) for each in await first(finder(server))] == [
        ("10.0.0.1:8001", 10.0),
        ("10.0.0.2:8001", 10.0),
        ("10.0.0.3:8001", 10.0),
    ]


@pytest.mark.parametrize(("weights", "made"), [((0, 0), [1.0, 1.0]), ((0, 5), [0.1, 5.0])])
async def test_a_weight_of_zero_is_no_weight_at_all_or_little_beside_others(
    server: DnsServer, weights: tuple[int, int], made: list[float]
):
    server.add(NAME, "SRV", f"1 {weights[0]} 8001 one.test.", f"1 {weights[1]} 8002 one.test.")
    server.add("one.test.", "A", "10.0.0.1")

    assert [each.weight for each in await first(finder(server))] == made


async def test_only_the_best_priority_is_used_and_the_next_one_where_that_has_no_address(server: DnsServer):
    server.add(NAME, "SRV", "2 1 8002 two.test.", "1 1 8001 one.test.", "3 1 8003 three.test.")
    server.add("one.test.", "A", "10.0.0.1")
    server.add("two.test.", "A", "10.0.0.2")

    assert places(await first(finder(server))) == ["10.0.0.1:8001"]
    server.remove("one.test.", "A")
    assert places(await first(finder(server))) == ["10.0.0.2:8002"]


async def test_a_target_that_is_the_root_says_that_there_is_no_such_service(server: DnsServer):
    server.add(NAME, "SRV", "0 0 0 .")

    assert await first(finder(server)) == ()


async def test_a_target_that_can_not_be_asked_for_is_an_error_and_no_shorter_list(server: DnsServer):
    server.additional = False
    server.add(NAME, "SRV", "1 1 8001 one.test.", "1 1 8002 two.test.")
    server.add("one.test.", "A", "10.0.0.1")
    server.rcodes["two.test."] = "SERVFAIL"

    with pytest.raises(ServiceDiscoveryError, match=r"two\.test"):
        await first(finder(server, timeout=1.0))


async def test_a_thousand_targets_are_listed(server: DnsServer):
    server.add(NAME, "SRV", *(f"1 1 {number} one.test." for number in range(1, 1001)))
    server.add("one.test.", "A", "10.0.0.1")
    server.truncate = True

    assert len(await first(finder(server))) == 1000
    assert server.asked == [f"udp {NAME} SRV", f"tcp {NAME} SRV"]


# Addresses


async def test_addresses_are_instances_on_the_port_of_the_settings(server: DnsServer):
    server.add("users.", "A", "10.0.0.2", "10.0.0.1")
    server.add("users.", "AAAA", "::1")

    assert places(await first(by_address(server))) == ["10.0.0.1:8000", "10.0.0.2:8000"]
    assert places(await first(by_address(server, family="ipv6"))) == ["[::1]:8000"]


async def test_ipv6_addresses_are_used_where_there_are_no_others(server: DnsServer):
    server.add("users.", "AAAA", "2001:db8::1")

    assert places(await first(by_address(server))) == ["[2001:db8::1]:8000"]
    assert await first(by_address(server, family="ipv4")) == ()


async def test_the_name_is_made_of_the_template_and_the_domain(server: DnsServer):
    server.add("users.prod.svc.example.org.", "A", "10.0.0.1")

    settings = {"name": "{service}.prod", "domain": "svc.example.org"}
    assert places(await first(by_address(server, **settings))) == ["10.0.0.1:8000"]


async def test_over_tls_the_certificate_is_for_the_name(server: DnsServer):
    server.add(NAME, "SRV", "1 1 8001 one.test.")
    server.add("one.test.", "A", "10.0.0.1")

    (found,) = await first(finder(server, scheme="https"))

    assert (found.scheme, dict(found.metadata)) == ("https", {"server_name": "one.test"})


@pytest.mark.parametrize("follows", [True, False], ids=["by the resolver", "left to us"])
async def test_aliases_are_followed(server: DnsServer, follows: bool):
    server.follows_aliases = follows
    server.add("users.", "CNAME", "real.test.", ttl=3)
    server.add("real.test.", "A", "10.0.0.1", ttl=60)

    assert places(await first(by_address(server))) == ["10.0.0.1:8000"]


async def test_aliases_in_a_circle_are_an_error(server: DnsServer):
    server.follows_aliases = False
    server.add("users.", "CNAME", "b.")
    server.add("b.", "CNAME", "users.")

    with pytest.raises(ServiceDiscoveryError, match="aliases"):
        await first(by_address(server))


@pytest.mark.parametrize("service", ["a..b", "x" * 64, ".".join(["x" * 60] * 5)], ids=["empty label", "label", "name"])
async def test_a_service_that_can_be_no_name_is_one_that_is_not_there(server: DnsServer, service: str):
    assert await first(finder(server), service) == ()
    assert server.asked == []


# What no answer means


async def test_a_name_that_does_not_exist_is_an_empty_list(server: DnsServer):
    assert await first(finder(server)) == ()
    server.add("users.", "TXT", '"something else"')
    assert await first(by_address(server)) == ()


@pytest.mark.parametrize("code", ["SERVFAIL", "REFUSED", "NOTIMP", "FORMERR"])
async def test_a_resolver_that_can_not_answer_is_an_error(server: DnsServer, code: str):
    server.rcodes["*"] = code

    with pytest.raises(ServiceDiscoveryError, match=code):
        await first(finder(server, timeout=0.5))


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("garbage", [b"", b"\x00", b"nonsense" * 10, b"\xff" * 600], ids=len)
async def test_garbage_is_an_error(server: DnsServer, garbage: bytes, tcp: bool):
    server.garbage = garbage

    with pytest.raises(ServiceDiscoveryError):
        await first(finder(server, timeout=0.3, tcp=tcp))


async def test_an_answer_to_another_question_is_none(server: DnsServer):
    server.add(NAME, "SRV", "1 1 8001 one.test.")
    server.foreign = True

    with pytest.raises(ServiceDiscoveryError):
        await first(finder(server, timeout=0.3))


async def test_silence_is_an_error_within_the_time_limit(server: DnsServer):
    server.silent = True

    with pytest.raises(ServiceDiscoveryError, match=r"0\.3|no answer"):
        await first(finder(server, timeout=0.3))


async def test_all_who_wait_for_an_answer_hear_that_there_was_none(server: DnsServer):
    server.silent = True
    discovery = finder(server, timeout=0.3)

    failures = await asyncio.gather(*(first(discovery) for _ in range(5)), return_exceptions=True)

    assert [type(each) for each in failures] == [ServiceDiscoveryError] * 5
    assert discovery.statistics()["lookups"] == 1
    server.silent = False
    assert await first(discovery) == ()


async def test_who_gives_up_lets_the_next_one_ask(server: DnsServer):
    server.silent = True
    discovery = finder(server)
    async with Seen(discovery, "users") as staying:
        async with Seen(discovery, "users"), asyncio.timeout(20):
            while not server.asked:  # noqa: ASYNC110 - the server sets no event
                await asyncio.sleep(0.001)
        server.silent = False
        await staying.until(lambda now: now == (), 20.0)


async def test_a_resolver_that_is_away_is_an_error_and_joined_later(server: DnsServer):
    server.add("users.", "A", "10.0.0.1")
    await server.stop()
    async with Followed(by_address(server, timeout=0.5)) as followed:
        await followed.until(lambda: followed.failure is not None)
        assert followed.lists == []

        await server.start()
        await followed.until_ids("10.0.0.1:8000")


async def test_the_last_list_stays_while_the_resolver_fails(server: DnsServer):
    server.add("users.", "A", "10.0.0.1")
    async with Followed(by_address(server, min_ttl=0.05, max_ttl=0.05, timeout=0.3)) as followed:
        await followed.until_ids("10.0.0.1:8000")
        for fault in ("rcodes", "silent", "garbage"):
            setattr(server, fault, {"rcodes": {"*": "SERVFAIL"}, "silent": True, "garbage": b"x"}[fault])
            await followed.until(lambda: followed.failure is not None)
            server.rcodes, server.silent, server.garbage = {}, False, None
            await followed.until(lambda: followed.failure is None)

        server.add("users.", "A", "10.0.0.1", "10.0.0.2")
        await followed.until_ids("10.0.0.1:8000", "10.0.0.2:8000")
    assert [len(each) for each in followed.lists] == [1, 2]


# How often


async def asked_again(server: DnsServer, discovery: DnsDiscovery, clock: FakeClock) -> float:
    """Seconds after which the same is asked again."""
    supervisor = Supervisor()
    async with Seen(discovery, "users") as seen:
        await seen.until(lambda now: True)
        before, start = len(server.asked), clock.now()
        async with asyncio.timeout(20):
            while len(server.asked) == before:
                await clock.advance(0.5)
                await asyncio.sleep(0.001)
    await supervisor.aclose()
    return clock.now() - start


@pytest.mark.parametrize(
    ("ttl", "settings", "after"),
    [(10, {}, 10.0), (0, {}, 1.0), (86400, {}, 30.0), (10, {"max_ttl": 5}, 5.0), (3, {"min_ttl": 20}, 20.0)],
)
async def test_it_is_asked_again_when_the_ttl_is_over_within_bounds(
    server: DnsServer, ttl: int, settings: dict[str, object], after: float
):
    clock = FakeClock()
    server.add("users.", "A", "10.0.0.1", ttl=ttl)

    assert await asked_again(server, by_address(server, clock=clock, **settings), clock) == pytest.approx(after, abs=1)


async def test_the_shortest_ttl_of_all_that_was_needed_counts(server: DnsServer):
    clock = FakeClock()
    server.add(NAME, "SRV", "1 1 8001 one.test.", ttl=20)
    server.add("one.test.", "A", "10.0.0.1", ttl=4)

    assert await asked_again(server, finder(server, clock=clock), clock) == pytest.approx(4.0, abs=1)


async def test_a_name_that_does_not_exist_is_asked_for_again_when_its_zone_says(server: DnsServer):
    clock = FakeClock()

    assert await asked_again(server, finder(server, clock=clock), clock) == pytest.approx(NEGATIVE_TTL, abs=1)


async def test_several_watchers_of_a_service_share_what_is_asked(server: DnsServer):
    server.add("users.", "A", "10.0.0.1", ttl=60)
    discovery = by_address(server, family="ipv4")
    async with Seen(discovery, "users") as one, Seen(discovery, "users") as two, Seen(discovery, "users") as three:
        for each in (one, two, three):
            await each.until(lambda now: len(now) == 1)

    assert len(server.asked) == 1
    assert discovery.statistics() == {"lookups": 1, "queries": 1, "failures": 0}


async def test_nothing_is_yielded_when_nothing_changed_whatever_the_order(server: DnsServer):
    server.add("users.", "A", "10.0.0.1", "10.0.0.2")
    async with Seen(by_address(server, min_ttl=0.01, max_ttl=0.01), "users") as seen:
        await seen.until(lambda now: len(now) == 2)
        before = len(server.asked)
        server.add("users.", "A", "10.0.0.2", "10.0.0.1")
        async with asyncio.timeout(20):
            while len(server.asked) < before + 5:  # noqa: ASYNC110 - the server sets no event
                await asyncio.sleep(0.01)
        server.add("users.", "A", "10.0.0.3")
        await seen.until(lambda now: len(now) == 1)

    assert [len(each) for each in seen.lists] == [2, 1]


async def test_a_watch_that_is_given_up_in_the_middle_leaves_nothing(server: DnsServer):
    server.silent = True
    async with Seen(finder(server), "users"):
        async with asyncio.timeout(20):
            while not server.asked:  # noqa: ASYNC110 - the server sets no event
                await asyncio.sleep(0.001)


# Settings


def test_it_does_not_list_services():
    assert not issubclass(DnsDiscovery, ServiceList)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"record": "address"}, "say which one the services have"),
        ({"name": "users"}, "has {service} in it"),
        ({"name": "{service}..x"}, "has {service} in it"),
        ({"name": "{service}.{zone}"}, "has {service} in it"),
        ({"min_ttl": 5, "max_ttl": 1}, "less than min_ttl"),
        ({"min_ttl": 0}, "min_ttl"),
    ],
)
def test_settings_that_can_not_work_are_refused(settings: dict[str, object], named: str):
    with pytest.raises(ValidationError) as refusal:
        DnsConfig.model_validate(settings)

    assert named in str(refusal.value)


def test_the_resolver_is_an_address():
    assert nameserver(DiscoveryConfig(backend="dns")) is None
    assert nameserver(DiscoveryConfig(backend="dns", host="10.0.0.53")) == ("10.0.0.53", 53)
    assert nameserver(DiscoveryConfig(backend="dns", port=8600)) == ("127.0.0.1", 8600)
    with pytest.raises(ConfigurationError, match="give its IP address"):
        nameserver(DiscoveryConfig(backend="dns", host="resolver.example.org"))


def test_without_dnspython_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    for name in [each for each in sys.modules if each == "dns" or each.startswith("dns.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dns", None)
    for name in ("fastapi_mesh.discovery.dns", "fastapi_mesh.service_mesh.backends.dns"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(backends, "dns")

    with pytest.raises(ConfigurationError, match=re.escape("pip install 'fastapi-mesh[dns]'")):
        ServiceMesh("a", discovery_backend="dns")


async def test_a_node_finds_services_by_the_described_options(server: DnsServer):
    server.add("_http._tcp.users.", "SRV", "1 1 8001 one.test.")
    server.add("one.test.", "A", "10.0.0.1")
    options = {"host": "127.0.0.1", "port": server.port}

    async with ServiceMesh("orders", discovery_backend="dns", discovery_config=options) as mesh:
        found = await mesh.discover_services("users")
        assert [each.id for each in found] == ["10.0.0.1:8001"]
        assert await mesh.discover_services("nobody") == []


# A real server


@pytest.fixture(scope="module")
def consul_dns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ConsulServer, int]]:
    port = free_port()
    consul = ConsulServer(tmp_path_factory.mktemp("consul-dns"), options=[f"-dns-port={port}"])
    try:
        consul.start()
        yield consul, port
    finally:
        consul.kill()


@pytest.mark.server("consul")
async def test_consul_is_asked_for_srv_and_address_records(consul_dns: tuple[ConsulServer, int]):
    consul, port = consul_dns
    for number in range(1, 9):
        body = {"ID": f"web-{number}", "Name": "web", "Address": f"127.0.0.{number}", "Port": 8000 + number}
        await asyncio.to_thread(consul.call, "PUT", "/v1/agent/service/register", body)
    everything = [f"127.0.0.{number}:{8000 + number}" for number in range(1, 9)]
    settings = {"name": "{service}.service", "domain": "consul", "tcp": True, "min_ttl": 0.05}

    def asked(**given: object) -> DnsDiscovery:
        config = DnsConfig.model_validate({**settings, **given})
        return DnsDiscovery(config, nameserver=("127.0.0.1", port))

    assert places(await first(asked(record="address", service_port=80), "web")) == [
        f"127.0.0.{number}:80" for number in range(1, 9)
    ]
    assert await first(asked(), "nobody") == ()
    async with Seen(asked(), "web") as seen:
        await seen.until(lambda now: places(now) == everything)
        await asyncio.to_thread(consul.call, "PUT", "/v1/agent/service/deregister/web-1")
        await seen.until(lambda now: places(now) == everything[1:])
