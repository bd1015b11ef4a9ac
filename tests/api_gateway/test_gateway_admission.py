"""A gateway that answers only so many requests at the same time."""

from __future__ import annotations

import asyncio

import pytest

from fastapi_mesh.api_gateway import APIGateway
from tests.api_gateway.gateway_support import OK, RawUpstream, parts, request, serving, talk

pytestmark = pytest.mark.anyio


class Slow:
    """What an upstream answers, once `leave` is set."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()
        self.waiting = 0
        self._came = asyncio.Condition()

    async def reach(self, count: int) -> None:
        """Wait until so many requests wait."""
        async with asyncio.timeout(20), self._came:
            await self._came.wait_for(lambda: self.waiting >= count)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        async with self._came:
            self.waiting += 1
            self._came.notify_all()
        await self.leave.wait()
        writer.write(OK)
        return True


def new_gateway(url: str, limit: object) -> APIGateway:
    gateway = APIGateway(services={"up": url}, inbound_limit=limit, enable_metrics=False)
    gateway.configure_routes(
        [
            {"path": "/x/*", "service": "up"},
            {"path": "/reports/*", "service": "up", "request_priority": "low"},
        ]
    )
    return gateway


@pytest.mark.spec("X-07")
async def test_what_is_too_much_for_a_gateway_gets_503_before_its_body_is_read() -> None:
    slow = Slow()
    async with RawUpstream(slow) as upstream, serving(new_gateway(upstream.url, {"max_concurrent": 5})) as port:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(talk(port, request(f"GET /x/{n}"))) for n in range(4)]
            await slow.reach(4)
            low = await talk(port, request("GET /reports/sales"))  # 80 % of the seats are taken
            running.append(tasks.create_task(talk(port, request("GET /x/5"))))
            await slow.reach(5)
            refused = await talk(port, request("POST /x/6", "content-length: 1000000"))
            slow.leave.set()

        for raw in (low, refused):
            status, headers, _ = parts(raw)
            assert status == 503
            assert dict(headers)[b"x-mesh-reason"] == b"overloaded"
            assert dict(headers)[b"retry-after"] == b"1"
        assert [parts(each.result())[0] for each in running] == [200] * 5
        assert parts(await talk(port, request("GET /reports/sales")))[0] == 200  # all seats are back


@pytest.mark.spec("X-07")
async def test_a_service_is_told_the_priority_of_the_route_and_not_what_a_client_says() -> None:
    async with RawUpstream() as upstream, serving(new_gateway(upstream.url, None)) as port:
        await talk(port, request("GET /reports/sales", "x-mesh-priority: high"))
        await talk(port, request("GET /x/1", "x-mesh-priority: high"))

    low, normal = upstream.received
    assert b"x-mesh-priority: low" in low
    assert b"x-mesh-priority: high" not in low
    assert b"x-mesh-priority" not in normal
