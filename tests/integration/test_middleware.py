"""The middleware in one process: pages, errors, the inbound request, lifespan, and what is refused."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.testclient import TestClient

from fastapi_mesh.core.context import current_inbound
from fastapi_mesh.exceptions import (
    CircuitBreakerOpenError,
    ConfigurationError,
    MeshError,
    ServiceResponseError,
    UpstreamConnectionError,
)
from fastapi_mesh.integration import Mesh, ServiceMeshMiddleware, get_service_mesh
from fastapi_mesh.service_mesh import ServiceMesh

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Message, Receive, Scope, Send

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_DISCOVERY__BACKEND", "memory")


def application(**settings: object) -> FastAPI:
    app = FastAPI()
    app.add_middleware(ServiceMeshMiddleware, **{"service_name": "orders", **settings})

    @app.get("/who")
    async def who(mesh: Mesh) -> dict[str, str]:
        return {"name": mesh.service_name, "version": mesh.service_version}

    return app


# The mesh, found


@pytest.mark.spec("S-201", "S-202")
def test_the_description_s_call_makes_a_mesh_that_handlers_find():
    app = FastAPI()
    app.add_middleware(
        ServiceMeshMiddleware,
        service_name="user-service",
        service_version="1.0.0",
        enable_tracing=True,
        enable_metrics=True,
        enable_service_discovery=True,
    )

    @app.get("/users/{user_id}")
    async def get_user(user_id: int, mesh: ServiceMesh = Depends(get_service_mesh)) -> dict[str, object]:  # noqa: B008 - the description's own form
        return {"user_id": user_id, "by": mesh.service_name}

    with TestClient(app) as client:
        assert client.get("/users/3").json() == {"user_id": 3, "by": "user-service"}
        assert app.state.mesh.started
    assert not app.state.mesh.started


@pytest.mark.spec("S-202")
def test_websockets_find_the_mesh_and_their_inbound_request_too():
    app = application()

    @app.websocket("/ws")
    async def ws(websocket: WebSocket, mesh: Mesh) -> None:
        inbound = current_inbound.get()
        await websocket.accept()
        await websocket.send_json([mesh.service_name, inbound.request_id, inbound.mesh is mesh])
        await websocket.close()

    with (
        TestClient(app) as client,
        client.websocket_connect("/ws", headers={"x-request-id": "w-1"}) as socket,
    ):
        assert socket.receive_json() == ["orders", "w-1", True]


def test_without_any_door_the_dependency_says_how_to_make_one():
    app = FastAPI()

    @app.get("/who")
    async def who(mesh: Mesh) -> str:
        return mesh.service_name

    with pytest.raises(ConfigurationError, match=r"add app.add_middleware\(ServiceMeshMiddleware.*with TestClient"):
        TestClient(app).get("/who")


def test_a_test_replaces_the_mesh_through_dependency_overrides():
    app = application()
    fake = ServiceMesh("fake")
    app.dependency_overrides[get_service_mesh] = lambda: fake
    with TestClient(app) as client:
        assert client.get("/who").json()["name"] == "fake"


def test_nothing_of_the_mesh_is_in_the_openapi_document():
    with TestClient(application()) as client:
        document = client.get("/openapi.json").json()
    assert list(document["paths"]) == ["/who"]
    assert "parameters" not in document["paths"]["/who"]["get"]


def test_a_client_without_lifespan_starts_it_with_the_first_request_and_again_in_each_new_loop():
    client = TestClient(application())
    assert [client.get("/who").status_code for _ in range(3)] == [200, 200, 200]


@pytest.mark.anyio
async def test_many_first_requests_start_it_once():
    app = application()
    starts = 0

    class Counted(ServiceMesh):
        async def start(self) -> None:
            nonlocal starts
            if not self.started:
                starts += 1
                await asyncio.sleep(0.01)
            await super().start()

    mesh = Counted("orders")
    app = FastAPI()
    app.add_middleware(ServiceMeshMiddleware, mesh=mesh)
    scope = {"type": "http", "method": "GET", "path": "/none", "raw_path": b"/none", "headers": [], "query_string": b""}

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        """Not looked at."""

    await asyncio.gather(*(app(dict(scope), receive, send) for _ in range(10)))
    assert starts == 1
    await mesh.life.close()


# Lifespan


def test_the_mesh_starts_before_the_application_and_ends_after_it():
    seen: list[object] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
        seen.append(("startup", app.state.mesh.started))
        yield {"db": 1}
        seen.append(("shutdown", app.state.mesh.started))

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(ServiceMeshMiddleware, service_name="orders")

    @app.get("/state")
    async def state(mesh: Mesh) -> bool:
        return mesh.started

    with TestClient(app) as client:
        assert client.get("/state").json() is True
        mesh = app.state.mesh
    assert seen == [("startup", True), ("shutdown", True)]
    assert not mesh.started


async def lifespan_messages(app: FastAPI, *, told_only: bool = False) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup" if not sent else "lifespan.shutdown"}

    async def send(message: Message) -> None:
        sent.append(message)

    try:
        await app({"type": "lifespan", "state": {}}, receive, send)
    except Exception:
        if not told_only or not sent:  # raised once the server has been told, as Starlette does
            raise
    return sent


@pytest.mark.anyio
async def test_a_wrong_setting_is_a_failed_startup_of_four_lines():
    app = application(metrics_path="metrics")

    (message,) = await lifespan_messages(app, told_only=True)

    assert message["type"] == "lifespan.startup.failed"
    lines = message["message"].splitlines()
    assert lines[0].startswith("fastapi-mesh: orders can't start")
    assert lines[1].startswith("  setting: metrics_path: ")
    assert [line[:10] for line in lines[2:]] == ["  fix:    ", "  or:     "]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"enable_mtls": True}, "enable_mtls: mutual TLS is not part of this version"),
        ({"security_policies": {"allow_services": ["a"]}}, "security_policies: "),
        ({"mesh": ServiceMesh("given"), "port": 3}, "service_name, port can't be given beside it"),
    ],
    ids=["mtls", "policies", "mesh and settings"],
)
async def test_options_that_are_not_here_yet_or_contradict_are_refused_by_name(settings, named):
    (message,) = await lifespan_messages(application(**settings), told_only=True)
    assert message["type"] == "lifespan.startup.failed"
    assert named in message["message"]


@pytest.mark.anyio
async def test_when_the_application_s_own_startup_fails_the_mesh_is_stopped():
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    mesh = ServiceMesh("orders")
    app = FastAPI(lifespan=lifespan)
    app.add_middleware(ServiceMeshMiddleware, mesh=mesh)
    with pytest.raises(RuntimeError, match="no database"):
        await lifespan_messages(app)
    assert not mesh.started
    assert not mesh.life.is_open


def test_both_doors_with_one_mesh_open_it_once():
    mesh = ServiceMesh("orders")
    app = FastAPI(lifespan=mesh.lifespan)
    app.add_middleware(ServiceMeshMiddleware, mesh=mesh)

    @app.get("/who")
    async def who(found: Mesh) -> bool:
        return found is mesh

    with TestClient(app) as client:
        assert client.get("/who").json() is True
        assert mesh.started
    assert not mesh.started


@pytest.mark.anyio
async def test_two_doors_with_two_meshes_are_refused_with_the_way_out():
    mesh = ServiceMesh("orders")
    app = FastAPI(lifespan=mesh.lifespan)
    app.add_middleware(ServiceMeshMiddleware, service_name="orders")
    with pytest.raises(ConfigurationError, match="give the same object to both doors"):
        await lifespan_messages(app)
    assert not mesh.started


def test_the_lifespan_alone_is_a_door_and_keeps_the_inner_state():
    mesh = ServiceMesh("orders")

    @asynccontextmanager
    async def inner(app: FastAPI) -> AsyncIterator[dict[str, int]]:
        yield {"db": 7}

    app = FastAPI(lifespan=mesh.lifespan(inner))

    @app.websocket("/ws")
    async def ws(websocket: WebSocket, found: Mesh) -> None:
        await websocket.accept()
        await websocket.send_json([found is mesh, websocket.state.db])

    with TestClient(app) as client, client.websocket_connect("/ws") as socket:
        assert socket.receive_json() == [True, 7]
    assert not mesh.started


def test_a_mesh_in_the_application_s_state_is_adopted_where_no_settings_say_otherwise():
    app = FastAPI()
    app.state.mesh = ServiceMesh("adopted")
    app.add_middleware(ServiceMeshMiddleware)

    @app.get("/who")
    async def who(mesh: Mesh) -> str:
        return mesh.service_name

    with TestClient(app) as client:
        assert client.get("/who").json() == "adopted"


# Two in one process


def test_a_mounted_application_has_its_own_mesh_and_the_outer_one_keeps_its():
    inner = application(service_name="inner")
    outer = application(service_name="outer")
    outer.mount("/sub", inner)
    with TestClient(outer) as client:
        assert client.get("/who").json()["name"] == "outer"
        assert client.get("/sub/who").json()["name"] == "inner"
        assert client.get("/who").json()["name"] == "outer"
        assert client.get("/sub/health").status_code == 200


def test_two_applications_with_two_meshes_do_not_see_each_other():
    with TestClient(application(service_name="one")) as one, TestClient(application(service_name="two")) as two:
        assert (one.get("/who").json()["name"], two.get("/who").json()["name"]) == ("one", "two")
        two.get("/who")
        assert 'http_requests_total{handler="/who",method="GET",status="2xx"} 1.0' in one.get("/metrics").text
        assert 'http_requests_total{handler="/who",method="GET",status="2xx"} 2.0' in two.get("/metrics").text


# Pages


@pytest.mark.spec("B40")
@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/metrics"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_pages_are_answered_where_the_application_has_none(path, method):
    with TestClient(application()) as client:
        response = client.request(method, path)
        assert response.status_code == 200
        assert response.headers["cache-control"] == "no-store"
        assert bool(response.content) is (method == "GET")
        assert int(response.headers["content-length"]) > 0
        assert client.post(path).status_code == 404


@pytest.mark.spec("B40")
def test_an_application_s_own_page_wins_whatever_it_answers():
    app = application()

    @app.get("/health")
    def health() -> JSONResponse:
        return JSONResponse({"mine": True}, status_code=418)

    @app.post("/metrics")
    def metrics() -> str:
        return "posted"

    with TestClient(app) as client:
        assert (client.get("/health").status_code, client.get("/health").json()) == (418, {"mine": True})
        assert client.get("/metrics").status_code == 405
        assert client.get("/health/ready").status_code == 200


@pytest.mark.spec("B40")
def test_the_pages_can_be_elsewhere_and_metrics_can_be_off():
    with TestClient(application(metrics_path="/internal/metrics", health_path="/healthz")) as client:
        assert client.get("/internal/metrics").status_code == 200
        assert client.get("/healthz/ready").status_code == 200
        assert [client.get(path).status_code for path in ("/metrics", "/health")] == [404, 404]
    with TestClient(application(enable_metrics=False)) as client:
        assert client.get("/metrics").status_code == 404
        assert client.get("/health").status_code == 200


@pytest.mark.spec("S-111", "B20")
def test_registered_checks_decide_health_and_readiness_but_never_liveness():
    mesh = ServiceMesh("orders")
    app = FastAPI()
    app.add_middleware(ServiceMeshMiddleware, mesh=mesh)

    @mesh.health_check
    async def health_check() -> dict[str, object]:
        return {"status": "unhealthy", "checks": {"db": False, "cache": "ok"}}

    with TestClient(app) as client:
        answer = client.get("/health")
        assert answer.status_code == 503
        assert answer.json()["checks"] == {"db": "fail", "cache": "pass"}
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200


@pytest.mark.spec("X-50")
def test_a_draining_node_is_neither_healthy_nor_ready_but_alive():
    mesh = ServiceMesh("orders")
    app = FastAPI()
    app.add_middleware(ServiceMeshMiddleware, mesh=mesh)
    with TestClient(app) as client:
        mesh.life.draining = True
        assert [client.get(f"/health{end}").status_code for end in ("", "/ready", "/live")] == [503, 503, 200]
        assert client.get("/health/ready").json()["checks"] == {"drain": "fail"}


def test_a_mesh_that_is_not_ready_says_so_without_saying_where_it_looks():
    class Waiting(ServiceMesh):
        @property
        def ready(self) -> bool:
            return False

    mesh = Waiting("orders")
    app = FastAPI()
    app.add_middleware(ServiceMeshMiddleware, mesh=mesh)
    with TestClient(app) as client:
        mesh.supervisor.degraded["discovery:users"] = "OSError: /var/registry.db"
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert answer.json()["details"] == {"mesh": ["discovery:users"]}
        assert client.get("/health").status_code == 200
        mesh.supervisor.degraded.clear()


@pytest.mark.spec("X-54")
def test_the_metrics_page_has_the_node_s_server_and_mesh_but_not_its_own_pages():
    app = application()
    router = APIRouter(prefix="/v1")

    @router.get("/items/{item}")
    async def item(item: int) -> int:
        return item

    @app.get("/fails")
    async def fails() -> None:
        raise ServiceResponseError("no", service="users", status_code=404)

    app.include_router(router)
    with TestClient(app) as client:
        client.get("/v1/items/3")
        client.get("/fails")
        client.get("/health")
        client.get("/metrics")
        text = client.get("/metrics", headers={"accept": "text/plain"}).text
    assert 'http_requests_total{handler="/v1/items/{item}",method="GET",status="2xx"} 1.0' in text
    assert 'http_requests_total{handler="/fails",method="GET",status="5xx"} 1.0' in text
    assert "# TYPE mesh_service_calls_total counter" in text
    assert 'handler="none"' not in text
    assert "process_cpu_seconds_total" in text


# Errors


@pytest.mark.parametrize("parallel", [False, True], ids=["alone", "from a task group"])
def test_a_mesh_error_that_leaves_a_handler_is_a_problem_document(parallel, caplog):
    app = application()

    async def call() -> None:
        raise UpstreamConnectionError("connect to 10.1.2.3:8000 refused", service="users")

    @app.get("/orders/{order}")
    async def orders(order: int) -> None:
        if parallel:
            async with asyncio.TaskGroup() as group:
                group.create_task(call())
        await call()

    with TestClient(app) as client:
        response = client.get("/orders/3?token=secret", headers={"traceparent": TRACEPARENT})
    assert response.status_code == 502
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-mesh-reason"] == "connection-failed"
    assert response.json()["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert isinstance(response.json()["detail"], str)
    assert "10.1.2.3" not in response.text
    assert "GET /orders/3: connection-failed (users): connect to 10.1.2.3:8000 refused" in caplog.text
    assert "secret" not in caplog.text


def test_a_path_can_not_forge_a_log_line(caplog):
    app = application()

    @app.get("/{name}")
    async def anything(name: str) -> None:
        raise CircuitBreakerOpenError("open", service="users")

    with TestClient(app) as client:
        client.get("/x%0AERROR%20forged")
    assert "GET /x%0AERROR%20forged: circuit-open" in caplog.text


def test_a_settings_error_in_a_handler_is_a_500_whose_traceback_is_logged(caplog):
    app = application()

    @app.get("/broken")
    async def broken() -> None:
        raise ConfigurationError("services.users: no such thing")

    with TestClient(app) as client:
        response = client.get("/broken")
    assert (response.status_code, response.json()["reason"]) == (500, "configuration")
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.exc_info is not None


def test_the_application_s_own_handler_for_mesh_errors_comes_first():
    app = application()

    @app.exception_handler(MeshError)
    async def mine(request: object, error: MeshError) -> JSONResponse:
        return JSONResponse({"mine": error.reason}, status_code=200)

    @app.get("/fails")
    async def fails() -> None:
        raise CircuitBreakerOpenError("open", service="users")

    with TestClient(app) as client:
        assert client.get("/fails").json() == {"mine": "circuit-open"}


def test_other_errors_and_mixed_groups_are_not_ours():
    app = application()

    @app.get("/http")
    async def http() -> None:
        raise HTTPException(403, "no")

    @app.get("/mixed")
    async def mixed() -> None:
        raise ExceptionGroup("both", [CircuitBreakerOpenError("open"), KeyError("x")])

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/http").json() == {"detail": "no"}
        assert client.get("/mixed").text == "Internal Server Error"


def test_an_error_after_the_response_began_ends_it_instead_of_a_second_response():
    app = application()

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"half"
            raise UpstreamConnectionError("lost", service="users")

        return StreamingResponse(parts())

    with TestClient(app) as client, pytest.raises(UpstreamConnectionError):
        client.get("/stream")


# The inbound request


@pytest.mark.spec("X-06")
def test_a_request_whose_deadline_has_passed_is_a_504_and_reaches_no_handler():
    app = application()
    called = []

    @app.get("/work")
    async def work() -> None:
        called.append(1)

    with TestClient(app) as client:
        response = client.get("/work", headers={"x-mesh-timeout-ms": "0"})
        assert (response.status_code, response.headers["x-mesh-reason"]) == (504, "deadline-exceeded")
        assert called == []
        assert client.get("/work", headers={"x-mesh-timeout-ms": "5000"}).status_code == 200


@pytest.mark.spec("X-06", "X-55")
def test_handlers_async_or_not_and_background_tasks_see_the_inbound_request():
    app = application()
    seen = []

    def note(where: str) -> None:
        inbound = current_inbound.get()
        seen.append((where, inbound.request_id, inbound.deadline is not None, dict(inbound.propagate)))

    @app.get("/async")
    async def as_async(tasks: BackgroundTasks) -> None:
        note("async")
        tasks.add_task(note, "background")

    @app.get("/sync")
    def as_sync() -> None:
        note("sync")

    headers = {"x-request-id": "r-1", "x-mesh-timeout-ms": "900", "traceparent": TRACEPARENT}
    with TestClient(app) as client:
        client.get("/async", headers=headers)
        client.get("/sync", headers=headers)
    trace = {b"traceparent": TRACEPARENT.encode()}
    assert seen == [("async", "r-1", True, trace), ("background", "r-1", False, trace), ("sync", "r-1", True, trace)]
    assert current_inbound.get() is None


# Switched off


@pytest.mark.spec("X-58")
def test_switched_off_it_adds_nothing_to_requests_and_handlers_still_find_the_mesh(monkeypatch):
    monkeypatch.setenv("SERVICE_MESH_ENABLED", "false")
    app = application()

    @app.get("/inbound")
    async def inbound(mesh: Mesh) -> list[bool]:
        return [current_inbound.get() is None, mesh.enabled]

    @app.get("/fails")
    async def fails() -> None:
        raise CircuitBreakerOpenError("open", service="users")

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/inbound", headers={"x-mesh-timeout-ms": "0"}).json() == [True, False]
        assert [client.get(path).status_code for path in ("/health", "/metrics", "/fails")] == [404, 404, 500]
        assert client.get("/who").json()["name"] == "orders"


# Built late


def test_added_after_the_start_it_is_an_error_that_says_so():
    app = FastAPI()
    with TestClient(app), pytest.raises(RuntimeError, match="Cannot add middleware after an application has started"):
        app.add_middleware(ServiceMeshMiddleware, service_name="late")


def test_a_start_that_fails_without_a_lifespan_is_answered_and_logged_for_each_request(caplog):
    client = TestClient(application(metrics_path="metrics"))
    response = client.get("/who")
    assert (response.status_code, response.json()["reason"]) == (500, "configuration")
    assert "metrics_path" not in response.text
    assert re.search(r"can't start[\s\S]*setting: metrics_path", caplog.text)


def test_a_websocket_that_starts_a_mesh_which_can_t_start_fails_with_the_reason():
    client = TestClient(application(metrics_path="metrics"))
    with pytest.raises(ConfigurationError, match="metrics_path"), client.websocket_connect("/ws"):
        raise AssertionError("it must not be accepted")


@pytest.mark.anyio
async def test_an_unforeseen_error_at_the_start_is_told_to_the_server_too_and_its_traceback_logged(caplog):
    class Broken(ServiceMesh):
        async def start(self) -> None:
            raise ZeroDivisionError("planted")

    app = FastAPI()
    app.add_middleware(ServiceMeshMiddleware, mesh=Broken("orders"))
    (message,) = await lifespan_messages(app, told_only=True)
    assert message["type"] == "lifespan.startup.failed"
    assert "reason:  ZeroDivisionError: planted" in message["message"]
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_a_second_application_on_the_same_mesh_works_uncounted_and_says_so(caplog):
    mesh = ServiceMesh("orders")
    apps = [FastAPI(), FastAPI()]
    for app in apps:
        app.add_middleware(ServiceMeshMiddleware, mesh=mesh)
    with TestClient(apps[0]) as first, TestClient(apps[1]) as second:
        assert first.get("/health").status_code == second.get("/health").status_code == 200
    assert "HTTP requests of this application are not counted" in caplog.text
    assert not mesh.started


def test_other_asgi_applications_can_be_nodes_too():
    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(scope["state"]["mesh"].service_name).encode()})

    client = TestClient(ServiceMeshMiddleware(plain, service_name="plain"))
    assert client.get("/").json() == "plain"


def test_the_alias_and_the_dependency_are_the_same_thing():
    assert Mesh == Annotated[ServiceMesh, Depends(get_service_mesh)]
