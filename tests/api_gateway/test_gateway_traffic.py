"""Split, canary, mirror and planted faults, through a whole gateway with applications behind it."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.conditions import Carries
from fastapi_mesh.api_gateway.split import Shares
from fastapi_mesh.config.edge.traffic import SplitPolicy
from fastapi_mesh.exceptions import ConfigurationError

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-28")]


class Service:
    """An application that says its name, and remembers what it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.asked = anyio.Event()
        self.asked_thrice = anyio.Event()
        self.gate: anyio.Event | None = None
        self.status = 200
        self.app = FastAPI()
        self.app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE"])(self.answer)

    async def answer(self, request: Request) -> PlainTextResponse:
        self.seen.append((request.method, request.url.path, await request.body(), dict(request.headers)))
        self.asked.set()
        if len(self.seen) == 3:
            self.asked_thrice.set()
        if self.gate is not None:
            await self.gate.wait()
        return PlainTextResponse(self.name, status_code=self.status)


@asynccontextmanager
async def gateway_with(route: dict[str, object], *services: Service):  # type: ignore[no-untyped-def]
    gateway = APIGateway(services={service.name: service.app for service in services}, max_retries=0)
    gateway.configure_routes([{"path": "/*", "service": services[0].name, **route}])
    transport = httpx2.ASGITransport(app=gateway)
    async with gateway.opened({}), httpx2.AsyncClient(transport=transport, base_url="http://gw") as client:
        yield gateway, client


# Weighted split.


def test_shares_follow_the_weights() -> None:
    shares = Shares(SplitPolicy(services={"old": 90, "new": 10, "off": 0}))
    draw = random.Random(7).random

    counts = Counter(shares.pick(draw()) for _ in range(20_000))

    assert set(counts) == {"old", "new"}
    assert 0.09 < counts["new"] / 20_000 < 0.11
    assert shares.pick(0.0) == "old"
    assert shares.pick(1 - 2**-53) == "new"


def test_a_growing_share_keeps_those_it_has() -> None:
    small, large = (Shares(SplitPolicy(services={"new": weight, "old": 100 - weight})) for weight in (10, 20))
    numbers = [number / 1000 for number in range(1000)]

    kept = [number for number in numbers if small.pick(number) == "new"]

    assert len(kept) == 100
    assert all(large.pick(number) == "new" for number in kept)


async def test_a_share_of_the_requests_goes_to_the_other_service() -> None:
    old, new = Service("old"), Service("new")

    async with gateway_with({"split": {"old": 1, "new": 1}}, old, new) as (_, client):
        answers = Counter([(await client.get("/x")).text for _ in range(200)])

    assert answers["old"] + answers["new"] == 200
    assert 60 < answers["old"] < 140, "a fair coin leaves this range once in 10 million runs"


async def test_a_sticky_header_gets_the_same_service_every_time() -> None:
    old, new = Service("old"), Service("new")

    async with gateway_with({"split": {"services": {"old": 1, "new": 1}, "sticky_header": "X-User-ID"}}, old, new) as (
        _,
        client,
    ):
        seen = [
            {(await client.get("/", headers={"x-user-id": f"user-{user}"})).text for _ in range(4)}
            for user in range(20)
        ]

    assert all(len(each) == 1 for each in seen)
    assert set().union(*seen) == {"old", "new"}


async def test_a_sticky_cookie_is_set_once_and_says_nothing_of_the_services() -> None:
    old, new = Service("old"), Service("new")
    split = {"services": {"old": 1, "new": 1}, "sticky_cookie": "version"}

    async with gateway_with({"split": split}, old, new) as (_, client):
        first = await client.get("/")
        cookie = first.headers["set-cookie"]
        again = [await client.get("/", headers={"cookie": cookie.split(";")[0]}) for _ in range(10)]

    assert {each.text for each in again} == {first.text}
    assert all("set-cookie" not in each.headers for each in again)
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie, "the client came over http"
    assert "old" not in cookie
    assert "new" not in cookie.replace("version", "")


@pytest.mark.parametrize("value", ["", "zz", "ff", "old", "ff" * 9, '"0011223344556677"', "%00"])
async def test_a_cookie_that_is_not_ours_is_replaced(value: str) -> None:
    old, new = Service("old"), Service("new")

    async with gateway_with({"split": {"services": {"old": 1, "new": 1}, "sticky_cookie": "v"}}, old, new) as (
        _,
        client,
    ):
        response = await client.get("/", headers={"cookie": f"v={value}"})

    assert response.status_code == 200
    assert response.headers["set-cookie"].startswith("v=")


async def test_the_shares_change_while_the_gateway_runs() -> None:
    old, new = Service("old"), Service("new")

    async with gateway_with({"split": {"old": 1, "new": 0}}, old, new) as (gateway, client):
        before = {(await client.get("/")).text for _ in range(20)}
        gateway.change_route("/*", split={"old": 0, "new": 1})
        after = {(await client.get("/")).text for _ in range(20)}
        gateway.change_route("/*", split=None)
        last = {(await client.get("/")).text for _ in range(20)}

    assert (before, after, last) == ({"old"}, {"new"}, {"old"})


async def test_a_change_of_a_route_that_is_wrong_changes_nothing() -> None:
    old, new = Service("old"), Service("new")

    async with gateway_with({"split": {"old": 1}}, old, new) as (gateway, client):
        for route, change, text in [
            ("/none", {"split": None}, "no route '/none'"),
            ("/*", {"split": {"nwe": 1}}, "'nwe' is not a known service"),
            ("/*", {"fault": {"abort": {"status": 200}}}, "400"),
            ("/*", {"spilt": None}, "did you mean 'split'"),
        ]:
            with pytest.raises(ConfigurationError, match=text):
                gateway.change_route(route, **change)
        assert (await client.get("/")).text == "old"


@pytest.mark.parametrize(
    ("route", "text"),
    [
        ({"split": {"old": 0}}, "nobody could answer"),
        ({"split": {"old": -1}}, "split.services.old"),
        ({"split": {"services": {}}}, "nobody could answer"),
        ({"canary": {"service": "new"}}, "every request would match"),
        ({"mirror": {"service": "new", "percent": 101}}, "mirror.percent"),
        ({"fault": {}}, "neither a delay nor an abort"),
        ({"fault": {"abort": {"status": 302}}}, "fault.abort.status"),
        ({"fault": {"delay": {"seconds": -1}}}, "fault.delay.seconds"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(route: dict[str, object], text: str) -> None:
    gateway = APIGateway(services={"old": "http://127.0.0.1:1", "new": "http://127.0.0.1:2"})

    with pytest.raises(ConfigurationError, match=text):
        gateway.configure_routes([{"path": "/*", "service": "old", **route}])


async def test_a_share_for_a_service_that_nobody_knows_is_refused_when_the_gateway_opens() -> None:
    gateway = APIGateway(services={"old": "http://127.0.0.1:1"})
    gateway.configure_routes([{"path": "/*", "service": "old", "split": {"old": 1, "odl": 1}}])

    with pytest.raises(ConfigurationError, match=r"routes\[0\].split.services.odl: 'odl' is not a known service"):
        await gateway.open_in({})


# Canary.


async def test_a_canary_goes_before_the_split() -> None:
    old, new = Service("old"), Service("new")
    canary = [{"service": "new", "headers": {"X-Canary": "*"}}, {"service": "new", "cookies": {"beta": "1"}}]

    async with gateway_with({"split": {"old": 1}, "canary": canary}, old, new) as (_, client):
        plain = await client.get("/")
        by_header = await client.get("/", headers={"x-canary": "anything"})
        by_cookie = await client.get("/", headers={"cookie": "a=b; beta=1"})
        other_value = await client.get("/", headers={"cookie": "beta=2"})

    assert [each.text for each in (plain, by_header, by_cookie, other_value)] == ["old", "new", "new", "old"]


@pytest.mark.parametrize(
    ("received", "matches"),
    [
        ([(b"x-a", b"1")], True),
        ([(b"x-a", b"2"), (b"x-a", b"1")], True),
        ([(b"x-a", b"2")], False),
        ([], False),
    ],
)
def test_one_of_several_values_is_enough(received: list[tuple[bytes, bytes]], matches: bool) -> None:
    assert Carries({"X-A": "1"})(received) is matches


# Mirror.


async def test_a_copy_goes_to_the_mirror_and_its_answer_nowhere() -> None:
    live, shadow = Service("live"), Service("shadow")
    shadow.status = 500

    async with gateway_with({"mirror": {"service": "shadow"}}, live, shadow) as (_, client):
        response = await client.post("/pay?x=1", content=b"3 euros", headers={"x-user": "7"})
        with anyio.fail_after(5):
            await shadow.asked.wait()

    assert (response.status_code, response.text) == (200, "live")
    [(method, path, body, headers)] = shadow.seen
    assert (method, path, body, headers["x-user"]) == ("POST", "/pay", b"3 euros", "7")
    assert headers["x-mesh-shadow"] == "true"
    assert headers["x-request-id"] == live.seen[0][3]["x-request-id"] == response.headers["x-request-id"]
    assert "x-mesh-shadow" not in live.seen[0][3]


async def test_a_mirror_that_hangs_holds_nobody_up_and_gets_no_more_than_it_may() -> None:
    live, shadow = Service("live"), Service("shadow")
    shadow.gate = anyio.Event()

    async with gateway_with({"mirror": {"service": "shadow", "max_concurrent": 3}}, live, shadow) as (gateway, client):
        with anyio.fail_after(5):
            for _ in range(20):
                assert (await client.get("/")).text == "live"
            await shadow.asked_thrice.wait()
        assert gateway.life is not None
        text = gateway.life.mesh.metrics.render()[0].decode() if gateway.life.mesh.metrics is not None else ""
        shadow.gate.set()

    assert len(shadow.seen) == 3
    assert 'gateway_mirrored_requests_total{path="/*",result="left-out"} 17.0' in text


async def test_a_mirror_that_is_dead_is_not_noticed() -> None:
    live = Service("live")
    gateway = APIGateway(services={"live": live.app, "shadow": "http://127.0.0.1:9"})
    gateway.configure_routes([{"path": "/*", "service": "live", "mirror": {"service": "shadow"}}])
    transport = httpx2.ASGITransport(app=gateway)

    async with gateway.opened({}), httpx2.AsyncClient(transport=transport, base_url="http://gw") as client:
        answers = [await client.get("/") for _ in range(10)]

    assert {each.status_code for each in answers} == {200}


async def test_a_streamed_body_is_not_copied() -> None:
    live, shadow = Service("live"), Service("shadow")

    async def parts():  # type: ignore[no-untyped-def]
        yield b"a"
        yield b"b"

    async with gateway_with({"mirror": {"service": "shadow"}}, live, shadow) as (_, client):
        response = await client.post("/", content=parts())

    assert response.text == "live"
    assert live.seen[0][2] == b"ab"
    assert shadow.seen == []


# Faults.


async def test_an_abort_is_an_answer_that_names_its_rule_and_reaches_no_service() -> None:
    live = Service("live")

    async with gateway_with({"fault": {"abort": {"status": 503}}}, live) as (gateway, client):
        response = await client.get("/")
        assert gateway.life is not None
        assert gateway.life.mesh.metrics is not None
        text = gateway.life.mesh.metrics.render()[0].decode()

    assert response.status_code == 503
    assert response.json()["reason"] == response.headers["x-mesh-reason"] == "fault-injected"
    assert live.seen == []
    assert 'gateway_local_responses_total{path="/*",reason="fault-injected"} 1.0' in text


async def test_a_share_of_the_requests_fails() -> None:
    live = Service("live")

    async with gateway_with({"fault": {"abort": {"status": 500, "percent": 50}}}, live) as (_, client):
        answers = Counter([(await client.get("/")).status_code for _ in range(200)])

    assert 60 < answers[500] < 140
    assert answers[200] == len(live.seen) == 200 - answers[500]


async def test_faults_can_be_for_those_who_ask() -> None:
    live = Service("live")
    fault = {"abort": {"status": 418}, "headers": {"X-Chaos": "on"}}

    async with gateway_with({"fault": fault}, live) as (_, client):
        asked = await client.get("/", headers={"x-chaos": "on"})
        other = await client.get("/")

    assert (asked.status_code, other.status_code) == (418, 200)


async def test_a_delay_comes_before_the_service_is_asked() -> None:
    live = Service("live")

    async with gateway_with({"fault": {"delay": {"seconds": 30}}}, live) as (_, client):
        with anyio.move_on_after(0.05) as scope:
            await client.get("/")

    assert scope.cancelled_caught
    assert live.seen == []
