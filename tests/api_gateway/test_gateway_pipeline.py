"""The order of the layers, and each layer by itself."""

from __future__ import annotations

import json

import pytest

from fastapi_mesh.api_gateway.exchange import Exchange
from fastapi_mesh.api_gateway.forwarded import Forwarding
from fastapi_mesh.api_gateway.headers import NO_BODY, Head
from fastapi_mesh.api_gateway.hop import Hop
from fastapi_mesh.api_gateway.observe import Observe
from fastapi_mesh.api_gateway.pipeline import MESH, ORDER, Parts, compile_chain
from fastapi_mesh.api_gateway.problems import Problems, refuse
from fastapi_mesh.api_gateway.request_id import RequestId, accept
from fastapi_mesh.api_gateway.routes import Route
from fastapi_mesh.api_gateway.table import Refusal
from fastapi_mesh.api_gateway.target import Place
from fastapi_mesh.config.gateway import RouteConfig
from fastapi_mesh.config.policies import CallPolicy, ServicePolicy
from fastapi_mesh.core.body import BytesSource
from fastapi_mesh.core.context import CallContext
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.message import Request, Response
from fastapi_mesh.core.state import ServiceState
from fastapi_mesh.exceptions import (
    BulkheadFullError,
    CircuitBreakerOpenError,
    ClientDisconnectedError,
    DeadlineExceededError,
    MeshError,
    ServiceDiscoveryError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from fastapi_mesh.service_mesh.mesh import ServiceMesh

pytestmark = pytest.mark.anyio


class NoPicker:
    def pick(self, instances, request):  # type: ignore[no-untyped-def]
        raise AssertionError("no instance is picked in these tests")


def new_route() -> Route:
    return Route(RouteConfig(path="/users/*", service="user-service"))


def new_request(method: bytes = b"GET") -> Exchange:
    state = ServiceState("user-service", instances=Live(()), picker=NoPicker())
    context = CallContext(CallPolicy.compile(ServicePolicy()), state, template="/users/*")
    scope = {"method": method.decode(), "client": ("192.0.2.1", 1), "query_string": b"", "http_version": "1.1"}
    head = Head([], b"gateway", NO_BODY)
    origin = Forwarding().append(head, scope, b"")
    head.headers.clear()
    place = Place(b"/users/7")
    place.route = new_route()
    return Exchange(place, scope, head, origin, b"/users/7", b"", context)


def new_parts(meter: Meter | None) -> Parts:
    mesh = ServiceMesh("gateway", discovery_backend="static", enable_service_discovery=False)
    return Parts(meter, frozenset(), (b"via", b"1.1 x"), mesh)


class Meter:
    def __init__(self) -> None:
        self.requests: list[tuple[bytes, str, int]] = []
        self.locals: list[tuple[str, str]] = []

    def request(self, method: bytes, path: str, status: int, seconds: float) -> None:
        assert 0 <= seconds < 5
        self.requests.append((method, path, status))

    def local(self, path: str, reason: str) -> None:
        self.locals.append((path, reason))

    def mirrored(self, path: str, result: str) -> None:
        raise AssertionError("nothing is mirrored in these tests")


def service(answer: Response | BaseException):  # type: ignore[no-untyped-def]
    async def call(request: Request) -> Response:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return call


# The table.


def test_every_row_sits_outside_of_what_it_says_and_has_a_reason() -> None:
    names = [row.name for row in ORDER] + [MESH]

    assert len(set(names)) == len(names)
    for position, row in enumerate(ORDER):
        assert row.because
        assert row.outside
        for inner in row.outside:
            assert names.index(inner) > position, f"{row.name} must be outside {inner}: {row.because}"


def test_the_chain_has_the_layers_in_the_order_of_the_table() -> None:
    mesh = service(Response.of(200, [], b""))

    layer = compile_chain(mesh, new_route(), new_parts(Meter()))

    names = []
    while layer is not mesh:
        names.append(type(layer).__name__)
        layer = layer.inner  # type: ignore[attr-defined]
    assert names == ["Problems", "Observe", "RequestId", "Buffer", "Hop"]


def test_without_metrics_the_chain_has_no_observe() -> None:
    mesh = service(Response.of(200, [], b""))

    layer = compile_chain(mesh, new_route(), new_parts(None))

    while layer is not mesh:
        assert not isinstance(layer, Observe)
        layer = layer.inner  # type: ignore[attr-defined]


# Problems.


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (UpstreamConnectionError("10.0.0.7:80 refused", service="user-service"), 502, "connection-failed"),
        (UpstreamProtocolError("10.0.0.7:80 spoke"), 502, "invalid-response"),
        (UpstreamTimeoutError("10.0.0.7:80"), 504, "upstream-timeout"),
        (DeadlineExceededError("10.0.0.7:80"), 504, "deadline-exceeded"),
        (CircuitBreakerOpenError("10.0.0.7:80"), 503, "circuit-open"),
        (BulkheadFullError("10.0.0.7:80"), 503, "bulkhead-full"),
        (ServiceDiscoveryError("10.0.0.7:80"), 503, "no-instances"),
        (RuntimeError("10.0.0.7:80"), 500, "internal"),
    ],
)
async def test_an_error_becomes_a_problem_that_names_the_rule_and_no_address(
    error: Exception, status: int, reason: str
) -> None:
    request = new_request()
    request.context.request_id = "id-1"

    response = await Problems(service(error))(request)

    headers = dict(response.headers)
    body = await response.read_all()
    document = json.loads(body)
    assert response.status == document["status"] == status
    assert document["reason"] == headers[b"x-mesh-reason"].decode() == reason
    assert isinstance(document["detail"], str)
    assert document["trace_id"] == headers[b"x-request-id"].decode() == "id-1"
    assert headers[b"content-type"] == b"application/problem+json"
    assert b"10.0.0.7" not in body
    assert b"Traceback" not in body


async def test_a_wait_that_is_known_is_told() -> None:
    error = CircuitBreakerOpenError("open", service="user-service")
    error.retry_after = 12.2

    response = await Problems(service(error))(new_request())

    assert response.header(b"retry-after") == b"13"


async def test_a_client_that_is_gone_gets_no_answer() -> None:
    with pytest.raises(ClientDisconnectedError):
        await Problems(service(ClientDisconnectedError("gone")))(new_request())


def test_a_refused_method_says_which_are_allowed() -> None:
    response = refuse(Refusal(405, "method-not-allowed", "This path answers GET, HEAD.", ("GET", "HEAD")), "id-1")

    assert response.status == 405
    assert response.header(b"allow") == b"GET, HEAD"


# Observe.


async def test_a_request_is_counted_when_its_body_has_ended() -> None:
    meter = Meter()
    response = await Observe(service(Response(201, [], BytesSource(b"x"))), meter=meter)(new_request(b"POST"))

    before = list(meter.requests)
    await response.read()

    assert before == []
    assert meter.requests == [(b"POST", "/users/*", 201)]
    assert meter.locals == []


@pytest.mark.parametrize(
    ("error", "status", "local"),
    [
        (ServiceDiscoveryError("none"), 503, [("/users/*", "no-instances")]),
        (RuntimeError("oops"), 500, [("/users/*", "internal")]),
        (KeyboardInterrupt(), 499, []),
    ],
)
async def test_a_failure_is_counted_with_the_status_that_the_client_sees(
    error: BaseException, status: int, local: list[tuple[str, str]]
) -> None:
    meter = Meter()

    with pytest.raises(type(error)):
        await Observe(service(error), meter=meter)(new_request())

    assert meter.requests == [(b"GET", "/users/*", status)]
    assert meter.locals == local


# RequestId.


async def test_a_request_without_an_id_gets_one_and_so_does_its_answer() -> None:
    request = new_request()

    response = await RequestId(service(Response.of(200, [], b"")))(request)

    own = request.context.request_id.encode()
    assert len(own) == 36
    assert request.headers == [(b"x-request-id", own)]
    assert response.headers == [(b"x-request-id", own)]


async def test_an_id_that_is_in_the_context_is_kept() -> None:
    request = new_request()
    request.context.request_id = "from-front"

    response = await RequestId(service(Response.of(200, [], b"")))(request)

    assert response.headers == [(b"x-request-id", b"from-front")]


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        (b"abc-1", "abc-1"),
        (b"x" * 128, "x" * 128),
        (None, ""),
        (b"", ""),
        (b"x" * 129, ""),
        (b"a b", ""),
        (b"a\nb", ""),
        (b"caf\xe9", ""),
        (b'a"b', ""),
    ],
)
def test_only_what_looks_like_an_id_is_accepted(value: bytes | None, accepted: str) -> None:
    assert accept(value) == accepted


# Hop.


@pytest.mark.spec("X-22")
@pytest.mark.parametrize("status", [101, 199, 600, 999])
async def test_a_status_that_can_not_be_passed_on_is_an_invalid_answer(status: int) -> None:
    response = Response.of(status, [], b"x")

    with pytest.raises(UpstreamProtocolError):
        await Hop(service(response), dropped=frozenset(), via=(b"via", b"1.1 x"))(new_request())


async def test_via_is_added_after_what_the_service_said() -> None:
    answer = Response.of(200, [(b"Via", b"1.1 inner"), (b"x", b"y")], b"")

    response = await Hop(service(answer), dropped=frozenset(), via=(b"via", b"1.1 x"))(new_request())

    assert response.headers == [(b"via", b"1.1 inner"), (b"x", b"y"), (b"via", b"1.1 x")]


async def test_all_errors_of_the_mesh_have_a_status_that_can_be_sent() -> None:
    pending = [MeshError]
    while pending:
        kind = pending.pop()
        assert 400 <= kind.status <= 599
        pending.extend(kind.__subclasses__())
