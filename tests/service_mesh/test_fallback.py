"""What a call gives instead of an error."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fastapi_mesh.config.policies import ServicePolicy
from fastapi_mesh.core.message import Response
from fastapi_mesh.exceptions import CircuitBreakerOpenError, ServiceResponseError, ServiceUnavailableError
from fastapi_mesh.service_mesh import OtherService, ServiceMesh
from fastapi_mesh.service_mesh.fallback import MOST_ANSWERS, LastAnswers, key_of
from fastapi_mesh.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-09")]


class Service:
    def __init__(self, body: bytes) -> None:
        self.status = 200
        self.body = body
        self.headers: list[tuple[bytes, bytes]] = []
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.asked.append((scope["method"], scope["path"]))
        head = [(b"content-type", b"application/json"), *self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": head})
        await send({"type": "http.response.body", "body": self.body})


class Shop:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.users, self.backup = Service(b'{"n": 1}'), Service(b'{"n": 9}')
        self.mesh = ServiceMesh(
            "shop",
            discovery_backend="memory",
            services={"users": self.users, "backup": self.backup},
            default_policy=ServicePolicy(retry=None, outlier=None),
            enable_metrics=False,
            enable_tracing=False,
            clock=self.clock,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        return self.mesh.records[-1].notes


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    made = Shop()
    async with made.mesh:
        yield made


async def test_a_value_is_given_where_there_is_no_answer_and_the_record_says_so(shop: Shop) -> None:
    assert await shop.mesh.call_service("users", "/", fallback=None) == {"n": 1}
    assert shop.notes == ()
    shop.users.status = 503
    assert await shop.mesh.call_service("users", "/", fallback=None) is None
    assert await shop.mesh.call_service("users", "/", fallback=[]) == []
    assert shop.notes == ("users answered 503: the fallback was given",)
    assert await shop.mesh.call_service("nobody", "/", fallback="none", timeout=0.01) == "none"


async def test_a_function_gets_the_error_async_or_not(shop: Shop) -> None:
    async def later(error: Exception) -> str:
        await asyncio.sleep(0)
        return type(error).__name__

    shop.users.status = 500
    assert await shop.mesh.call_service("users", "/", fallback=lambda error: error.status_code) == 500
    assert await shop.mesh.call_service("users", "/", fallback=later) == "ServiceUnavailableError"


@pytest.mark.spec("S-313", "S-311")
async def test_an_open_circuit_has_a_fallback_too(shop: Shop) -> None:
    shop.users.status = 500
    seen = [await shop.mesh.call_service("users", "/", fallback=type) for _ in range(6)]
    assert seen == [ServiceUnavailableError] * 5 + [CircuitBreakerOpenError]


async def test_another_service_gets_the_same_call(shop: Shop) -> None:
    shop.users.status = 502
    other = OtherService("backup")
    assert await shop.mesh.call_service("users", "/users/{}", 7, fallback=other) == {"n": 9}
    moved = OtherService("backup", "/old/{}")
    assert await shop.mesh.call_service("users", "/users/{}", 7, method="DELETE", fallback=moved) == {"n": 9}
    assert shop.backup.asked == [("GET", "/users/7"), ("DELETE", "/old/7")]
    shop.backup.status = 500
    with pytest.raises(ServiceUnavailableError, match="backup"):
        await shop.mesh.call_service("users", "/", fallback=other)


async def test_a_refusal_of_the_service_is_no_reason_for_a_fallback(shop: Shop) -> None:
    shop.users.status = 404
    with pytest.raises(ServiceResponseError):
        await shop.mesh.call_service("users", "/", fallback="never", stale_if_error=60)


async def test_the_last_good_answer_is_given_while_it_is_young_enough(shop: Shop) -> None:
    first = await shop.mesh.call_service("users", "/a", stale_if_error=60)
    first["n"] = "changed by its owner"
    shop.users.status = 500
    await shop.clock.advance(59)
    assert await shop.mesh.call_service("users", "/a", stale_if_error=60, fallback="none") == {"n": 1}
    assert shop.notes == ("users answered 500: the last good answer was given, 59.0 s old",)
    assert await shop.mesh.call_service("users", "/b", stale_if_error=60, fallback="none") == "none"
    await shop.clock.advance(2)
    assert await shop.mesh.call_service("users", "/a", stale_if_error=60, fallback="none") == "none"


async def test_no_user_gets_the_answer_of_another_and_nothing_secret_is_kept(shop: Shop) -> None:
    ask = shop.mesh.call_service
    await ask("users", "/", headers={"Authorization": "a"}, stale_if_error=60)
    shop.users.headers = [(b"cache-control", b"private, No-Store")]
    await ask("users", "/secret", stale_if_error=60)
    await ask("users", "/", method="POST", stale_if_error=60)
    shop.users.status = 503
    assert await ask("users", "/", headers={"Authorization": "b"}, stale_if_error=60, fallback="none") == "none"
    assert await ask("users", "/secret", stale_if_error=60, fallback="none") == "none"
    assert await ask("users", "/", method="POST", stale_if_error=60, fallback="none") == "none"


def test_its_memory_is_bounded() -> None:
    kept = LastAnswers(clock=FakeClock())
    for number in range(3 * MOST_ANSWERS):
        kept.keep(key_of("users", "GET", b"/%d" % number, []), Response.of(200, [], b""), b"x" * 100_000)
    kept.keep(key_of("users", "GET", b"/long", []), Response.of(200, [], b""), b"x" * 1_000_000)
    assert kept.statistics()["bytes"] <= 16 * 1024 * 1024
    assert kept.find(key_of("users", "GET", b"/long", []), 1.0) is None
