"""WebSockets of a node: what its handlers know of the mesh, behind a gateway, in the same process, and in its app."""

# ruff: noqa: SIM117 - a block per party: service, gateway, client
from __future__ import annotations

import asyncio
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from starlette.testclient import TestClient

from fastapi_mesh import APIGateway, ServiceMesh, ServiceMeshMiddleware, get_service_mesh
from fastapi_mesh.api_gateway.router import GatewayMiddleware
from tests.api_gateway.gateway_support import gateway_to, serving
from tests.api_gateway.websocket.ws_support import IMPLEMENTATIONS, Service, closed, connect, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-24", "S-407")]


def other_service() -> FastAPI:
    app = FastAPI()

    @app.get("/hello")
    async def hello() -> str:
        return "hello"

    return app


def node() -> FastAPI:
    """A node whose WebSocket calls another service for each message, `wait` seconds after it came."""
    app = FastAPI()
    app.add_middleware(
        ServiceMeshMiddleware, service_name="chat", enable_service_discovery=False, services={"other": other_service()}
    )

    @app.websocket("/api/ws")
    async def chat(
        socket: WebSocket, mesh: Annotated[ServiceMesh, Depends(get_service_mesh)], wait: float = 0.0
    ) -> None:
        await socket.accept()
        async for _ in socket.iter_text():
            await asyncio.sleep(wait)
            answer = await mesh.call_service("other", "/hello")
            await socket.send_text(f"{mesh.service_name} {answer}")

    return app


@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_a_handler_of_a_node_finds_its_mesh_and_calls_with_it(ws: str) -> None:
    async with serving(node(), ws=ws) as up, serving(gateway_to(f"http://127.0.0.1:{up}"), ws=ws) as port:
        for each in (up, port):
            async with connect(each) as client:
                await client.send("x")
                assert await client.recv() == "chat hello"


async def test_the_deadline_of_the_handshake_is_not_one_of_the_socket() -> None:
    gateway_options = {"request_timeout": 0.15, "upstream_timeout": 0.15}
    async with serving(node()) as up, serving(gateway_to(f"http://127.0.0.1:{up}", **gateway_options)) as port:
        async with connect(port, "/api/ws?wait=0.3") as client:
            await client.send("x")
            assert await client.recv() == "chat hello"


@pytest.mark.parametrize("name", ["x-request-id", "X-Request-ID"])
async def test_the_request_id_of_a_handshake_is_kept_however_it_is_written(name: str) -> None:
    from fastapi_mesh.core.context import current_inbound

    app = FastAPI()
    app.add_middleware(ServiceMeshMiddleware, service_name="chat", enable_service_discovery=False)

    @app.websocket("/ws")
    async def ask(socket: WebSocket) -> None:
        await socket.accept()
        inbound = current_inbound.get()
        assert inbound is not None
        await socket.send_text(inbound.request_id)
        await socket.close()

    async with serving(app) as port, connect(port, "/ws", additional_headers={name: "w-1"}) as client:
        assert await client.recv() == "w-1"


@pytest.mark.spec("X-11")
async def test_a_service_of_the_same_process_has_websockets_too() -> None:
    gateway = APIGateway(services={"chat": node()})
    gateway.configure_routes([{"path": "/api/*", "service": "chat"}])
    async with serving(gateway) as port, connect(port) as client:
        for _ in range(3):
            await client.send("x")
            assert await client.recv() == "chat hello"
        await client.close(4000, "enough")


def app_with(gateway: APIGateway, door: str) -> FastAPI:
    app = FastAPI()
    own = APIRouter()

    @own.websocket("/own")
    async def mine(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close(4321)

    app.include_router(own)
    if door == "router":
        app.include_router(gateway.router)
    else:
        app.add_middleware(GatewayMiddleware, gateway=gateway)
    return app


@pytest.mark.parametrize("door", ["router", "middleware"])
async def test_an_application_keeps_its_own_sockets_beside_the_gateway(door: str) -> None:
    async with Service() as service:
        gateway = gateway_to(
            service.url, [{"path": "/api/*", "service": "up"}, {"path": "/p", "service": "up", "methods": ["POST"]}]
        )
        async with serving(app_with(gateway, door)) as port:
            async with connect(port) as client:
                await client.send("x")
                assert await client.recv() == "x"
            async with connect(port, "/own") as client:
                assert await closed(client) == (4321, "")
            assert (await refusal(port, "/nobody")).status_code == 403  # Starlette's own answer
            assert (await refusal(port, "/p")).status_code == 405


def test_a_test_client_gets_through() -> None:
    app = FastAPI()

    @app.websocket("/api/ws")
    async def echo(socket: WebSocket) -> None:
        await socket.accept("b")
        await socket.send_text(await socket.receive_text())
        await socket.close(4000, "done")

    gateway = APIGateway(services={"up": app})
    gateway.configure_routes([{"path": "/api/*", "service": "up"}])
    outer = FastAPI()
    outer.include_router(gateway.router)
    with TestClient(outer) as client, client.websocket_connect("/api/ws", subprotocols=["a", "b"]) as socket:
        assert socket.accepted_subprotocol == "b"
        socket.send_text("x")
        assert socket.receive_text() == "x"
        assert socket.receive() == {"type": "websocket.close", "code": 4000, "reason": "done"}
