"""Active probes over real connections: nodes of ours, servers that refuse, hang and come back, and a gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import anyio
import pytest
from fastapi import FastAPI

from fastapi_mesh import ServiceMesh, ServiceMeshMiddleware
from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.config.policies import ServicePolicy
from fastapi_mesh.config.probes import ProbePolicy
from fastapi_mesh.core.events import Event, InstanceHealthChanged
from tests.api_gateway.gateway_support import Answer, serving
from tests.api_gateway.test_gateway_reload import ask

pytestmark = pytest.mark.anyio

QUICK = ProbePolicy(path="/health", interval=0.25, fall=2)


@dataclass
class Page:
    """An ASGI application that answers `status` and `said` at its health page, and its name everywhere else."""

    name: str
    status: int = 200
    said: dict[str, object] = field(default_factory=dict)
    calls: int = 0
    asked: list[str] = field(default_factory=list)

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] != "http":
            return
        probe = scope["path"] in ("/health", "/ready")
        if probe:
            self.asked.append(scope["path"])
        else:
            self.calls += 1
        body = json.dumps(self.said if probe else self.name).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        status = self.status if probe else 200
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Seen:
    """An observer that waits for what probes think."""

    def __init__(self) -> None:
        self.health: dict[str, str] = {}
        self._changed = asyncio.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, InstanceHealthChanged):
            self.health[event.instance] = event.after
            self._changed.set()

    async def wait(self, **health: str) -> None:
        wanted = {name.replace("_", "-"): each for name, each in health.items()}
        with anyio.fail_after(20):
            while not wanted.items() <= self.health.items():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def calling(urls: object, policy: ProbePolicy = QUICK) -> AsyncIterator[tuple[ServiceMesh, Seen]]:
    seen = Seen()
    mesh = ServiceMesh(
        "caller",
        services={"users": urls},  # type: ignore[dict-item]
        discovery_backend="static",
        policies={"users": ServicePolicy(health_check=policy)},
        observers=[seen],
    )
    async with mesh:
        await mesh.discover_services("users")
        yield mesh, seen


async def names(mesh: ServiceMesh, count: int) -> set[str]:
    return {await mesh.call_service("users", "/name") for _ in range(count)}


@pytest.mark.spec("X-03", "S-014", "S-113")
async def test_an_instance_whose_health_page_answers_503_gets_no_calls_until_it_is_well_again() -> None:
    one, two = Page("one"), Page("two")
    async with serving(one) as first, serving(two) as second:
        urls = [f"http://127.0.0.1:{port}" for port in (first, second)]
        async with calling(urls) as (mesh, seen):
            await seen.wait(users_1="healthy", users_2="healthy")
            assert await names(mesh, 4) == {"one", "two"}

            two.status = 503
            await seen.wait(users_2="unhealthy")
            before = two.calls
            assert await names(mesh, 10) == {"one"}
            assert two.calls == before
            health = {each.id: each.health for each in await mesh.discover_services("users")}
            assert health == {"users-1": "healthy", "users-2": "unhealthy"}

            two.status = 200
            await seen.wait(users_2="healthy")
            assert await names(mesh, 4) == {"one", "two"}


@pytest.mark.spec("X-03")
async def test_an_instance_that_hangs_or_is_gone_falls_and_comes_back() -> None:
    one = Page("one")

    async with serving(one) as first, listening(_hangs) as hanging:
        port = hanging.sockets[0].getsockname()[1]
        urls = [f"http://127.0.0.1:{first}", f"http://127.0.0.1:{port}"]
        async with calling(urls) as (mesh, seen):
            await seen.wait(users_1="healthy", users_2="unhealthy")
            assert await names(mesh, 6) == {"one"}
            hanging.close()
            await hanging.wait_closed()
            assert await names(mesh, 6) == {"one"}
            async with listening(_answers_200, port):
                await seen.wait(users_2="healthy")


@asynccontextmanager
async def listening(answer: Answer, port: int = 0) -> AsyncIterator[asyncio.Server]:
    server = await asyncio.start_server(answer, "127.0.0.1", port)
    try:
        yield server
    finally:
        server.close()
        await server.wait_closed()


async def _hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def _answers_200(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


@pytest.mark.spec("X-03")
@pytest.mark.parametrize(
    ("raw", "health"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n" + b"x" * 100_000, "healthy"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort", "unhealthy"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", "healthy"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "unhealthy"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", "healthy"),
    ],
)
async def test_whatever_an_instance_sends_is_judged_and_leaves_no_connection(raw: bytes, health: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        writer.close()

    async with listening(answer) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with calling(url, QUICK.model_copy(update={"fall": 1})) as (_, seen):
            await seen.wait(users_1=health)


@pytest.mark.spec("X-03")
async def test_an_answer_that_stops_in_the_middle_is_given_up_with_its_connection() -> None:
    closed = asyncio.Event()

    async def stop_in_the_middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):  # given up before it had asked
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
            await reader.read()
            closed.set()
        writer.close()

    async with listening(stop_in_the_middle) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with calling(url, QUICK.model_copy(update={"fall": 1})) as (_, seen):
            await seen.wait(users_1="unhealthy")
            with anyio.fail_after(20):
                await closed.wait()


@pytest.mark.spec("X-03", "S-111")
async def test_a_node_that_calls_itself_degraded_gets_half_the_calls() -> None:
    said = {"status": "degraded", "checks": {"cache": "warn"}}
    node = ServiceMesh("users", discovery_backend="static")
    degraded, well = FastAPI(), Page("well")
    degraded.add_middleware(ServiceMeshMiddleware, mesh=node)

    @degraded.get("/name")
    async def name() -> str:
        return "degraded"

    @node.health_check
    async def cache() -> dict[str, object]:
        return said

    async with serving(degraded) as first, serving(well) as second:
        urls = [f"http://127.0.0.1:{first}", f"http://127.0.0.1:{second}"]
        async with calling(urls) as (mesh, seen):
            await seen.wait(users_1="degraded", users_2="healthy")
            answers = [await mesh.call_service("users", "/name") for _ in range(9)]
            assert (answers.count("degraded"), answers.count("well")) == (3, 6)
            said["status"] = "unhealthy"
            await seen.wait(users_1="unhealthy")


@pytest.mark.spec("X-03")
async def test_an_application_of_this_process_is_probed_too() -> None:
    page = Page("in process", status=503)
    async with calling(page) as (_, seen):
        await seen.wait(users_1="unhealthy")
        page.status = 200
        await seen.wait(users_1="healthy")


@pytest.mark.spec("S-014", "S-015", "X-30")
async def test_a_gateway_probes_its_services_and_takes_another_path_while_it_runs() -> None:
    one, two, seen = Page("one"), Page("two", status=503), Seen()
    async with serving(one) as first, serving(two) as second:
        service = {
            "instances": [f"http://127.0.0.1:{port}" for port in (first, second)],
            "load_balancing": "round_robin",
            "health_check": "/health",
            "health_check_interval": 0.25,
        }
        mesh = ServiceMesh("gateway", discovery_backend="static", observers=[seen])
        gateway = APIGateway(service_mesh=mesh)
        gateway.configure_services({"users": service})
        gateway.configure_routes([{"path": "/users/*", "service": "users"}])
        async with gateway.opened({}):
            await ask(gateway, "/users/1")
            await seen.wait(users_1="healthy", users_2="unhealthy")
            assert [await ask(gateway, "/users/1") for _ in range(4)] == [(200, b'"one"')] * 4

            two.status = 200
            gateway.configure_services({"users": {**service, "health_check": {"path": "/ready", "fall": 2}}})
            await seen.wait(users_2="healthy")
            assert {await ask(gateway, "/users/1") for _ in range(4)} == {(200, b'"one"'), (200, b'"two"')}
            assert two.asked[-1] == "/ready"

            two.status = 500
            await seen.wait(users_2="unhealthy")
            gateway.configure_services({"users": {"instances": service["instances"]}})
            assert {await ask(gateway, "/users/1") for _ in range(4)} == {(200, b'"one"'), (200, b'"two"')}
            assert mesh.probes.statistics()["instances"] == 0
