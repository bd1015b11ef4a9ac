"""The registry on a real Consul: TLS, addresses, maintenance mode, services of others, and many of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trustme

from fastapi_mesh import ServiceMesh
from fastapi_mesh.config.backends import DiscoveryConfig
from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.consul import ConsulRegistry
from fastapi_mesh.discovery.registration import OwnRegistrations
from fastapi_mesh.exceptions import ConfigurationError, ServiceDiscoveryError
from fastapi_mesh.service_mesh.backends import Surroundings
from fastapi_mesh.service_mesh.backends.consul import discovery
from tests.contracts.backends import Seen
from tests.contracts.server_backends import Followed
from tests.support.consul import ConsulServer
from tests.support.fault_proxy import FaultProxy
from tests.support.process import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.server("consul"), pytest.mark.spec("S-102", "S-103")]

Maker = Callable[..., ConsulRegistry]
WEB = Instance("web", "web-1", "127.0.0.1", 8001)


@pytest.fixture
async def registry_of() -> AsyncIterator[Maker]:
    async with AsyncExitStack() as stack:

        def make(port: int, **settings: object) -> ConsulRegistry:
            config = DiscoveryConfig(backend="consul", host="127.0.0.1", port=port, request_timeout=5.0, **settings)  # type: ignore[arg-type]  # real settings
            registry = discovery(config, Surroundings("shop", SystemClock(), Supervisor()))
            stack.push_async_callback(registry.aclose)
            return registry

        yield make


# TLS


class Secure:
    """A Consul that speaks TLS only to clients with a certificate of its CA."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("node")
        self.ca, self.key, self.cert = folder / "ca.pem", folder / "client.key", folder / "client.pem"
        authority.cert_pem.write_to_path(self.ca)
        client.private_key_pem.write_to_path(self.key)
        client.cert_chain_pems[0].write_to_path(self.cert)
        server.private_key_pem.write_to_path(folder / "server.key")
        server.cert_chain_pems[0].write_to_path(folder / "server.pem")
        self.stranger = folder / "stranger.pem"
        trustme.CA().cert_pem.write_to_path(self.stranger)
        self.port = free_port()
        self.consul = ConsulServer(
            folder,
            configuration={
                "ports": {"https": self.port},
                "cert_file": str(folder / "server.pem"),
                "key_file": str(folder / "server.key"),
                "ca_file": str(self.ca),
                "verify_incoming_https": True,
            },
        )


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    made = Secure(tmp_path_factory.mktemp("consul-tls"))
    made.consul.start()
    yield made
    made.consul.kill()


async def test_over_tls_with_a_client_certificate_all_works(registry_of: Maker, secure: Secure) -> None:
    registry = registry_of(secure.port, ca_path=secure.ca, cert_path=secure.cert, key_path=secure.key)
    await registry.open()
    registration = await registry.register(WEB)
    async with Seen(registry, "web") as seen:
        await seen.until(lambda now: now == (WEB,))
        await registration.withdraw()
        await seen.until(lambda now: now == ())


async def test_a_server_of_a_ca_that_is_not_trusted_is_told_at_the_start(registry_of: Maker, secure: Secure) -> None:
    with pytest.raises(ConfigurationError, match=r"discovery.tls: .*can't be trusted: CERTIFICATE_VERIFY_FAILED"):
        await registry_of(secure.port, ca_path=secure.stranger).open()


async def test_a_missing_client_certificate_is_told_at_the_start(registry_of: Maker, secure: Secure) -> None:
    with pytest.raises(ConfigurationError, match=r"discovery.tls"):
        await registry_of(secure.port, ca_path=secure.ca).open()


async def test_speaking_tls_to_a_plain_port_and_the_other_way_round_is_told(registry_of: Maker, secure: Secure) -> None:
    with pytest.raises(ConfigurationError, match=r"discovery.tls"):
        await registry_of(secure.consul.port, ca_path=secure.ca).open()
    with pytest.raises(ConfigurationError, match=r"wants TLS; set tls=True"):
        await registry_of(secure.port).open()


@pytest.mark.parametrize("which", ["ca_path", "cert_path"])
async def test_material_that_is_none_is_named(registry_of: Maker, tmp_path: Path, which: str) -> None:
    (tmp_path / "x.pem").write_text("no PEM")
    with pytest.raises(ConfigurationError, match=which):
        registry_of(1, **{which: tmp_path / "x.pem"})


async def test_an_answer_without_end_is_given_up(registry_of: Maker) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nx-consul-index: 1\r\n\r\n[")
        with contextlib.suppress(OSError):
            while True:
                writer.write(b" " * 1_000_000)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    async with server:
        registry = registry_of(server.sockets[0].getsockname()[1])
        with pytest.raises(ServiceDiscoveryError, match="longer than 67108864 bytes"):
            await anext(registry.watch("web"))


# Services of others


async def test_services_that_others_registered_are_found_and_their_checks_count(
    registry_of: Maker, consul_server: ConsulServer
) -> None:
    check = {"CheckID": "legacy-check", "TTL": "60s", "Status": "passing"}
    body = {"ID": "legacy-1", "Name": "legacy", "Port": 9000, "Tags": ["v1"], "Meta": {"zone": "a"}, "Check": check}
    consul_server.call("PUT", "/v1/agent/service/register", body)
    async with Seen(registry_of(consul_server.port), "legacy") as seen:
        found = await seen.until(lambda now: len(now) == 1)
        assert (found[0].address, found[0].port, found[0].zone, found[0].tags) == ("127.0.0.1", 9000, "a", ("v1",))

        for status, health in (("warn", "degraded"), ("fail", "unhealthy"), ("pass", "healthy")):
            consul_server.call("PUT", f"/v1/agent/check/{status}/legacy-check")
            await seen.until(lambda now, health=health: now[0].health == health)  # type: ignore[misc]  # on purpose


async def test_maintenance_mode_makes_an_instance_of_ours_unhealthy(
    registry_of: Maker, consul_server: ConsulServer
) -> None:
    registry = registry_of(consul_server.port)
    registration = await registry.register(WEB)
    async with Seen(registry, "web") as seen:
        await seen.until(lambda now: now == (WEB,))
        (id,) = consul_server.call("GET", "/v1/agent/services")  # type: ignore[misc]  # a table
        consul_server.call("PUT", f"/v1/agent/service/maintenance/{id}?enable=true&reason=upgrade")
        await seen.until(lambda now: now[0].health == "unhealthy")
        consul_server.call("PUT", f"/v1/agent/service/maintenance/{id}?enable=false")
        await seen.until(lambda now: now[0].health == "healthy")
    await registration.withdraw()


async def test_only_instances_with_all_tags_are_seen_where_that_is_set(
    registry_of: Maker, consul_server: ConsulServer
) -> None:
    registry = registry_of(consul_server.port, consul={"tags": ["eu", "v2"]})
    made = [
        await registry.register(Instance("web", f"web-{number}", "127.0.0.1", 8000 + number, tags=tags))
        for number, tags in enumerate([("eu",), ("eu", "v2"), ()])
    ]
    async with Seen(registry, "web") as seen:
        await seen.until(lambda now: [each.id for each in now] == ["web-1"])
    for each in made:
        await each.withdraw()


async def test_an_enterprise_setting_is_refused_by_name_where_consul_has_none(
    registry_of: Maker, consul_server: ConsulServer
) -> None:
    with pytest.raises(ConfigurationError, match="Namespaces are a Consul Enterprise feature"):
        await registry_of(consul_server.port, consul={"namespace": "team"}).open()


async def test_stale_reads_see_a_change_too(registry_of: Maker, consul_server: ConsulServer) -> None:
    registry = registry_of(consul_server.port, consul={"consistency": "stale"})
    async with Seen(registry, "web") as seen:
        await seen.until(lambda now: now == ())
        registration = await registry.register(WEB)
        await seen.until(lambda now: now == (WEB,))
        await registration.withdraw()


# Rights


async def test_without_the_right_to_register_the_service_is_named(
    registry_of: Maker, consul_acl_server: ConsulServer
) -> None:
    rules = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
    registry = registry_of(consul_acl_server.port, token=consul_acl_server.token_for(rules)[0])
    await registry.open()

    with pytest.raises(ConfigurationError, match='needs service:write for "web"'):
        await registry.register(WEB)


async def test_without_a_token_a_consul_that_asks_for_one_is_told_at_the_start(consul_acl_server: ConsulServer) -> None:
    mesh = ServiceMesh(
        "a", discovery_backend="consul", discovery_config={"host": "127.0.0.1", "port": consul_acl_server.port}
    )
    with pytest.raises(ConfigurationError, match="lets nobody read its services without an ACL token"):
        await mesh.start()
    await mesh.stop()


async def test_a_token_from_a_file_may_end_with_its_newline_and_one_that_is_none_is_refused(
    registry_of: Maker, consul_acl_server: ConsulServer
) -> None:
    rules = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
    await registry_of(consul_acl_server.port, token=consul_acl_server.token_for(rules)[0] + "\n").open()

    for token in ("t\r\nx-evil: 1", "tökén"):
        with pytest.raises(ConfigurationError, match="only printable ASCII") as refusal:
            registry_of(consul_acl_server.port, token=token)
        assert token not in str(refusal.value)


# Many


@pytest.mark.spec("X-57")
async def test_connections_stay_few_and_every_change_is_seen_however_many_services_are_watched(
    registry_of: Maker, consul_server: ConsulServer
) -> None:
    names = [f"many-{number}" for number in range(20)]
    async with FaultProxy(consul_server.port) as proxy, AsyncExitStack() as stack:
        registry = registry_of(proxy.port, consul={"max_watches": 5})
        past = registry_of(consul_server.port)
        all_seen = [await stack.enter_async_context(Seen(registry, name)) for name in names]
        for seen in all_seen:
            await seen.until(lambda now: now == ())
        made = [await past.register(Instance(name, name, "127.0.0.1", 8000)) for name in names]
        for seen in all_seen:
            await seen.until(lambda now: len(now) == 1, timeout=30)

        assert registry.statistics() == {"watches": 20, "blocking": 5}
        assert proxy.connections <= 5 + 16
        for each in made:
            await each.withdraw()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    """A Consul that takes 20 connections from one address, instead of 200."""
    limits = {"limits": {"http_max_conns_per_client": 20}}
    server = ConsulServer(tmp_path_factory.mktemp("consul-narrow"), configuration=limits)
    server.start()
    yield server
    server.kill()


@pytest.mark.spec("X-57")
async def test_where_consul_takes_fewer_connections_all_services_are_seen_and_heartbeats_go_on(
    registry_of: Maker, narrow: ConsulServer
) -> None:
    """As several processes of one machine with many services each see it."""
    settings = {"consul": {"wait": 0.5}, "lease": 3.0, "heartbeat": 0.5}
    registry = registry_of(narrow.port, **settings)
    supervisor = Supervisor()
    own = OwnRegistrations(registry, supervisor)
    assert await own.add(WEB)
    async with AsyncExitStack() as stack:
        all_followed = [
            await stack.enter_async_context(Followed(registry, "web" if number == 0 else f"s-{number}"))
            for number in range(30)
        ]
        for followed in all_followed:
            await followed.until(lambda followed=followed: len(followed.lists) > 0)  # type: ignore[misc]  # on purpose
        assert registry.statistics()["blocking"] < 20
        assert all_followed[0].ids == ["web-1"]
    await own.withdraw_all()
    await supervisor.aclose()
