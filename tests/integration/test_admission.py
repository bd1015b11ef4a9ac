"""A node that answers only so many requests at the same time: who is refused, how, and what its callers make of it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest
from fastapi import APIRouter, Depends, FastAPI

from fastapi_mesh import RequestPriority, ServiceMesh
from fastapi_mesh.core.context import current_inbound
from fastapi_mesh.core.events import LimitChanged, RequestShed
from fastapi_mesh.core.priority import LOW, NORMAL
from fastapi_mesh.exceptions import ConfigurationError, ServiceUnavailableError
from fastapi_mesh.integration import ServiceMeshMiddleware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


class House:
    """A node whose `/wait` answers when `door` is opened."""

    def __init__(self, **limit: object) -> None:
        self.door = asyncio.Event()
        self.inside = 0
        self.seen: list[object] = []
        self.mesh = ServiceMesh(
            "orders", inbound_limit=limit or None, discovery_backend="memory", observers=[self.seen.append]
        )
        self.app = FastAPI()
        self.app.add_middleware(ServiceMeshMiddleware, mesh=self.mesh)
        reports = APIRouter(prefix="/reports", dependencies=[Depends(RequestPriority("low"))])

        async def wait() -> int:
            self.inside += 1
            try:
                await self.door.wait()
            finally:
                self.inside -= 1
            inbound = current_inbound.get()
            assert inbound is not None
            return inbound.priority

        self.app.post("/wait")(wait)
        reports.post("/{name}")(wait)
        self.app.include_router(reports)
        self.app.post("/urgent", dependencies=[Depends(RequestPriority("high"))])(wait)

    async def call(
        self, path: str = "/wait", *headers: tuple[bytes, bytes], method: str = "POST"
    ) -> tuple[int, dict[bytes, bytes], object]:
        sent: list[dict[str, object]] = []

        async def receive() -> dict[str, object]:
            if not self.seats_asked:
                raise AssertionError("the body was read of a request that is refused")
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": list(headers),
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
            "state": {},
        }
        await self.app(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])

    seats_asked = True

    async def filled(self, count: int, group: anyio.abc.TaskGroup, *headers: tuple[bytes, bytes]) -> None:
        """`count` more requests that are being answered."""
        before = self.inside
        for _ in range(count):
            group.start_soon(self.call, "/wait", *headers)
        while self.inside < before + count:
            await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def house(**limit: object) -> AsyncIterator[House]:
    made = House(**limit)
    async with made.mesh:
        yield made


@pytest.mark.spec("X-07")
async def test_what_is_too_much_gets_503_with_retry_after_before_its_body_is_read() -> None:
    async with house(max_concurrent=2) as node, anyio.create_task_group() as group:
        await node.filled(2, group)
        node.seats_asked = False

        status, headers, body = await node.call()

        assert status == 503
        assert headers[b"retry-after"] == b"1"
        assert headers[b"x-mesh-reason"] == b"overloaded"
        assert headers[b"content-type"] == b"application/problem+json"
        assert body["reason"] == "overloaded"
        assert body["detail"] == "too many requests are being answered already"
        assert RequestShed("normal") in node.seen
        node.seats_asked = True
        node.door.set()
    assert node.inside == 0


@pytest.mark.spec("X-07")
async def test_pages_of_the_node_need_no_seat() -> None:
    async with house(max_concurrent=1) as node, anyio.create_task_group() as group:
        await node.filled(1, group)
        assert (await node.call("/health/live", method="GET"))[0] == 200
        assert (await node.call())[0] == 503
        node.door.set()


@pytest.mark.spec("X-07")
async def test_a_low_priority_goes_first_by_header_and_by_dependency() -> None:
    async with house(max_concurrent=5) as node, anyio.create_task_group() as group:
        await node.filled(4, group)  # 80 % of the seats: what low ones may take

        assert (await node.call("/wait", (b"x-mesh-priority", b"low")))[0] == 503
        assert (await node.call("/reports/sales"))[0] == 503
        assert (await node.call("/reports/sales", (b"x-mesh-priority", b"high")))[0] == 503
        assert node.seen.count(RequestShed("low")) == 3
        await node.filled(1, group)
        assert (await node.call("/urgent"))[0] == 503
        assert RequestShed("high") in node.seen
        node.door.set()


@pytest.mark.spec("X-07")
async def test_the_priority_goes_on_with_calls_made_in_the_request() -> None:
    async with house(max_concurrent=5) as node:
        node.door.set()
        assert (await node.call("/reports/sales"))[2] == LOW
        assert (await node.call("/wait", (b"x-mesh-priority", b"low")))[2] == LOW
        assert (await node.call("/wait", (b"x-mesh-priority", b"nonsense")))[2] == NORMAL


@pytest.mark.spec("X-07")
async def test_a_queue_waits_for_a_seat_until_the_deadline() -> None:
    async with house(max_concurrent=1, max_queue=1) as node, anyio.create_task_group() as group:
        await node.filled(1, group)

        status, headers, _ = await node.call("/wait", (b"x-mesh-timeout-ms", b"20"))
        assert (status, headers[b"x-mesh-reason"]) == (504, b"deadline-exceeded")

        answers = []

        async def waits() -> None:
            answers.append((await node.call())[0])

        group.start_soon(waits)
        await anyio.lowlevel.checkpoint()
        while (await node.call())[0] != 503:
            pass
        node.door.set()
    assert answers == [200]


@pytest.mark.spec("X-07")
async def test_the_limit_changes_while_the_node_runs_and_is_off_by_default() -> None:
    async with house() as node, anyio.create_task_group() as group:
        await node.filled(30, group)
        config = node.mesh.config
        node.mesh.config = config.model_validate(
            {**config.model_dump(exclude_unset=True), "inbound_limit": {"max_concurrent": 1}}
        )
        await node.filled(1, group)
        assert (await node.call())[0] == 503
        node.mesh.config = config
        await node.filled(1, group)
        node.door.set()


@pytest.mark.spec("X-07")
async def test_an_adaptive_limit_learns_from_the_time_to_the_head_of_answers() -> None:
    adaptive = {"min_concurrent": 2, "window": 0.001}
    async with house(max_concurrent=50, adaptive=adaptive) as node:
        for _ in range(400):
            node.door.clear()
            async with anyio.create_task_group() as group:
                await node.filled(2, group)
                node.door.set()
            if LimitChanged(None, 3) in node.seen:
                break
    assert LimitChanged(None, 2) in node.seen
    assert LimitChanged(None, 3) in node.seen


@pytest.mark.spec("X-07", "X-04")
async def test_callers_try_another_instance_and_count_it_against_none() -> None:
    """One in-process instance is full, so its answer comes through the layers of a caller."""
    async with house(max_concurrent=1) as node, anyio.create_task_group() as group:
        await node.filled(1, group)
        async with ServiceMesh("shop", services={"orders": node.app}) as shop:
            for _ in range(10):
                with pytest.raises(ServiceUnavailableError) as caught:
                    await shop.call_service("orders", "/wait", json={}, headers={"idempotency-key": "1"})
            assert caught.value.status_code == 503
            assert caught.value.attempts == 3  # again and at once: Retry-After is for those who have nobody else
            state = shop.states.get("orders")
            assert state.breaker.state == "closed"
            assert all(not each.ejected_until for each in state.instances.value)
        node.door.set()


def test_a_priority_has_one_of_three_names() -> None:
    with pytest.raises(ConfigurationError, match="'urgent' is none of low, normal, high"):
        RequestPriority("urgent")
