"""What slices mean, and what happens to a node that finds others by Kubernetes: expiry, rotation, refusals, drain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, cast

import pytest

from fastapi_mesh import ServiceMesh
from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.objects import Batch
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.kubernetes_slices import ANNOTATION, SERVICE_LABEL, TAG_LABEL, Slices
from fastapi_mesh.exceptions import ConfigurationError, ServiceDiscoveryError
from fastapi_mesh.wire.kubernetes import KubernetesApi
from tests.contracts.kubernetes_backends import change, discovery, put_slice, slice_of
from tests.contracts.server_backends import Followed
from tests.support.kubernetes import FakeKubernetes

pytestmark = [pytest.mark.anyio, pytest.mark.spec("S-102")]


def a_slice(*endpoints: dict[str, Any], name: str = "one", ports: Any = None, **metadata: Any) -> dict[str, Any]:
    labels = {SERVICE_LABEL: "users", **metadata.pop("labels", {})}
    return {
        "metadata": {"name": name, "resourceVersion": "1", "labels": labels, **metadata},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8000}] if ports is None else ports,
        "endpoints": list(endpoints),
    }


def endpoint(address: str = "10.0.0.1", pod: str | None = None, **more: Any) -> dict[str, Any]:
    target = {"targetRef": {"kind": "Pod", "name": pod}} if pod else {}
    return {"addresses": [address], **target, **more}


def listed(*slices: dict[str, Any], port_name: str | None = None) -> tuple[Instance, ...]:
    known = Slices(port_name)
    known.take(Batch({each["metadata"]["name"]: each for each in slices}, complete=True))
    return known.list_of("users")


# What a slice says


def test_an_endpoint_is_an_instance_with_all_that_is_known_of_it() -> None:
    (found,) = listed(
        a_slice(
            endpoint(
                pod="users-7d4b",
                conditions={"ready": True, "serving": True, "terminating": False},
                nodeName="node-3",
                zone="eu-1a",
                hints={"forZones": [{"name": "eu-1a"}, {"name": "eu-1b"}]},
            ),
            labels={f"{TAG_LABEL}canary": "true", "app": "users"},
        )
    )

    assert (found.id, found.address, found.port, found.scheme) == ("users-7d4b", "10.0.0.1", 8000, "http")
    assert (found.health, found.zone, found.tags) == ("healthy", "eu-1a", ("canary",))
    assert found.metadata == {"node": "node-3", "zones": "eu-1a,eu-1b"}


@pytest.mark.parametrize(
    ("conditions", "health"),
    [
        (None, "healthy"),
        ({}, "healthy"),
        ({"ready": None}, "healthy"),
        ({"ready": False}, "unhealthy"),
        ({"ready": False, "serving": True, "terminating": True}, "unhealthy"),
        ({"ready": False, "serving": False, "terminating": True}, None),
    ],
    ids=str,
)
def test_conditions_say_whether_it_gets_calls(conditions: Any, health: str | None) -> None:
    assert [each.health for each in listed(a_slice(endpoint(conditions=conditions)))] == [health][: health is not None]


@pytest.mark.parametrize(
    ("ports", "name", "called"),
    [
        ([{"name": "grpc", "port": 1}, {"name": "http", "port": 2}], None, (2, "http")),
        ([{"name": "metrics", "port": 1}, {"name": "web", "port": 2, "appProtocol": "http"}], None, (2, "http")),
        ([{"name": "metrics", "port": 1}, {"name": "http-api", "port": 2}], None, (2, "http")),
        ([{"port": 1}, {"port": 2}], None, (1, "http")),
        ([{"name": "a", "port": 1}, {"name": "b", "port": 2}], "b", (2, "http")),
        ([{"name": "a", "port": 1}], "b", None),
        ([{"name": "https", "port": 8443}], None, (8443, "https")),
        ([{"port": 443}], None, (443, "https")),
        ([{"name": "x", "port": 1, "appProtocol": "kubernetes.io/h2c"}], None, (1, "h2c")),
        (
            [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "x", "port": 2, "protocol": "TCP"}],
            None,
            (2, "http"),
        ),
        ([], None, None),
        ([{"name": "http", "port": None}], None, None),
    ],
    ids=str,
)
def test_of_several_ports_the_likeliest_or_the_named_one_is_called(ports: Any, name: str | None, called: Any) -> None:
    found = listed(a_slice(endpoint(), ports=ports), port_name=name)
    assert [(each.port, each.scheme) for each in found] == ([called] if called else [])


def test_slices_of_one_service_are_merged_and_a_pod_with_two_addresses_is_one_instance() -> None:
    found = listed(
        a_slice(endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b")),
        a_slice(endpoint("fd00::1", "a"), endpoint("fd00::3", "c"), name="six"),
        a_slice(name="empty") | {"endpoints": None, "ports": None},
    )

    assert [(each.id, each.address) for each in found] == [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "fd00::3")]


def test_what_makes_no_sense_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    found = listed(
        a_slice(
            endpoint("10.0.0.1", "a"),
            {"addresses": []},
            {"conditions": {}},
            endpoint("0.0.0.0", "wildcard"),
            annotations={ANNOTATION: "no JSON"},
        )
    )

    assert [each.id for each in found] == ["a"]
    assert caplog.text.count("can't be used") == 3
    assert "is no JSON object" in caplog.text


def test_a_slice_that_changes_its_service_or_loses_its_label_is_gone_from_the_one_before() -> None:
    known = Slices(None)
    known.take(Batch({"one": a_slice(endpoint(pod="a"))}, complete=True))
    other = a_slice(endpoint(pod="a"), labels={SERVICE_LABEL: "orders"})

    assert known.take(Batch({"one": other})) == {"users", "orders"}
    assert known.list_of("users") == ()
    assert [each.name for each in known.known()] == ["orders"]
    assert known.take(Batch({"one": None})) == {"orders"}
    assert known.known() == ()
    assert len(known) == 0


# With an API


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


def api_of(fake: FakeKubernetes, folder: Path, stack: AsyncExitStack, **settings: Any) -> KubernetesApi:
    api = KubernetesApi(kubeconfig=str(fake.kubeconfig(folder)), **settings)
    stack.push_async_callback(api.aclose)
    return api


def instance(number: int, service: str = "users") -> Instance:
    return Instance(service, f"{service}-{number:03}", "127.0.0.1", 8000)


async def test_a_watch_goes_on_where_it_left_off_and_bookmarks_keep_it_from_expiring(
    fake_kubernetes: FakeKubernetes, tmp_path: Path, stack: AsyncExitStack
) -> None:
    api = api_of(fake_kubernetes, tmp_path, stack, watch_timeout=1.0)
    writer = api_of(fake_kubernetes, tmp_path, stack)
    supervisor = Supervisor()
    stack.push_async_callback(supervisor.aclose)
    async with aclosing(api.follow("endpointslices", "default")) as batches:
        assert (await anext(batches)).complete
        following = supervisor.start(cast("Any", anext(batches)), name="follower of a test")
        for number in range(3):  # of another kind, so that only bookmarks tell the version
            await writer.put_data("default", "other", {"n": str(number)})
        async with asyncio.timeout(20):
            while api.statistics()["watches"] < 3:  # noqa: ASYNC110  # the server ends each after a second
                await asyncio.sleep(0.02)
        await put_slice(writer, slice_of("users", [instance(1)]))
        batch = await following

    assert next(iter(batch.changes.values()))["metadata"]["labels"] == {SERVICE_LABEL: "users"}
    assert api.statistics()["lists"] == 1
    versions = [each.partition("resourceVersion=")[2].partition("&")[0] for each in fake_kubernetes.requests]
    assert sorted({int(each) for each in versions if each}) == [int(each) for each in dict.fromkeys(versions) if each]
    assert len({each for each in versions if each}) >= 2


async def test_an_expired_version_is_listed_anew_without_losing_anything(
    fake_kubernetes: FakeKubernetes, tmp_path: Path, stack: AsyncExitStack
) -> None:
    writer = api_of(fake_kubernetes, tmp_path, stack)
    await put_slice(writer, slice_of("users", [instance(1)]))
    await put_slice(writer, slice_of("users", [instance(2)]))
    found = discovery(fake_kubernetes.kubeconfig(tmp_path), stack)
    async with Followed(found) as followed:
        await followed.until_ids("users-001", "users-002")
        name = slice_of("users", [instance(1)])["metadata"]["name"]
        assert await change(writer, "delete", name) == 200
        await asyncio.to_thread(fake_kubernetes.compact)
        await put_slice(writer, slice_of("users", [instance(3)]))
        await followed.until_ids("users-002", "users-003")
        assert followed.failure is None
    assert all(len(each) >= 1 for each in followed.lists)


async def test_a_list_of_several_pages_whose_token_expires_is_begun_anew(
    fake_kubernetes: FakeKubernetes, tmp_path: Path, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastapi_mesh.wire.kubernetes.PAGE", 2)
    writer = api_of(fake_kubernetes, tmp_path, stack)
    for number in range(5):
        await put_slice(writer, slice_of("users", [instance(number)]))
    api = api_of(fake_kubernetes, tmp_path, stack)
    answer = api._answer
    pages = 0

    async def expiring(request: Any) -> tuple[int, bytes]:
        nonlocal pages
        pages += 1
        if pages == 2:
            await asyncio.to_thread(fake_kubernetes.compact)
        return await answer(request)

    monkeypatch.setattr(api, "_answer", expiring)
    async with aclosing(api.follow("endpointslices", "default")) as batches:
        first = await anext(batches)

    assert len(first.changes) == 5
    assert pages == 1 + 1 + 3


async def test_services_of_other_namespaces_have_the_namespace_in_their_name(
    fake_kubernetes: FakeKubernetes, tmp_path: Path, stack: AsyncExitStack
) -> None:
    state = {"metadata": {"name": "x", "resourceVersion": "1", "labels": {SERVICE_LABEL: "payments"}}}
    body = a_slice(endpoint("10.0.0.9", "pay-1")) | state
    await asyncio.to_thread(fake_kubernetes.control, objects=[(("endpointslices", "billing", "x"), body)])
    found = discovery(fake_kubernetes.kubeconfig(tmp_path), stack)

    async with aclosing(cast("Any", found.watch("payments.billing"))) as lists:
        (instance,) = await anext(lists)
        assert found.statistics() == {"namespaces": 1, "slices": 1, "watchers": 1}
    async with aclosing(cast("Any", found.watch("payments"))) as lists:
        assert await anext(lists) == ()

    assert (instance.service, instance.id, instance.address) == ("payments.billing", "pay-1", "10.0.0.9")
    assert found.statistics()["namespaces"] == 0


async def test_a_mistake_while_following_is_an_error_and_no_watcher_waits_for_ever(
    fake_kubernetes: FakeKubernetes, tmp_path: Path, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(self: Slices, batch: Batch) -> set[str]:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(Slices, "take", mistaken)
    found = discovery(fake_kubernetes.kubeconfig(tmp_path), stack)

    with pytest.raises(ServiceDiscoveryError, match="ended by a mistake"):
        async with asyncio.timeout(20), aclosing(cast("Any", found.watch("users"))) as lists:
            await anext(lists)


async def test_a_hundred_watches_are_one_list_and_one_connection(
    fake_kubernetes: FakeKubernetes, tmp_path: Path, stack: AsyncExitStack
) -> None:
    writer = api_of(fake_kubernetes, tmp_path, stack)
    found = discovery(fake_kubernetes.kubeconfig(tmp_path), stack)
    followed = [Followed(found, f"service-{number}") for number in range(100)]
    for each in followed:
        await stack.enter_async_context(each)
    for each in followed:
        await each.until(lambda each=each: each.lists == [()])  # type: ignore[misc]  # bound on purpose
    await put_slice(writer, slice_of("service-42", [instance(1, "service-42")]))
    await followed[42].until_ids("service-42-001")
    asked = [each for each in fake_kubernetes.requests if each.startswith("GET")]
    assert len(asked) == 2
    for each in followed:
        await each.__aexit__()


async def test_a_token_that_is_rotated_on_disk_is_read_again(
    fake_kubernetes: FakeKubernetes, tmp_path: Path, stack: AsyncExitStack
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    path = fake_kubernetes.kubeconfig(tmp_path)
    content = json.loads(path.read_text())
    content["users"][0]["user"] = {"tokenFile": str(token)}
    path.write_text(json.dumps(content))
    await asyncio.to_thread(fake_kubernetes.allow, "first")
    api = KubernetesApi(kubeconfig=str(path))
    stack.push_async_callback(api.aclose)
    await api.first("endpointslices", "default")

    token.write_text("second")
    await asyncio.to_thread(fake_kubernetes.allow, "second")

    await api.first("endpointslices", "default")


# The start


@pytest.mark.parametrize(
    ("refuse", "named"),
    [
        ("allow", "answered 401: Unauthorized; the ServiceAccount needs the verbs list and watch"),
        ("forbid", "answered 403: /apis/discovery.k8s.io/v1/namespaces/default/endpointslices is forbidden"),
    ],
)
async def test_rights_that_are_missing_end_the_start_and_are_named(
    fake_kubernetes: FakeKubernetes, tmp_path: Path, refuse: str, named: str
) -> None:
    await asyncio.to_thread(getattr(fake_kubernetes, refuse), "other" if refuse == "allow" else "t0ken")
    mesh = ServiceMesh(
        "users",
        discovery_backend="kubernetes",
        discovery_config={"kubernetes": {"kubeconfig": fake_kubernetes.kubeconfig(tmp_path)}},
    )

    with pytest.raises(ConfigurationError) as refusal:
        await mesh.start()

    assert named in str(refusal.value)
    assert "t0ken" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "not found"),
        ("", "can't be used"),
        ("a: [", "kubeconfig"),
        ('{"clusters": [], "contexts": []}', "No current context"),
    ],
)
def test_a_kubeconfig_that_can_t_be_used_is_named(tmp_path: Path, content: str | None, named: str) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ConfigurationError) as refusal:
        KubernetesApi(kubeconfig=str(path))

    assert "discovery.kubernetes.kubeconfig" in str(refusal.value)
    assert named in str(refusal.value)


@pytest.mark.spec("S-325", "B39")
def test_inside_a_pod_kubernetes_is_the_backend_and_its_account_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.delenv("KUBECONFIG", raising=False)

    with pytest.raises(ConfigurationError, match="serviceaccount/token"):
        ServiceMesh("users")


@pytest.mark.spec("B19", "B31", "S-170")
async def test_a_node_calls_and_reads_configuration_and_its_readiness_is_its_registration(
    fake_kubernetes: FakeKubernetes, tmp_path: Path, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    writer = api_of(fake_kubernetes, tmp_path, stack)
    await put_slice(writer, slice_of("orders", [instance(1, "orders")]))
    await writer.put_data("default", "fastapi-mesh-config", {"database.json": '{"url": "postgres://db"}'})
    caplog.set_level("INFO")
    async with ServiceMesh(
        "users",
        discovery_backend="kubernetes",
        discovery_config={"kubernetes": {"kubeconfig": fake_kubernetes.kubeconfig(tmp_path)}},
    ) as mesh:
        assert [each.id for each in await mesh.discover_services("orders")] == ["orders-001"]
        assert (await mesh.get_config("database"))["url"] == "postgres://db"
        await mesh.register_service(port=8000)
        assert mesh.registrations == ()
        assert "its Service finds this pod by its readiness probe" in caplog.text
        assert mesh.life.waits_unregistered
