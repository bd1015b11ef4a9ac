"""Dynamic routing: routes that appear and vanish with the services that discovery knows."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.auth import APIKeyAuthProvider
from fastapi_mesh.api_gateway.dynamic import HIDDEN
from fastapi_mesh.core.instance import Instance
from fastapi_mesh.discovery.memory import MemoryRegistry
from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.service_mesh import ServiceMesh
from tests.api_gateway.gateway_support import RawUpstream, parts, request, serving, talk, values
from tests.discovery.scripted import ScriptedDiscovery
from tests.support.process import Processes

pytestmark = pytest.mark.anyio

NODE = Path(__file__).parents[1] / "discovery" / "local_node.py"


def instance_of(service: str, url: str, id: str = "1", tags: tuple[str, ...] = ()) -> Instance:
    return Instance(service, f"{service}-{id}", "127.0.0.1", int(url.rpartition(":")[2]), tags=tags)


def new_gateway(registry: MemoryRegistry, **settings: object) -> APIGateway:
    mesh = ServiceMesh("api-gateway", discovery=registry, enable_metrics=False)
    given = {"dynamic_routing": True, "route_prefix": "/api/v1", **settings}
    return APIGateway(service_mesh=mesh, **given)  # type: ignore[arg-type]


async def eventually(condition: Callable[[], bool], timeout: float = 30.0) -> float:
    """Wait until `condition` holds; the seconds that it took."""
    started = time.monotonic()
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110  # what changes is the gateway's table, which has no event
            await asyncio.sleep(0.005)
    return time.monotonic() - started


def has_route(gateway: APIGateway, path: str) -> bool:
    return gateway.find({"type": "http", "method": "GET", "raw_path": path.encode(), "headers": []}) is not None


@asynccontextmanager
async def opened(gateway: APIGateway) -> AsyncIterator[APIGateway]:
    async with gateway.opened({}):
        yield gateway


@pytest.mark.spec("S-066", "S-203", "B1")
async def test_each_service_has_a_route_whose_prefix_is_stripped() -> None:
    registry = MemoryRegistry()
    async with RawUpstream() as users, RawUpstream() as orders:
        await registry.register(instance_of("user-service", users.url))
        await registry.register(instance_of("order-service", orders.url))
        async with serving(new_gateway(registry)) as port:
            found = await talk(port, request("GET /api/v1/user-service/users/a%2Fb?q=1"))
            bare = await talk(port, request("DELETE /api/v1/order-service"))
            unknown = await talk(port, request("GET /api/v1/payment-service/x"))
            beside = await talk(port, request("GET /api/v1/user-servicex/x"))

    assert [parts(raw)[0] for raw in (found, bare, unknown, beside)] == [200, 200, 404, 404]
    assert users.received[0].startswith(b"GET /users/a%2Fb?q=1 HTTP/1.1\r\n")
    assert values(users.received[0], b"x-forwarded-prefix") == [b"/api/v1/user-service"]
    assert orders.received[0].startswith(b"DELETE / HTTP/1.1\r\n")


@pytest.mark.spec("S-066", "S-203")
async def test_a_route_appears_with_its_first_instance_and_vanishes_with_its_last() -> None:
    registry = MemoryRegistry()
    async with RawUpstream() as upstream, opened(new_gateway(registry)) as gateway:
        assert not has_route(gateway, "/api/v1/users/1")
        one = await registry.register(instance_of("users", upstream.url))
        await eventually(lambda: has_route(gateway, "/api/v1/users/1"))
        two = await registry.register(instance_of("users", "http://127.0.0.1:1", "2"))

        await one.withdraw()
        await asyncio.sleep(0.02)
        still = has_route(gateway, "/api/v1/users/1")
        await two.withdraw()
        await eventually(lambda: not has_route(gateway, "/api/v1/users/1"))

    assert still
    assert not has_route(gateway, "/api/v1/users/1"), "a gateway that is closed has no dynamic routes"


@pytest.mark.spec("S-203")
async def test_a_service_may_stay_without_a_route_and_the_gateway_has_none_to_itself() -> None:
    registry = MemoryRegistry()
    url = "http://127.0.0.1:"
    await registry.register(instance_of("public", f"{url}1"))
    await registry.register(instance_of("internal", f"{url}2", "1"))
    await registry.register(instance_of("internal", f"{url}3", "2", (HIDDEN,)))
    await registry.register(instance_of("api-gateway", f"{url}4"))
    await registry.register(instance_of("a/../b", f"{url}5"))
    await registry.register(instance_of("größe", f"{url}6"))

    async with opened(new_gateway(registry)) as gateway:
        routes = gateway.life.service_names()  # type: ignore[union-attr]  # it is open

    assert HIDDEN == "fastapi-mesh.expose=false"
    assert routes == ["public"]


@pytest.mark.spec("S-203")
async def test_a_tag_hides_a_service_live() -> None:
    registry = MemoryRegistry()
    await registry.register(instance_of("users", "http://127.0.0.1:1"))
    async with opened(new_gateway(registry)) as gateway:
        assert has_route(gateway, "/api/v1/users/1")

        await registry.register(instance_of("users", "http://127.0.0.1:1", tags=(HIDDEN,)))

        await eventually(lambda: not has_route(gateway, "/api/v1/users/1"))


@pytest.mark.spec("S-203")
async def test_an_explicit_route_wins_with_all_its_methods_whatever_is_more_literal() -> None:
    registry = MemoryRegistry()
    async with RawUpstream() as users, RawUpstream() as other:
        await registry.register(instance_of("users", users.url))
        gateway = new_gateway(registry, services={"other": other.url})
        gateway.configure_routes(
            [
                {"path": "/api/{version}/users/{id}", "service": "other", "methods": ["GET"]},
                {"path": "/api/v1/users/admin/*", "service": "other", "require_https": True},
            ]
        )
        async with serving(gateway) as port:
            explicit = await talk(port, request("GET /api/v1/users/7"))
            refused = await talk(port, request("DELETE /api/v1/users/7"))
            dynamic = await talk(port, request("GET /api/v1/users/7/x"))
            around = await talk(port, request("GET /api/v1/users/x/..%2Fadmin/x"))

    assert [parts(raw)[0] for raw in (explicit, refused, dynamic, around)] == [200, 405, 200, 400]
    assert len(other.received) == len(users.received) == 1


@pytest.mark.spec("S-203")
@pytest.mark.parametrize(
    "condition", [{"host": "intern.example"}, {"headers": {"x-operator": True}}, {"query": {"key": "7"}}], ids=str
)
async def test_nobody_gets_around_an_explicit_route_by_not_meeting_its_conditions(condition: dict[str, object]) -> None:
    registry = MemoryRegistry()
    async with RawUpstream() as users:
        await registry.register(instance_of("users", users.url))
        gateway = new_gateway(registry)
        route = {"path": "/api/v1/users/admin/*", "service": "users", "require_https": True, **condition}
        gateway.configure_routes([route])
        async with serving(gateway) as port:
            without = await talk(port, request("GET /api/v1/users/admin/x"))
            around = await talk(port, request("GET /api/v1/users/x/..%2Fadmin/x"))
            other = await talk(port, request("GET /api/v1/users/7"))

    assert [parts(raw)[0] for raw in (without, around, other)] == [404, 400, 200]
    assert len(users.received) == 1


@pytest.mark.spec("S-203")
async def test_settings_for_all_dynamic_routes_come_from_one_table() -> None:
    registry = MemoryRegistry()
    template = {"methods": ["GET", "POST"], "max_body": 1, "request_headers": {"set": {"x-through": "gateway"}}}
    async with RawUpstream() as users:
        await registry.register(instance_of("users", users.url))
        async with serving(new_gateway(registry, dynamic_routes=template)) as port:
            passed = await talk(port, request("GET /api/v1/users/7"))
            long = await talk(port, request("POST /api/v1/users/7", "Content-Length: 2", body=b"xy"))
            method = await talk(port, request("PUT /api/v1/users/7"))

    assert [parts(raw)[0] for raw in (passed, long, method)] == [200, 413, 405]
    assert values(users.received[0], b"x-through") == [b"gateway"]


@pytest.mark.spec("S-203", "S-007", "S-008", "S-009")
async def test_dynamic_routes_are_authenticated_limited_and_cached_as_the_table_says() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nCache-Control: public, max-age=60\r\n\r\nok"
    registry = MemoryRegistry()
    template = {"auth_required": True, "rate_limit": "3/minute", "cache_ttl": 60}
    async with RawUpstream(answer) as users:
        await registry.register(instance_of("users", users.url))
        gateway = new_gateway(registry, dynamic_routes=template)
        gateway.configure_auth([APIKeyAuthProvider(keys={"ann": "k-123456789012345678"})])
        async with serving(gateway) as port:
            nobody = await talk(port, request("GET /api/v1/users/7"))
            ann = [
                parts(await talk(port, request("GET /api/v1/users/7", "X-API-Key: k-123456789012345678")))[0]
                for _ in range(4)
            ]

    assert parts(nobody)[0] == 401
    assert ann == [200, 200, 200, 429]
    assert len(users.received) == 1


async def test_what_is_wrong_with_the_table_shows_before_there_is_a_service() -> None:
    gateway = new_gateway(MemoryRegistry(), dynamic_routes={"auth_required": True})

    with pytest.raises(ConfigurationError, match="no provider"):
        await gateway.open_in({})


@pytest.mark.parametrize("setting", [{"name": "x"}, {"rewrite": "/x"}, {"strip_prefix": True}, {"path": "/x"}])
def test_settings_of_one_route_are_none_of_all(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=rf"dynamic_routes\.{next(iter(setting))}"):
        APIGateway(dynamic_routing=True, dynamic_routes=setting)


@pytest.mark.parametrize("prefix", ["api", "/a*", "/{a}", "/a b"])
def test_a_prefix_that_is_no_path_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="route_prefix"):
        APIGateway(dynamic_routing=True, route_prefix=prefix)


@pytest.mark.spec("S-203", "X-30")
async def test_dynamic_routing_is_switched_and_changed_live() -> None:
    registry = MemoryRegistry()
    await registry.register(instance_of("users", "http://127.0.0.1:1"))
    gateway = new_gateway(registry, dynamic_routing=False)
    async with opened(gateway):
        off = has_route(gateway, "/api/v1/users/1")
        gateway._change({**gateway._code, "dynamic_routing": True})
        await eventually(lambda: has_route(gateway, "/api/v1/users/1"))
        gateway._change({**gateway._code, "route_prefix": "/v2"})
        moved = has_route(gateway, "/v2/users/1"), has_route(gateway, "/api/v1/users/1")
        gateway.configure_routes([{"path": "/own", "service": "users"}])
        kept = has_route(gateway, "/v2/users/1"), has_route(gateway, "/own")
        gateway._change({**gateway._code, "dynamic_routing": False})
        gone = has_route(gateway, "/v2/users/1"), has_route(gateway, "/own")

    assert not off
    assert moved == (True, False)
    assert kept == (True, True)
    assert gone == (False, True)


async def test_the_gateways_own_services_have_dynamic_routes_too() -> None:
    async with RawUpstream() as upstream:
        gateway = new_gateway(MemoryRegistry(), services={"users": upstream.url})
        async with serving(gateway) as port:
            found = await talk(port, request("GET /api/v1/users/1"))
            gateway.configure_services({"orders": upstream.url})
            await eventually(lambda: has_route(gateway, "/api/v1/orders/1"))

    assert parts(found)[0] == 200


@pytest.mark.spec("S-203")
async def test_routes_stay_while_the_registry_fails() -> None:
    class Failing(MemoryRegistry):
        broken = False

        async def watch_services(self):  # type: ignore[no-untyped-def]
            async for known in super().watch_services():
                if self.broken:
                    raise OSError("no route to the registry")
                yield known

    registry = Failing()
    await registry.register(instance_of("users", "http://127.0.0.1:1"))
    async with opened(new_gateway(registry)) as gateway:
        registry.broken = True
        await registry.register(instance_of("orders", "http://127.0.0.1:2"))
        degraded = gateway.life.mesh.degraded  # type: ignore[union-attr]  # it is open
        await eventually(lambda: "discovery-services:2" in degraded)
        during = has_route(gateway, "/api/v1/users/1"), has_route(gateway, "/api/v1/orders/1")
        registry.broken = False
        await eventually(lambda: has_route(gateway, "/api/v1/orders/1"))

    assert during == (True, False)


async def test_a_registry_that_says_nothing_does_not_keep_the_gateway_from_opening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Silent(MemoryRegistry):
        async def watch_services(self):  # type: ignore[no-untyped-def]
            await asyncio.Event().wait()
            yield ()

    monkeypatch.setattr("fastapi_mesh.api_gateway.dynamic.FIRST_LIST", 0.05)
    async with asyncio.timeout(20), opened(new_gateway(Silent())) as gateway:
        assert not has_route(gateway, "/api/v1/users/1")


async def test_a_discovery_that_can_not_list_its_services_is_refused_when_the_gateway_opens() -> None:
    mesh = ServiceMesh("gw", discovery=ScriptedDiscovery(users="u1"), enable_metrics=False)

    with pytest.raises(ConfigurationError, match=r"dynamic_routing: .* watch_services"):
        await APIGateway(service_mesh=mesh, dynamic_routing=True).open_in({})


@pytest.mark.spec("S-066", "S-203")
async def test_routes_follow_services_of_other_processes_within_a_second(tmp_path: Path, processes: Processes) -> None:
    path = tmp_path / "registry.db"
    mesh = ServiceMesh("gw", discovery_config={"backend": "local", "path": str(path)}, enable_metrics=False)
    gateway = APIGateway(service_mesh=mesh, dynamic_routing=True, route_prefix="/api/v1")
    async with RawUpstream() as upstream, serving(gateway) as port:
        told = [str(path), "default", "users-1", upstream.url.rpartition(":")[2], "0.8", "0.1"]
        child = processes.start([sys.executable, str(NODE), *told], name="node")
        await child.ready(re.compile("registered"))
        appeared = await eventually(lambda: has_route(gateway, "/api/v1/users/1"))
        answer = await talk(port, request("GET /api/v1/users/1"))
        child.kill()
        await eventually(lambda: not has_route(gateway, "/api/v1/users/1"), 5.0)

    assert appeared < 1.0
    assert parts(answer)[0] == 200


@pytest.mark.spec("S-203", "X-30")
async def test_no_request_fails_while_services_come_and_go() -> None:
    registry = MemoryRegistry()
    failed: list[bytes] = []
    done, answered = asyncio.Event(), asyncio.Event()

    async def ask(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while not done.is_set():
                writer.write(b"GET /api/v1/users/7 HTTP/1.1\r\nHost: gw\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                answered.set()
                if not head.startswith(b"HTTP/1.1 200"):
                    failed.append(head)
        finally:
            writer.close()
            await writer.wait_closed()

    async with RawUpstream() as upstream:
        await registry.register(instance_of("users", upstream.url))
        gateway = new_gateway(registry, dynamic_routes={"circuit_breaker": {"failure_threshold": 2}})
        async with serving(gateway) as port, asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(ask(port))
            for number in range(50):
                other = await registry.register(instance_of(f"other-{number}", "http://127.0.0.1:1"))
                answered.clear()
                await answered.wait()
                await other.withdraw()
            done.set()
        changes = len(gateway.life.service_names()) if gateway.life else 0

    assert failed == []
    assert changes <= 2
