"""Discovery by a real etcd beyond the contract: its keys, users, TLS, members that go, and what others write there."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trustme

from fastapi_mesh import ServiceMesh
from fastapi_mesh.config.backends import DiscoveryConfig
from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.etcd import EtcdRegistry
from fastapi_mesh.discovery.etcd_rows import Space
from fastapi_mesh.discovery.lists import watching
from fastapi_mesh.discovery.registration import OwnRegistrations
from fastapi_mesh.exceptions import ConfigurationError, ServiceDiscoveryError
from fastapi_mesh.service_mesh.backends.etcd import client, endpoints
from tests.contracts.backends import Seen
from tests.contracts.server_backends import Followed
from tests.support.etcd import EtcdCluster, EtcdServer, new_namespace, text
from tests.support.fault_proxy import FaultProxy

pytestmark = [pytest.mark.anyio, pytest.mark.server("etcd"), pytest.mark.spec("S-102")]

Make = Callable[..., EtcdRegistry]


@pytest.fixture
def space() -> Space:
    return Space(namespace=new_namespace())


@pytest.fixture
async def registry(space: Space) -> AsyncIterator[Make]:
    made = []

    def make(port: int, *, space: Space = space, lease: float = 60.0, heartbeat: float = 5.0, **settings: object):
        given = {"backend": "etcd", "host": "127.0.0.1", "port": port, "request_timeout": 2.0, **settings}
        config = DiscoveryConfig.model_validate(given)
        made.append(EtcdRegistry(client(config), space=space, lease=lease, heartbeat=heartbeat))
        return made[-1]

    yield make
    for each in made:
        await each.aclose()


def instance(number: int = 1, service: str = "users", **fields: object) -> Instance:
    return Instance(service, f"{service}-{number}", "127.0.0.1", 8000 + number, **fields)  # type: ignore[arg-type]


async def first(registry: EtcdRegistry, service: str = "users") -> tuple[Instance, ...]:
    async with asyncio.timeout(10), watching(registry, service) as lists:
        return await anext(lists)


def ids(instances: tuple[Instance, ...]) -> list[str]:
    return [each.id for each in instances]


# Keys and documents


async def test_a_key_says_service_and_id_whatever_their_characters_and_its_value_is_json(
    etcd_server: EtcdServer, space: Space, registry: Make
):
    await registry(etcd_server.port).register(instance(service="a/b ü", metadata={"team": "größe"}, zone="eu"))

    folder = f"fastapi-mesh/{space.namespace.replace(' ', '%20')}/instances/"
    (key,) = etcd_server.keys(folder)
    service, id, owner = key.removeprefix(folder).split("/")
    assert (service, id) == ("a%2Fb%20%C3%BC", "a%2Fb%20%C3%BC-1")
    assert len(owner) == 16
    (stored,) = etcd_server.call("kv/range", {"key": text(key)})["kvs"]  # type: ignore[misc]  # JSON
    document = json.loads(base64.b64decode(stored["value"]))
    assert int(stored["lease"]) > 0
    assert document == {
        "address": "127.0.0.1",
        "port": 8001,
        "born": 1,
        "scheme": "http",
        "health": "healthy",
        "weight": 1.0,
        "tags": [],
        "metadata": {"team": "größe"},
        "version": None,
        "zone": "eu",
        "base_path": "",
        "health_check": None,
    }
    assert ids(await first(registry(etcd_server.port), "a/b ü")) == ["a/b ü-1"]


async def test_what_another_program_writes_needs_an_address_and_a_port_only(
    etcd_server: EtcdServer, space: Space, registry: Make
):
    folder = space.folder("instances").decode()
    etcd_server.put(f"{folder}users/from-a-script", '{"address": "10.0.0.1", "port": 80, "someday": []}')

    assert await first(registry(etcd_server.port)) == (Instance("users", "from-a-script", "10.0.0.1", 80),)


async def test_a_key_that_is_no_instance_is_told_once_and_costs_nobody_else_anything(
    etcd_server: EtcdServer, space: Space, registry: Make, caplog: pytest.LogCaptureFixture
):
    folder = space.folder("instances").decode()
    etcd_server.put(f"{folder}users/good", '{"address": "10.0.0.1", "port": 80}')
    bad = {
        "users/bad": "{",
        "users/bad2": '["address"]',
        "users/bad3": '{"address": "10.0.0.2"}',
        "users/bad4": '{"address": "0.0.0.0", "port": 80}',
        "users/bad5": '{"address": "10.0.0.2", "port": 80, "weight": -1}',
        "users/bad6": '{"address": "10.0.0.2", "port": 80, "metadata": 5}',
        "users/a/b/c/d": '{"address": "10.0.0.2", "port": 80}',
        "users": "x",
        "users/%FF": '{"address": "10.0.0.2", "port": 80}',
        "users/deep": "[" * 100_000,
    }
    async with Seen(registry(etcd_server.port), "users") as seen:
        for key, value in bad.items():
            etcd_server.put(f"{folder}{key}", value)
        etcd_server.put(f"{folder}users/good2", '{"address": "10.0.0.9", "port": 80}')
        await seen.until(lambda now: ids(now) == ["good", "good2"])

    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == len(bad)


async def test_namespaces_and_prefixes_are_told_apart(etcd_server: EtcdServer, space: Space, registry: Make):
    await registry(etcd_server.port).register(instance())

    assert await first(registry(etcd_server.port, space=Space(namespace=f"{space.namespace}/x"))) == ()
    assert await first(registry(etcd_server.port, space=Space("other", space.namespace))) == ()


async def test_a_process_restarted_on_its_port_replaces_the_crashed_one_of_another_service_too(
    etcd_server: EtcdServer, registry: Make
):
    await registry(etcd_server.port).register(instance(1, "users"))
    view = registry(etcd_server.port)
    async with Seen(view, "users") as users, Seen(view, "orders") as orders:
        await users.until(lambda now: ids(now) == ["users-1"])

        await registry(etcd_server.port).register(instance(1, "orders"))

        await users.until(lambda now: now == ())
        await orders.until(lambda now: ids(now) == ["orders-1"])


# Watching


async def test_all_services_of_a_process_are_one_watch(etcd_server: EtcdServer, registry: Make):
    view, writer = registry(etcd_server.port), registry(etcd_server.port)
    seen = [Seen(view, f"service-{number}") for number in range(20)]
    for each in seen:
        await each.__aenter__()
    for each in seen:
        await each.until(lambda now: now == ())
    for number in range(20):
        await writer.register(instance(number, f"service-{number}"))
    for each in seen:
        await each.until(lambda now: len(now) == 1)
    assert view.statistics()["watches"] == 1
    assert view.statistics()["rows"] == 20
    for each in seen:
        await each.__aexit__()
    assert view.statistics()["watchers"] == 0


async def test_a_quiet_watch_is_opened_anew_and_misses_nothing(etcd_server: EtcdServer, space: Space, registry: Make):
    quick = Space(namespace=space.namespace, watch_idle=0.05)
    view, writer = registry(etcd_server.port, space=quick), registry(etcd_server.port)
    async with Seen(view, "users") as seen:
        await seen.until(lambda now: now == ())
        for number in range(1, 6):
            before = view.statistics()["watches"]
            async with asyncio.timeout(10):
                while view.statistics()["watches"] < before + 2:  # noqa: ASYNC110 - sets no event
                    await asyncio.sleep(0.01)
            await writer.register(instance(number))
            await seen.until(lambda now, number=number: len(now) == number)  # type: ignore[misc]  # bound on purpose
    assert [len(each) for each in seen.lists] == [0, 1, 2, 3, 4, 5]
    assert view.statistics()["snapshots"] == 1


async def test_what_happened_while_the_way_was_cut_is_seen_although_it_was_compacted(
    etcd_server: EtcdServer, registry: Make
):
    writer = registry(etcd_server.port)
    leaving = await writer.register(instance(1))
    await writer.register(instance(2))
    async with FaultProxy(etcd_server.port) as proxy:
        view = registry(proxy.port)
        async with Followed(view) as followed:
            await followed.until_ids("users-1", "users-2")
            await proxy.refuse()
            await followed.until(lambda: followed.failure is not None)
            await leaving.withdraw()
            await writer.register(instance(3))
            etcd_server.compact()
            await proxy.accept()
            await followed.until_ids("users-2", "users-3")
        assert view.statistics()["snapshots"] == 2
        await view.aclose()


@pytest.mark.spec("X-57")
async def test_an_etcd_that_lost_its_data_shortens_no_list_while_nodes_come_back(
    etcd_server: EtcdServer, registry: Make
):
    supervisor = Supervisor()
    own = OwnRegistrations(registry(etcd_server.port, lease=3.0, heartbeat=0.2), supervisor)
    await own.add(instance(1))
    async with Followed(registry(etcd_server.port)) as followed:
        await followed.until_ids("users-1")

        await asyncio.to_thread(etcd_server.restart, empty=True)
        await registry(etcd_server.port).register(instance(2))

        await followed.until_ids("users-1", "users-2")
        async with Seen(registry(etcd_server.port), "users") as elsewhere:
            await elsewhere.until(lambda now: len(now) == 2, 20.0)
        assert [ids(each) for each in followed.lists] == [["users-1"], ["users-1", "users-2"]]
    await own.withdraw_all()
    await supervisor.aclose()


@pytest.mark.spec("X-57")
async def test_an_etcd_that_hung_until_all_leases_had_ended_empties_no_list(
    etcd_server: EtcdServer, space: Space, registry: Make
):
    supervisor = Supervisor()
    own = OwnRegistrations(registry(etcd_server.port, lease=1.0, heartbeat=0.3, request_timeout=1.0), supervisor)
    for number in range(1, 5):
        await own.add(instance(number))
    watcher = registry(etcd_server.port, space=Space(namespace=space.namespace, watch_idle=0.5), request_timeout=0.5)
    async with Followed(watcher) as followed:
        await followed.until(lambda: len(followed.ids) == 4)
        etcd_server.pause()
        try:
            await followed.until(lambda: followed.failure is not None)
            await asyncio.sleep(2.0)  # etcd's own clock goes on
        finally:
            etcd_server.resume()

        await followed.until(lambda: followed.failure is None)
        async with Seen(registry(etcd_server.port), "users") as elsewhere:
            await elsewhere.until(lambda now: len(now) == 4, 30.0)
        await followed.until(lambda: len(followed.ids) == 4)
        assert min(len(each) for each in followed.lists) >= 2
    await own.withdraw_all()
    await supervisor.aclose()


# Registering


async def test_a_registration_that_is_given_up_leaves_nothing(etcd_server: EtcdServer, space: Space, registry: Make):
    supervisor = Supervisor()
    for delay in (0.0, 0.002, 0.004, 0.008, 0.016):
        task = supervisor.start(registry(etcd_server.port).register(instance()), name="registers")
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and task.exception() is None:
            await task.result().withdraw()

    async with Seen(registry(etcd_server.port), "users") as seen:
        await seen.until(lambda now: now == ())
    assert etcd_server.keys(space.folder("instances").decode()) == []
    await supervisor.aclose()


async def test_an_application_of_this_process_is_refused(etcd_server: EtcdServer, registry: Make):
    async def app(scope: object, receive: object, send: object) -> None:
        """Is never called."""

    with pytest.raises(ConfigurationError, match="inside this process"):
        await registry(etcd_server.port).register(Instance("a", "a", "a", 0, scheme="asgi", app=app))


# Members


def of_all(cluster: EtcdCluster) -> dict[str, object]:
    return {"host": None, "port": None, "etcd": {"endpoints": [each.url for each in cluster.servers]}}


def fewer(settings: dict[str, object], **given: object) -> DiscoveryConfig:
    chosen = {name: value for name, value in settings.items() if value is not None}
    return DiscoveryConfig.model_validate({"backend": "etcd", **chosen, **given})


async def test_when_the_member_that_is_asked_goes_the_next_one_is_asked_and_no_list_is_lost(
    etcd_cluster: EtcdCluster, space: Space
):
    config = fewer(of_all(etcd_cluster), request_timeout=5.0)
    view = EtcdRegistry(client(config), space=space)
    writer = EtcdRegistry(client(config), space=space, lease=5.0, heartbeat=0.5)
    supervisor = Supervisor()
    own = OwnRegistrations(writer, supervisor)
    assert await own.add(instance(1))
    async with Followed(view) as followed:
        await followed.until_ids("users-1")

        await asyncio.to_thread(etcd_cluster.servers[0].kill)
        for number in (2, 3):
            await own.add(instance(number))
        await followed.until_ids("users-1", "users-2", "users-3")

        assert ids(followed.lists[0]) == ["users-1"]
        assert all("users-1" in ids(each) for each in followed.lists)
    assert view.statistics()["failovers"] >= 1
    await own.withdraw_all()
    await supervisor.aclose()
    await view.aclose()
    await writer.aclose()


async def test_a_member_that_has_lost_the_others_is_an_error_and_the_list_stays(
    etcd_cluster: EtcdCluster, space: Space, registry: Make
):
    alone = etcd_cluster.servers[2]
    await registry(alone.port, request_timeout=1.0).register(instance(1))
    async with Followed(registry(alone.port, request_timeout=1.0)) as followed:
        await followed.until_ids("users-1")

        for each in etcd_cluster.servers[:2]:
            await asyncio.to_thread(each.kill)
        await followed.until(lambda: followed.failure is not None, 30.0)
        assert followed.ids == ["users-1"]

        await asyncio.to_thread(etcd_cluster.reset)
        await followed.until(lambda: followed.failure is None, 30.0)
    assert [ids(each) for each in followed.lists] == [["users-1"]]


# Users


async def test_a_token_that_a_restart_has_ended_is_fetched_anew(etcd_users_server: EtcdServer, registry: Make):
    name, password = etcd_users_server.user("fastapi-mesh/")
    node = registry(etcd_users_server.port, username=name, password=password)
    registration = await node.register(instance(1))
    async with Followed(node) as followed:
        await followed.until_ids("users-1")

        await asyncio.to_thread(etcd_users_server.restart)

        async with asyncio.timeout(20):
            while True:
                try:
                    await registration.beat()
                    break
                except ServiceDiscoveryError:
                    await asyncio.sleep(0.05)
        await node.register(instance(2))
        await followed.until_ids("users-1", "users-2")


@pytest.mark.parametrize(
    ("rights", "refused"), [("READ", "register"), ("WRITE", "open")], ids=["read only", "write only"]
)
async def test_a_user_without_the_right_is_told_what_is_missing(
    etcd_users_server: EtcdServer, registry: Make, rights: str, refused: str
):
    name, password = etcd_users_server.user("fastapi-mesh/", rights=rights)
    node = registry(etcd_users_server.port, username=name, password=password)
    works = {"register": node.open, "open": lambda: node.register(instance())}[refused]
    fails = {"register": lambda: node.register(instance()), "open": node.open}[refused]

    await works()
    with pytest.raises(ConfigurationError, match=f"permission denied for the user '{name}'"):
        await fails()


async def test_a_server_that_wants_a_user_says_so(etcd_users_server: EtcdServer, registry: Make):
    with pytest.raises(ConfigurationError, match="give username and password"):
        await registry(etcd_users_server.port).open()


async def test_a_user_for_a_server_without_users_is_no_mistake(etcd_server: EtcdServer, registry: Make):
    await registry(etcd_server.port, username="mesh", password="secret").open()


# TLS


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    for name in ("ca", "other"):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / f"{name}.pem")
        if name == "ca":
            authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
        authority.issue_cert("mesh").private_key_and_cert_chain_pem.write_to_path(folder / f"client-of-{name}.pem")
    return folder


@pytest.fixture(scope="module")
def etcd_tls(tmp_path_factory: pytest.TempPathFactory, tls_files: Path):
    pem = str(tls_files / "server.pem")
    options = ["--cert-file", pem, "--key-file", pem, "--trusted-ca-file", str(tls_files / "ca.pem")]
    server = EtcdServer(tmp_path_factory.mktemp("etcd-tls"), options=[*options, "--client-cert-auth"], scheme="https")
    try:
        server.start()
        yield server
    finally:
        server.kill()


async def test_over_tls_with_an_own_authority_and_a_client_certificate(
    etcd_tls: EtcdServer, tls_files: Path, registry: Make
):
    given = {"ca_path": tls_files / "ca.pem", "cert_path": tls_files / "client-of-ca.pem"}
    node = registry(etcd_tls.port, **given)
    async with asyncio.timeout(20):
        while True:  # there is no looking whether it is ready without a certificate
            try:
                await node.open()
                break
            except ServiceDiscoveryError:
                await asyncio.sleep(0.05)

    await node.register(instance(1))

    assert ids(await first(registry(etcd_tls.port, **given))) == ["users-1"]


async def test_a_server_of_another_authority_is_a_mistake_of_the_settings(
    etcd_tls: EtcdServer, tls_files: Path, registry: Make
):
    node = registry(etcd_tls.port, ca_path=tls_files / "other.pem", cert_path=tls_files / "client-of-ca.pem")

    with pytest.raises(ConfigurationError, match=r"TLS: .*certificate verify failed"):
        await node.open()


@pytest.mark.parametrize("files", [{}, {"cert_path": "client-of-other.pem"}], ids=["none", "of another authority"])
async def test_a_server_that_does_not_take_the_client_certificate_is_told_with_a_hint(
    etcd_tls: EtcdServer, tls_files: Path, registry: Make, files: dict[str, str]
):
    given = {name: tls_files / file for name, file in files.items()}
    node = registry(etcd_tls.port, ca_path=tls_files / "ca.pem", **given)

    with pytest.raises((ConfigurationError, ServiceDiscoveryError), match="certificate"):
        await node.open()


# Settings


def test_endpoints_are_the_host_and_those_listed():
    listed = {"endpoints": ["b:2379", "https://c:2379"]}

    assert endpoints(fewer({})) == ("http://127.0.0.1:2379",)
    assert endpoints(fewer({"host": "a", "etcd": listed})) == ("http://a:2379", "http://b:2379", "https://c:2379")
    assert endpoints(fewer({"etcd": listed, "tls": True})) == ("https://b:2379", "https://c:2379")


def test_a_user_without_a_password_is_refused():
    with pytest.raises(ConfigurationError, match="both username and password"):
        client(fewer({"username": "mesh"}))


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({"host": "127.0.0.1"}, "127.0.0.1"),
        ({}, "127.0.0.1"),
        ({"etcd": {"endpoints": ["127.0.0.7:2379", "127.0.0.8:2379"]}}, "127.0.0.1"),
        ({"etcd": {"endpoints": ["https://[::1]:2379"]}}, "127.0.0.1"),
    ],
)
async def test_a_server_on_all_interfaces_is_registered_where_others_of_this_etcd_reach_it(
    settings: dict[str, object], address: str
):
    async with AsyncExitStack() as stack:
        registry = EtcdRegistry(client(fewer(settings)))
        stack.push_async_callback(registry.aclose)

        assert await registry.own_address() == address


async def test_the_interface_that_leads_to_an_endpoint_elsewhere_is_asked_for():
    registry = EtcdRegistry(client(fewer({"etcd": {"endpoints": [f"{'x' * 64}.test:2379"]}})))

    with pytest.raises(ServiceDiscoveryError, match="can't be resolved"):
        await registry.own_address()


# A whole node


@pytest.mark.spec("S-102", "S-103")
async def test_nodes_find_each_other_by_the_described_options(etcd_server: EtcdServer, space: Space):
    options = {"host": "127.0.0.1", "port": etcd_server.port}
    namespace = space.namespace.replace(" ", "-")

    def node(name: str) -> ServiceMesh:
        return ServiceMesh(name, namespace=namespace, discovery_backend="etcd", discovery_config=options)

    async with node("users") as one, node("orders") as two:
        await one.register_service(address="127.0.0.1", port=9001)
        assert [each.port for each in await two.discover_services("users")] == [9001]

    async with node("payments") as three:
        assert await three.discover_services("users") == []


@pytest.mark.spec("B31", "S-170")
async def test_configuration_is_read_from_the_etcd_of_discovery(etcd_server: EtcdServer, space: Space):
    namespace = space.namespace.replace(" ", "-")
    etcd_server.put(f"fastapi-mesh/{namespace}/config/database", '{"pool": 20}')
    options = {"host": "127.0.0.1", "port": etcd_server.port}

    async with ServiceMesh("users", namespace=namespace, discovery_backend="etcd", discovery_config=options) as mesh:
        assert (await mesh.get_config("database"))["pool"] == 20
