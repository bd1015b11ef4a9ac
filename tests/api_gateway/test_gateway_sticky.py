"""Sticky sessions of a gateway's services: by header, and by a cookie that the gateway sets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from fastapi_mesh import APIGateway, ServiceMesh
from fastapi_mesh.core.instance import Instance

pytestmark = [pytest.mark.anyio, pytest.mark.spec("S-121", "X-01", "B23")]

COOKIE = {"sticky_sessions": True, "session_affinity_cookie": "lb"}


def application(name: str) -> FastAPI:
    app = FastAPI()

    @app.get("/{path:path}")
    async def answer(path: str, request: Request) -> PlainTextResponse:
        headers = {"cache-control": "public, max-age=60"} if path == "stored" else {}
        return PlainTextResponse(name, headers=headers, status_code=503 if path == name else 200)

    return app


def instances(count: int = 8) -> list[Instance]:
    return [
        Instance("up", f"up-{n}", f"up-{n}", 80, scheme="asgi", app=application(f"up-{n}"))  # type: ignore[arg-type]
        for n in range(count)
    ]


@asynccontextmanager
async def gateway_with(
    balancing: dict[str, object] | None, *, base: str = "http://gw", **options: object
) -> AsyncIterator[tuple[APIGateway, ServiceMesh, httpx2.AsyncClient]]:
    mesh = ServiceMesh("edge", discovery_backend="static", enable_tracing=False)
    mesh.add_service("up", instances())
    services = {"up": {"circuit_breaker": None} | ({} if balancing is None else {"balancing": balancing})}
    gateway = APIGateway(service_mesh=mesh, services=services, **options)  # type: ignore[arg-type]
    gateway.configure_routes([{"path": "/*", "service": "up", "cache": {}}])
    transport = httpx2.ASGITransport(app=gateway)
    async with gateway.opened({}), httpx2.AsyncClient(transport=transport, base_url=base) as client:
        yield gateway, mesh, client


async def test_a_cookie_is_set_once_and_leads_to_the_instance_that_answered_first() -> None:
    async with gateway_with(COOKIE) as (_, _, client):
        seen = []
        for n in range(20):
            client.cookies.clear()
            first = await client.get(f"/{n}")
            cookie = first.headers["set-cookie"]
            again = [await client.get(f"/{n}/{m}", headers={"cookie": cookie.split(";")[0]}) for m in range(5)]
            assert {each.text for each in again} == {first.text}
            assert all("set-cookie" not in each.headers for each in again)
            seen.append(first.text)

    assert len(set(seen)) > 3
    name, _, rest = cookie.partition("=")
    ticket, *attributes = rest.split("; ")
    assert (name, attributes) == ("lb", ["Path=/", "HttpOnly", "SameSite=Lax"])
    assert len(bytes.fromhex(ticket)) == 8, "a random number, which says nothing of the instance"


async def test_over_https_the_cookie_is_secure() -> None:
    async with gateway_with(COOKIE, base="https://gw") as (_, _, client):
        assert (await client.get("/")).headers["set-cookie"].endswith("; Secure")


async def test_the_header_counts_first_and_needs_no_cookie() -> None:
    async with gateway_with({**COOKIE, "session_affinity_header": "X-User-ID"}) as (_, _, client):
        answers = [await client.get(f"/{n}", headers={"x-user-id": "u7"}) for n in range(10)]

    assert len({each.text for each in answers}) == 1
    assert all("set-cookie" not in each.headers for each in answers)


async def test_by_header_alone_nothing_is_set_and_others_go_by_the_strategy() -> None:
    async with gateway_with({"sticky_sessions": True}) as (_, _, client):
        spread = [await client.get(f"/{n}") for n in range(8)]
        kept = {(await client.get(f"/a{n}", headers={"x-user-id": "42"})).text for n in range(10)}

    assert sorted(each.text for each in spread) == sorted(f"up-{n}" for n in range(8))
    assert all("set-cookie" not in each.headers for each in spread)
    assert len(kept) == 1


async def test_a_client_moves_when_its_instance_is_ejected_and_keeps_its_cookie() -> None:
    async with gateway_with(COOKIE, max_retries=0) as (_, _, client):
        own = (await client.get("/")).text
        failed = [(await client.get(f"/{own}?{n}")).status_code for n in range(5)]
        others = {(await client.get(f"/x{n}")).text for n in range(10)}

    assert failed == [503] * 5
    assert len(others) == 1
    assert others != {own}


async def test_an_answer_from_the_cache_brings_nobody_the_cookie_of_another() -> None:
    async with gateway_with(COOKIE) as (_, _, client):
        first = await client.get("/stored")
        client.cookies.clear()
        second = await client.get("/stored")

    assert "lb=" in first.headers["set-cookie"]
    assert second.text == first.text
    assert "set-cookie" not in second.headers


async def test_it_is_switched_on_and_off_while_the_gateway_runs() -> None:
    async with gateway_with(None) as (_, mesh, client):
        before = await client.get("/1")
        mesh.configure_load_balancing({"up": COOKIE})
        on = await client.get("/2")
        client.cookies.clear()
        mesh.configure_load_balancing({"up": {}})
        after = await client.get("/3")

    assert ["set-cookie" in each.headers for each in (before, on, after)] == [False, True, False]


async def test_other_routes_of_a_running_gateway_give_the_cookie_too_and_it_stays_good() -> None:
    async with gateway_with(COOKIE) as (gateway, _, client):
        first = await client.get("/1")
        cookie = first.headers["set-cookie"].split(";")[0]
        gateway.configure_routes([{"path": "/api/*", "service": "up"}])
        client.cookies.clear()
        new = await client.get("/api/2")
        client.cookies.clear()
        known = await client.get("/api/3", headers={"cookie": cookie})

    assert "set-cookie" in new.headers
    assert known.text == first.text
    assert "set-cookie" not in known.headers


async def test_nobody_gets_a_cookie_where_no_instance_was_asked() -> None:
    async with gateway_with(COOKIE) as (_, mesh, client):
        assert (await client.get("/1")).status_code == 200
        mesh.add_service("up", [])
        await anyio.wait_all_tasks_blocked()
        client.cookies.clear()
        away = await client.get("/2")

    assert away.status_code == 503
    assert "set-cookie" not in away.headers
