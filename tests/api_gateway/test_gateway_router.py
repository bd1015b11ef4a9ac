"""A gateway in an application: as a router, as a middleware, mounted. Runs on the oldest FastAPI we allow too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from fastapi_mesh.api_gateway import APIGateway, GatewayMiddleware
from fastapi_mesh.integration import ServiceMeshMiddleware
from fastapi_mesh.service_mesh import ServiceMesh

pytestmark = pytest.mark.spec("S-200", "A12")


async def upstream(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    """A service in this process that says what it was asked."""
    assert scope["type"] == "http"
    headers = dict(scope["headers"])
    said = [scope["method"], scope["raw_path"].decode(), headers.get(b"x-forwarded-prefix", b"-").decode()]
    body = " ".join(said).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def new_gateway(**options: object) -> APIGateway:
    gateway = APIGateway(services={"up": upstream}, **options)  # type: ignore[arg-type]
    gateway.configure_routes(
        [
            {"path": "/users/*", "service": "up", "methods": ["GET"]},
            {"path": "/orders/{id}", "service": "up"},
            {"path": "/stripped/*", "service": "up", "strip_prefix": True},
        ]
    )
    return gateway


def new_app(**options: object) -> FastAPI:
    app = FastAPI(**options)  # type: ignore[arg-type]

    @app.get("/own")
    async def own() -> str:
        return "app"

    @app.post("/users/{user}")
    async def create(user: str) -> str:
        return f"app {user}"

    @app.put("/own/only-put")
    async def put() -> str:
        return "app"

    @app.websocket("/own/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("app")
        await websocket.close()

    return app


def as_router(app: FastAPI, gateway: APIGateway) -> None:
    app.include_router(gateway.router)


def as_first_router(app: FastAPI, gateway: APIGateway) -> None:
    app.router.routes.clear()
    app.include_router(gateway.router)
    app.router.routes.extend(new_app().router.routes)


def as_middleware(app: FastAPI, gateway: APIGateway) -> None:
    app.add_middleware(GatewayMiddleware, gateway=gateway)


@pytest.fixture(params=[as_router, as_first_router, as_middleware])
def client(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    app = new_app()
    request.param(app, new_gateway())
    with TestClient(app) as client:
        yield client


def test_the_gateways_paths_are_forwarded(client: TestClient) -> None:
    assert client.get("/users/7/x").text == "GET /users/7/x -"
    assert client.delete("/orders/3").text == "DELETE /orders/3 -"
    assert client.get("/stripped/a/b").text == "GET /a/b /stripped"


def test_every_other_path_is_the_applications(client: TestClient) -> None:
    assert client.get("/own").json() == "app"
    assert client.get("/nowhere").json() == {"detail": "Not Found"}
    assert client.get("/own/only-put").status_code == 405
    assert client.get("/own/").url.path == "/own", "redirect_slashes still works"
    assert client.get("/docs").status_code == 200
    assert "/users/{user}" in client.get("/openapi.json").json()["paths"]


def test_a_method_that_no_route_of_the_gateway_has_is_405_with_what_is_allowed(client: TestClient) -> None:
    response = client.patch("/users/7")

    assert response.status_code == 405
    assert response.headers["allow"]


def test_websockets_of_other_paths_are_the_applications(client: TestClient) -> None:
    with client.websocket_connect("/own/socket") as socket:
        assert socket.receive_text() == "app"
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/nowhere"):
        pass


def test_the_application_may_have_other_methods_of_a_gateways_path() -> None:
    app = new_app()
    app.include_router(new_gateway().router)

    with TestClient(app) as client:
        assert client.post("/users/7").json() == "app 7"
        assert client.get("/users/7").text == "GET /users/7 -"


def test_as_a_middleware_the_gateway_owns_its_paths_with_all_methods() -> None:
    app = new_app()
    app.add_middleware(GatewayMiddleware, gateway=new_gateway())

    with TestClient(app) as client:
        response = client.post("/users/7")

    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD, OPTIONS"
    assert response.json()["reason"] == "method-not-allowed"


@pytest.mark.parametrize("door", [as_router, as_middleware])
def test_lifespans_are_merged_and_the_gateway_closes(door) -> None:  # type: ignore[no-untyped-def]
    seen = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        seen.append("up")
        yield
        seen.append("down")

    gateway = new_gateway()
    app = FastAPI(lifespan=lifespan)
    door(app, gateway)

    with TestClient(app):
        life = gateway.life
        assert life is not None
        assert life.mesh.started

    assert seen == ["up", "down"]
    assert gateway.life is None
    assert not life.mesh.started


def test_the_gateways_own_prefix_is_taken_off_and_said() -> None:
    app = new_app()
    app.include_router(new_gateway(prefix="/gw").router)

    with TestClient(app) as client:
        assert client.get("/gw/users/7").text == "GET /users/7 /gw"
        assert client.get("/gw/stripped/7").text == "GET /7 /gw/stripped"
        assert client.get("/users/7").status_code == 405, "the application's own POST"
        assert client.get("/gwx/users/7").status_code == 404


def test_mounted_it_serves_below_the_mount_and_opens_by_itself() -> None:
    gateway = new_gateway()
    app = new_app()
    app.mount("/mnt", gateway)

    with TestClient(app) as client:
        assert client.get("/mnt/users/7").text == "GET /users/7 /mnt"
        assert client.get("/mnt/nowhere").json()["reason"] == "no-route"
        assert client.get("/mnt/health").status_code == 200
        client.portal.call(gateway.aclose)  # type: ignore[union-attr] # a mounted application has no lifespan


def test_without_a_lifespan_the_first_request_opens_it() -> None:
    gateway = new_gateway()
    app = new_app()
    app.include_router(gateway.router)
    client = TestClient(app)

    assert client.get("/users/7").text == "GET /users/7 -"


@pytest.mark.spec("B2")
@pytest.mark.parametrize("door", [as_router, as_middleware])
def test_it_calls_through_the_applications_own_mesh(door) -> None:  # type: ignore[no-untyped-def]
    mesh = ServiceMesh("front", discovery_backend="static", services={"other": upstream})
    gateway = new_gateway()
    gateway.configure_routes([{"path": "/other/*", "service": "other"}, {"path": "/users/*", "service": "up"}])
    app = FastAPI(lifespan=mesh.lifespan)
    door(app, gateway)

    with TestClient(app) as client:
        life = gateway.life
        assert life is not None
        assert life.mesh is mesh
        assert client.get("/other/1").text == "GET /other/1 -"
        assert client.get("/users/1").text == "GET /users/1 -"


def test_a_mesh_that_is_given_is_used_and_left_running_if_it_was() -> None:
    mesh = ServiceMesh("front", discovery_backend="static", services={"up": upstream})
    gateway = APIGateway(service_mesh=mesh)
    gateway.configure_routes([{"path": "/users/*", "service": "up"}])
    app = FastAPI(lifespan=mesh.lifespan)
    app.include_router(gateway.router)

    with TestClient(app) as client:
        assert client.get("/users/1").text == "GET /users/1 -"
        client.portal.call(gateway.aclose)  # type: ignore[union-attr]
        assert mesh.started


def test_two_gateways_live_in_one_application() -> None:
    first, second = new_gateway(prefix="/one"), new_gateway(prefix="/two")
    app = new_app()
    app.include_router(first.router)
    app.include_router(second.router)

    with TestClient(app) as client:
        assert client.get("/one/users/1").text == "GET /users/1 /one"
        assert client.get("/two/users/1").text == "GET /users/1 /two"
        assert first.life is not second.life


def test_dependencies_of_an_include_do_not_guard_the_gateway() -> None:
    def refuse() -> None:
        raise HTTPException(403)

    app = FastAPI()
    app.include_router(new_gateway().router, dependencies=[Depends(refuse)])

    with TestClient(app) as client:
        assert client.get("/users/1").status_code == 200, "documented: no path operation is run"


def test_a_start_that_fails_is_a_failed_start() -> None:
    gateway = APIGateway()
    gateway.configure_routes([{"path": "/users/*", "service": "user-servce"}])
    app = new_app()
    app.include_router(gateway.router)

    with pytest.raises(Exception, match="user-servce"), TestClient(app):
        pass


@pytest.mark.spec("B2")
def test_what_the_mesh_was_told_of_a_service_wins() -> None:
    async def teapot(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        await send({"type": "http.response.start", "status": 418, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    mesh = ServiceMesh("front", discovery_backend="static", services={"up": upstream})
    app_service = APIGateway(services={"up": teapot}, service_mesh=mesh)
    url_service = APIGateway(services={"up": "http://127.0.0.1:1"}, service_mesh=mesh, prefix="/url", max_retries=0)
    app = FastAPI()
    for gateway in (app_service, url_service):
        gateway.configure_routes([{"path": "/users/*", "service": "up"}])
        app.include_router(gateway.router)

    with TestClient(app) as client:
        assert client.get("/users/1").text == "GET /users/1 -"
        assert client.get("/url/users/1").text == "GET /users/1 /url"


@pytest.mark.parametrize(("trusted", "left"), [((), 30_000), (("127.0.0.1",), 900)], ids=["anybody", "a proxy"])
def test_in_a_node_only_a_trusted_proxy_sets_the_deadline(trusted: tuple[str, ...], left: int) -> None:
    """With a few milliseconds anybody could make a service look dead, and open its circuit for everybody."""
    given: list[int] = []

    async def hear(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        given.append(int(dict(scope["headers"])[b"x-mesh-timeout-ms"]))
        await upstream(scope, receive, send)

    app = new_app()
    app.add_middleware(ServiceMeshMiddleware, service_name="edge", discovery_backend="static", port=1)
    gateway = APIGateway(services={"up": hear}, trusted_proxies=trusted)
    gateway.configure_routes([{"path": "/users/*", "service": "up"}])
    app.include_router(gateway.router)

    with TestClient(app, client=("127.0.0.1", 5)) as client:
        for name, value in (("x-mesh-timeout-ms", "900"), ("grpc-timeout", "900m")):
            assert client.get("/users/7", headers={name: value}).status_code == 200

    assert all(left / 2 < each <= left for each in given)


def test_in_a_node_it_uses_the_nodes_mesh_and_the_nodes_request_id() -> None:
    app = new_app()
    app.add_middleware(ServiceMeshMiddleware, service_name="edge", discovery_backend="static", port=1)
    gateway = new_gateway()
    app.include_router(gateway.router)

    with TestClient(app) as client:
        life = gateway.life
        assert life is not None
        assert life.mesh is app.state.mesh
        response = client.get("/users/7", headers={"x-request-id": "from-the-node"})
        assert client.get("/metrics").status_code == 200

    assert response.text == "GET /users/7 -"
    assert response.headers["x-request-id"] == "from-the-node"
    assert not life.mesh.started
