"""The decorators: on functions and methods, sync and async, with the mesh found at call time."""

import asyncio

import pytest

import fastapi_mesh
from fastapi_mesh.config.policies import BreakerPolicy, RetryPolicy, ServicePolicy
from fastapi_mesh.core.context import Inbound, current_inbound
from fastapi_mesh.exceptions import CircuitBreakerOpenError, ConfigurationError, ServiceResponseError
from fastapi_mesh.testing import FakeMesh

pytestmark = pytest.mark.anyio

POLICY = ServicePolicy(
    retry=RetryPolicy(max_attempts=3, base_delay=0.0), circuit_breaker=BreakerPolicy(failure_threshold=2)
)


@pytest.fixture
async def fake():
    async with FakeMesh(default_policy=POLICY) as mesh:
        yield mesh


@pytest.mark.spec("S-131", "S-204", "A5")
async def test_stacked_on_a_method_the_mesh_is_the_objects_own(fake: FakeMesh) -> None:
    class UserService:
        def __init__(self, mesh: fastapi_mesh.ServiceMesh) -> None:
            self.mesh = mesh

        @fastapi_mesh.circuit_breaker("profile-service")
        @fastapi_mesh.retry_policy("profile-service")
        @fastapi_mesh.trace_calls
        async def get_user_profile(self, user_id: int) -> object:
            return await self.mesh.call_service("profile-service", f"/profiles/{user_id}")

    fake.service("profile-service").get("/profiles/3").returns({"bio": "x"})
    async with FakeMesh():  # another open mesh does not confuse it
        assert await UserService(fake).get_user_profile(3) == {"bio": "x"}


@pytest.mark.spec("A5")
async def test_without_self_mesh_it_is_the_requests_then_the_only_open_one(fake: FakeMesh) -> None:
    @fastapi_mesh.circuit_breaker("s")
    async def work() -> str:
        return "done"

    assert await work() == "done"

    async with FakeMesh() as other:
        with pytest.raises(ConfigurationError, match="2 meshes are open"):
            await work()
        token = current_inbound.set(Inbound(other))
        try:
            assert await work() == "done"
        finally:
            current_inbound.reset(token)


@pytest.mark.spec("A5")
async def test_no_open_mesh_is_a_clear_error() -> None:
    @fastapi_mesh.retry_policy("s")
    async def work() -> None:
        raise AssertionError("never called")

    with pytest.raises(ConfigurationError, match="no mesh is open"):
        await work()


@pytest.mark.spec("S-131", "A4")
async def test_the_breaker_counts_other_failures_and_refuses(fake: FakeMesh) -> None:
    calls = 0

    @fake.circuit_breaker("external-api")
    async def call() -> None:
        nonlocal calls
        calls += 1
        raise ValueError("not of the mesh")

    for _ in range(2):
        with pytest.raises(ValueError, match="not of the mesh"):
            await call()
    with pytest.raises(CircuitBreakerOpenError):
        await call()
    assert calls == 2


@pytest.mark.spec("S-131")
def test_the_breaker_works_on_def_functions() -> None:
    async def main() -> None:
        async with FakeMesh(default_policy=POLICY) as fake:

            @fake.circuit_breaker("s")
            def call(value: int) -> int:
                if value < 0:
                    raise OSError("down")
                return value

            assert call(1) == 1
            for _ in range(2):
                with pytest.raises(OSError, match="down"):
                    await asyncio.to_thread(call, -1)
            with pytest.raises(CircuitBreakerOpenError):
                call(1)

    asyncio.run(main())


@pytest.mark.spec("A6")
async def test_the_callers_faults_are_neutral(fake: FakeMesh) -> None:
    @fake.circuit_breaker("s")
    async def call() -> None:
        raise ServiceResponseError("no", service="other", status_code=404)

    for _ in range(5):
        with pytest.raises(ServiceResponseError):
            await call()


@pytest.mark.spec("S-141", "A6")
async def test_retry_policy_repeats_connection_errors_that_are_not_the_meshs(fake: FakeMesh) -> None:
    calls = 0

    @fake.retry_policy("external-api")
    async def call() -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ConnectionError("down")
        return "up"

    assert await call() == "up"
    assert calls == 3


@pytest.mark.spec("S-141")
async def test_retry_policy_leaves_other_errors_alone_and_gives_up(fake: FakeMesh) -> None:
    calls = 0

    @fake.retry_policy("x")
    async def call(error: Exception) -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(ValueError, match="bad"):
        await call(ValueError("bad"))
    assert calls == 1
    with pytest.raises(TimeoutError, match="slow"):
        await call(TimeoutError("slow"))
    assert calls == 4


@pytest.mark.spec("S-141")
async def test_a_def_function_that_waits_is_refused_on_the_event_loop(fake: FakeMesh) -> None:
    calls = 0

    @fake.retry_policy("x")
    def call() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError("down")
        return "up"

    with pytest.raises(ConfigurationError, match="make it `async def`"):
        call()
    assert await asyncio.to_thread(call) == "up"


@pytest.mark.spec("S-131", "S-151")
async def test_decorators_keep_name_and_signature(fake: FakeMesh) -> None:
    import inspect

    @fake.circuit_breaker("x")
    @fake.retry_policy("x")
    @fake.trace_calls
    async def handler(user_id: int, q: str = "") -> None:
        """Docs."""

    assert handler.__name__ == "handler"
    assert handler.__doc__ == "Docs."
    assert list(inspect.signature(handler).parameters) == ["user_id", "q"]
    assert inspect.iscoroutinefunction(handler)


@pytest.mark.spec("S-132", "B27")
async def test_a_client_is_used_as_a_context_again_and_again_and_gives_every_status(fake: FakeMesh) -> None:
    fake.service("s").post("/api/process").returns({"id": 1}, status=201).fails(404).fails(500)
    answers = []

    for number in range(3):
        async with fake.get_client("s") as client:
            answers.append((await client.post("/api/process", json={"n": number})).status_code)

    assert answers == [201, 404, 500]
    assert [(call.method, call.target, call.json()) for call in fake.calls] == [
        ("POST", "/api/process", {"n": number}) for number in range(3)
    ]


@pytest.mark.spec("A6", "B27")
async def test_an_http_status_error_of_our_response_is_not_counted_twice(fake: FakeMesh) -> None:
    fake.service("s").get("/x").fails(500)

    @fake.circuit_breaker("s")
    async def call() -> None:
        async with fake.get_client("s") as client:
            (await client.get("/x")).raise_for_status()

    import httpx2

    with pytest.raises(httpx2.HTTPStatusError):
        await call()
    assert fake.breaker_of("s").statistics()["failures"] == 1
