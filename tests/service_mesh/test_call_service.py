"""`call_service` in all its forms, and what its errors carry."""

import dataclasses
import re

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_mesh.config.policies import RetryPolicy, ServicePolicy
from fastapi_mesh.exceptions import (
    CircuitBreakerOpenError,
    InvalidRequestError,
    ServiceDiscoveryError,
    ServiceResponseError,
    ServiceUnavailableError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from fastapi_mesh.service_mesh.calls import build_target, fill_path
from fastapi_mesh.testing import Answer, FakeMesh

pytestmark = pytest.mark.anyio


@pytest.fixture
async def fake():
    async with FakeMesh() as mesh:
        yield mesh


class Profile(pydantic.BaseModel):
    user_id: int
    bio: str = ""


@dataclasses.dataclass(frozen=True)
class Point:
    x: int


@pytest.mark.spec("S-152", "B26", "B27")
async def test_positional_values_fill_the_path_and_json_comes_back(fake: FakeMesh) -> None:
    fake.service("user-service").get("/users/7").returns({"id": 7})
    assert await fake.call_service("user-service", "/users/{}", 7) == {"id": 7}
    assert await fake.call_service("user-service", "/users/7") == {"id": 7}
    assert await fake.call_service("user-service", "/users/{id}", path_params={"id": 7}) == {"id": 7}
    assert [call.method for call in fake.calls] == ["GET"] * 3


@pytest.mark.spec("S-152", "B26")
async def test_a_leftover_mapping_or_model_is_posted_as_json(fake: FakeMesh) -> None:
    fake.service("payment-service").post("/payments").returns({"ok": True})
    fake.service("payment-service").post("/users/7/payments").returns({"ok": True})

    @dataclasses.dataclass
    class Payment:
        amount: int

    await fake.call_service("payment-service", "/payments", {"amount": 3})
    await fake.call_service("payment-service", "/payments", Profile(user_id=1))
    await fake.call_service("payment-service", "/users/{}/payments", 7, Payment(4))
    assert [call.json() for call in fake.calls] == [{"amount": 3}, {"user_id": 1, "bio": ""}, {"amount": 4}]
    assert all((b"content-type", b"application/json") in call.headers for call in fake.calls)


@pytest.mark.spec("B26")
async def test_the_keyword_form(fake: FakeMesh) -> None:
    fake.service("s").put("/items/a%20b").returns({"ok": 1})
    await fake.call_service(
        "s",
        "/items/{name}",
        method="PUT",
        path_params={"name": "a b"},
        json=[1],
        params={"q": "x y", "tags": ["a", "b"], "flag": True, "none": None},
        headers={"X-Test": "1"},
    )
    call = fake.calls[0]
    assert call.target == "/items/a%20b?q=x+y&tags=a&tags=b&flag=true"
    assert call.json() == [1]
    assert (b"x-test", b"1") in call.headers


@pytest.mark.spec("B26")
@pytest.mark.parametrize(
    ("path", "values", "named"),
    [
        ("/users/{}", (), None),
        ("/users/{id}", (), None),
        ("/users/{}", (1, 2), None),
        ("/users", (1,), None),
        ("/users", (), {"id": 1}),
        ("/users", ({"a": 1}, {"b": 2}), None),
    ],
)
def test_missing_and_surplus_values_are_type_errors(path: str, values: tuple, named: dict | None) -> None:
    with pytest.raises(TypeError):
        fill_path(path, values, named)


@pytest.mark.spec("B26")
@pytest.mark.parametrize("value", [None, {"b": 2}, Profile(user_id=1), Point(1), [1], (1, 2), {1}, frozenset((1,))])
def test_what_is_no_single_value_does_not_fill_a_path(value: object) -> None:
    with pytest.raises(TypeError, match=re.escape("'/a/{}' can't be filled with")):
        fill_path("/a/{}", (value,), None)
    with pytest.raises(TypeError, match=re.escape("'/a/{id}' can't be filled with")):
        fill_path("/a/{id}", (), {"id": value})
    with pytest.raises(TypeError, match=re.escape("'/a/{id}'")):
        fill_path("/a/{id}", (value,), None)


@pytest.mark.spec("B26")
@pytest.mark.parametrize("value", ["..", ".", ""])
def test_values_that_would_change_the_path_are_refused(value: str) -> None:
    with pytest.raises(InvalidRequestError):
        fill_path("/users/{}/orders", (value,), None)


@pytest.mark.spec("B26")
@given(st.text(min_size=1).filter(lambda text: text not in (".", "..")))
def test_no_value_can_leave_its_segment(value: str) -> None:
    try:
        target = build_target(fill_path("/users/{}/orders", (value,), None)[0], None)
    except UnicodeEncodeError:
        return  # a lone surrogate has no UTF-8
    assert target.startswith(b"/users/")
    assert target.endswith(b"/orders")
    assert target.count(b"/") == 3
    assert b"?" not in target
    assert all(33 <= byte < 127 for byte in target)


async def test_a_body_given_twice_is_a_type_error(fake: FakeMesh) -> None:
    fake.service("s")
    with pytest.raises(TypeError, match="twice"):
        await fake.call_service("s", "/x", {"a": 1}, json={"b": 2})
    with pytest.raises(TypeError, match="exclude"):
        await fake.call_service("s", "/x", json={"b": 2}, content=b"x")
    with pytest.raises(InvalidRequestError, match="must begin with '/'"):
        await fake.call_service("s", "x")


@pytest.mark.spec("B27")
async def test_a_response_model_is_validated(fake: FakeMesh) -> None:
    fake.service("s").get("/p").returns({"user_id": 3, "bio": "b"})
    fake.service("s").get("/list").returns([{"user_id": 3}])
    fake.service("s").get("/bad").returns({"nope": 1})
    profile = await fake.call_service("s", "/p", response_model=Profile)
    assert profile == Profile(user_id=3, bio="b")
    assert await fake.call_service("s", "/list", response_model=list[Profile]) == [Profile(user_id=3)]
    with pytest.raises(UpstreamProtocolError, match="does not fit Profile"):
        await fake.call_service("s", "/bad", response_model=Profile)


@pytest.mark.spec("B27", "S-310")
async def test_4xx_and_5xx_are_errors_with_status_and_body(fake: FakeMesh) -> None:
    fake.service("s").get("/missing").returns({"detail": "nope"}, status=404)
    fake.service("s").get("/broken").returns({"detail": "oops"}, status=503)
    with pytest.raises(ServiceResponseError) as client_error:
        await fake.call_service("s", "/missing")
    assert client_error.value.status_code == 404
    assert client_error.value.body == b'{"detail": "nope"}'
    assert client_error.value.service == "s"

    with pytest.raises(ServiceUnavailableError) as server_error:
        await fake.call_service("s", "/broken")
    assert server_error.value.status_code == 503
    assert server_error.value.attempts == 3
    assert server_error.value.counted_for == "s"


@pytest.mark.spec("B27")
async def test_answers_that_are_not_json(fake: FakeMesh) -> None:
    service = fake.service("s")
    service.get("/empty").returns(status=204)
    service.get("/text").replies.append(
        Answer(200, "grüße".encode(), [(b"content-type", b"text/plain; charset=utf-8")])
    )
    service.get("/bytes").replies.append(Answer(200, b"\x00\x01", [(b"content-type", b"application/octet-stream")]))
    service.get("/liar").replies.append(Answer(200, b"{", [(b"content-type", b"application/json")]))
    assert await fake.call_service("s", "/empty") is None
    assert await fake.call_service("s", "/text") == "grüße"
    assert await fake.call_service("s", "/bytes") == b"\x00\x01"
    with pytest.raises(UpstreamProtocolError, match="not valid JSON"):
        await fake.call_service("s", "/liar")


@pytest.mark.spec("B27")
async def test_raw_gives_the_response_whatever_its_status(fake: FakeMesh) -> None:
    fake.service("s").get("/missing").returns({"detail": "nope"}, status=404)
    response = await fake.call_service("s", "/missing", raw=True)
    assert response.status_code == 404
    assert response.json() == {"detail": "nope"}
    assert response.extensions["fastapi_mesh"]["service"] == "s"


async def test_a_timeout_of_the_call_bounds_all_its_attempts() -> None:
    async with FakeMesh() as fake:
        fake.service("s").get("/slow").hangs()
        started = fake.clock.now()
        with pytest.raises((UpstreamTimeoutError, ServiceUnavailableError)) as caught:
            await fake.call_service("s", "/slow", timeout=2.0)
        assert isinstance(caught.value, TimeoutError)
        assert fake.clock.now() - started == pytest.approx(2.0)


@pytest.mark.spec("S-312", "S-313", "B33")
async def test_the_description_s_order_of_except_clauses_works(fake: FakeMesh) -> None:
    async def resilient(service: str) -> str:
        try:
            return await fake.call_service(service, "/x")
        except CircuitBreakerOpenError:
            return "cache"
        except ServiceUnavailableError:
            return "fallback"
        except ServiceDiscoveryError:
            return "static"

    fake.service("flaky").get("/x").fails(500)
    fake.service("unknown", instances=0)
    assert await resilient("unknown") == "static"
    assert [await resilient("flaky") for _ in range(6)] == ["fallback"] * 5 + ["cache"]


@pytest.mark.spec("S-150", "B28")
async def test_metrics_of_this_process(fake: FakeMesh) -> None:
    empty = await fake.get_metrics()
    assert (empty.total_calls, empty.success_rate, empty.avg_latency) == (0, 100.0, 0.0)
    fake.service("a").get("/x").returns({})
    fake.service("b").get("/x").fails(500)
    for _ in range(3):
        await fake.call_service("a", "/x")
    with pytest.raises(ServiceUnavailableError):
        await fake.call_service("b", "/x")
    metrics = await fake.get_metrics()
    assert metrics.total_calls == 4
    assert metrics.success_rate == 75.0
    assert metrics.services["a"].success_rate == 100.0
    assert metrics.services["b"].failed_calls == 1


@pytest.mark.spec("A6")
async def test_three_attempts_stay_three_under_nested_policies() -> None:
    policy = ServicePolicy(retry=RetryPolicy(max_attempts=3, base_delay=0.0))
    async with FakeMesh(default_policy=policy) as fake:
        fake.service("s").get("/x").fails(times=100)

        @fake.circuit_breaker("s")
        @fake.retry_policy("s")
        @fake.trace_calls
        async def call() -> object:
            return await fake.call_service("s", "/x")

        with pytest.raises(ServiceUnavailableError):
            await call()
        assert len(fake.calls) == 3
        assert fake.states.get("s").breaker.statistics()["failures"] == 1


@pytest.mark.spec("S-150")
async def test_a_mounted_application_answers_in_process() -> None:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/users/{user_id}")
    async def user(user_id: int) -> dict[str, int]:
        return {"id": user_id}

    async with FakeMesh() as fake:
        fake.service("user-service").mount(app)
        fake.service("user-service").get("/users/2").returns({"id": "scripted"})
        assert await fake.call_service("user-service", "/users/{}", 1) == {"id": 1}
        assert await fake.call_service("user-service", "/users/{}", 2) == {"id": "scripted"}


@pytest.mark.spec("X-70")
async def test_an_unscripted_call_names_what_is_missing(fake: FakeMesh) -> None:
    fake.service("s").get("/known").returns({})
    with pytest.raises(AssertionError, match="s: GET /unknown was called, but GET /known is scripted"):
        await fake.call_service("s", "/unknown")


@pytest.mark.spec("X-70")
async def test_a_call_to_a_service_that_nobody_scripted_names_it(fake: FakeMesh) -> None:
    with pytest.raises(AssertionError, match="profil-service: nobody scripted this service; scripted are none"):
        await fake.call_service("profil-service", "/x")
    fake.service("profile-service")
    fake.service("order-service")
    known = "profil-service: nobody scripted this service; scripted are profile-service, order-service"
    with pytest.raises(AssertionError, match=known):
        await fake.call_service("profil-service", "/x")
    async with fake.get_client("profil-service") as client:
        with pytest.raises(AssertionError, match=known):
            await client.get("/x")


@pytest.mark.spec("X-70")
async def test_the_pytest_fixture_is_there(fake_mesh: FakeMesh) -> None:
    fake_mesh.service("s").get("/x").fails(503, times=2).returns({"ok": True})
    assert await fake_mesh.call_service("s", "/x") == {"ok": True}
    assert len(fake_mesh.calls) == 3
    await fake_mesh.stop()


async def test_the_inbound_requests_id_goes_along(fake: FakeMesh) -> None:
    from fastapi_mesh.core.context import Inbound, current_inbound

    fake.service("s").get("/x").returns({})
    token = current_inbound.set(Inbound(fake, request_id="r-1"))
    try:
        await fake.call_service("s", "/x")
        await fake.call_service("s", "/x", headers={"X-Request-ID": "mine"})
    finally:
        current_inbound.reset(token)
    await fake.call_service("s", "/x")
    assert [dict(call.headers).get(b"x-request-id") for call in fake.calls] == [b"r-1", b"mine", None]
