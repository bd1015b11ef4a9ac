"""What was changed is forgotten, also what is on its way at that moment."""

from __future__ import annotations

import asyncio

import pytest

from fastapi_mesh.api_gateway.cache.key import Scope
from fastapi_mesh.api_gateway.exchange import Exchange
from fastapi_mesh.api_gateway.principal import Principal
from fastapi_mesh.api_gateway.routes import Route
from fastapi_mesh.config.gateway import RouteConfig
from fastapi_mesh.core.message import Response
from fastapi_mesh.exceptions import CircuitBreakerOpenError, UpstreamConnectionError, UpstreamTimeoutError
from tests.api_gateway.cache.cache_support import Parts, Script, Stage, exchange, numbered, pairs, reply

pytestmark = pytest.mark.anyio

LONG = "Cache-Control: max-age=600"


def held_by(gate: asyncio.Event) -> Script:
    """A service whose answers to GET stop in the middle until the gate opens."""

    def answer(request: Exchange) -> Response:
        if request.method == b"POST":
            return reply("changed")
        return Response(200, pairs([LONG]), Parts([b"old", gate, b" data"]))

    return answer


@pytest.mark.spec("X-26", "B12")
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH", "INVENTED"])
async def test_an_unsafe_method_makes_the_path_forgotten_with_all_its_queries_and_for_everybody(method: str) -> None:
    async with Stage(numbered(LONG)) as stage:
        ann = Principal("ann", "jwt")
        for target in ("/orders", "/orders?page=2", "/orders/7"):
            await stage.get(target)
            await stage.get(target, principal=ann)
        changed = await stage.get("/orders", method=method)
        hits = {
            target: ((await stage.get(target)).is_hit, (await stage.get(target, principal=ann)).is_hit)
            for target in ("/orders", "/orders?page=2", "/orders/7")
        }

    assert not changed.is_hit
    assert hits == {"/orders": (False, False), "/orders?page=2": (False, False), "/orders/7": (True, True)}


@pytest.mark.spec("B12")
async def test_a_post_is_never_answered_from_the_cache_or_stored() -> None:
    async with Stage(numbered(f"{LONG}, public", "Content-Location: /a")) as stage:
        bodies = [(await stage.get(method="POST")).body for _ in range(2)]
        assert (await stage.get()).body == b"3"

    assert bodies == [b"1", b"2"]


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PROPFIND", "REPORT", "SEARCH", "QUERY"])
async def test_a_safe_method_changes_nothing(method: str) -> None:
    async with Stage(numbered(LONG)) as stage:
        await stage.get()
        await stage.get(method=method)
        assert (await stage.get()).is_hit


async def test_a_change_that_failed_invalidates_nothing() -> None:
    status = 200
    async with Stage(lambda request: reply("x", LONG, status=status)) as stage:
        await stage.get()
        for status in (400, 409, 500, 503):  # noqa: B007  # the service above answers with it
            await stage.get(method="POST")
            assert (await stage.get()).is_hit


@pytest.mark.parametrize(
    ("error", "forgotten"),
    [
        (UpstreamTimeoutError("slow"), True),
        (UpstreamConnectionError("died", request_sent=True), True),
        (UpstreamConnectionError("refused", request_sent=False), False),
        (CircuitBreakerOpenError("open"), False),
    ],
)
async def test_when_nobody_knows_whether_it_happened_it_counts_as_done(error: Exception, forgotten: bool) -> None:
    def script(request: Exchange) -> Response:
        if request.method == b"POST":
            raise error
        return reply("x", LONG)

    async with Stage(script) as stage:
        await stage.get()
        with pytest.raises(type(error)):
            await stage.get(method="POST")
        await stage.settled()
        assert (await stage.get()).is_hit is not forgotten


async def test_a_client_that_leaves_in_the_middle_of_its_change_has_perhaps_made_it() -> None:
    stuck = asyncio.Event()

    async def script(request: Exchange) -> Response:
        if request.method == b"POST":
            await stuck.wait()
        return reply("x", LONG)

    async with Stage(script) as stage:
        await stage.get()
        client = stage.supervisor.start(stage.get(method="POST"), name="client")
        await asyncio.sleep(0)
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)
        await stage.settled()
        assert not (await stage.get()).is_hit


@pytest.mark.parametrize("field", ["Location", "Content-Location"])
@pytest.mark.parametrize(
    ("value", "forgotten"),
    [
        ("/orders/7", True),
        ("http://gw/orders/7", True),
        ("https://GW/orders/7?x", True),
        ("orders/7", True),
        ("//gw/orders/7", True),
        ("http://other/orders/7", False),
        ("//other/orders/7", False),
        ("http://[broken", False),
        ("ftp://gw/orders/7", False),
        ("/orders/8", False),
    ],
)
async def test_what_the_answer_names_is_forgotten_too_if_it_is_ours(field: str, value: str, forgotten: bool) -> None:
    def script(request: Exchange) -> Response:
        return reply("x", LONG, *([f"{field}: {value}"] if request.method == b"POST" else []))

    async with Stage(script) as stage:
        await stage.get("/orders/7")
        await stage.get("/orders", method="POST")
        assert (await stage.get("/orders/7")).is_hit is not forgotten


async def test_a_service_behind_a_stripped_prefix_may_name_itself_by_its_own_paths() -> None:
    route = Route(RouteConfig(path="/api/*", service="up", strip_prefix=True))

    def script(request: Exchange) -> Response:
        return reply("x", LONG, *(["Location: /orders/7"] if request.method == b"POST" else []))

    async with Stage(script, route=route) as stage:
        await stage.get("/api/orders/7")
        change = exchange("/api/orders", method="POST", route=route)
        change.target = b"/orders"
        response = await stage.cache(change)
        await response.aclose()
        assert not (await stage.get("/api/orders/7")).is_hit


@pytest.mark.spec("X-26")
@pytest.mark.parametrize("scope", [Scope("path", b"/a"), Scope("all"), Scope("prefix", b"/"), Scope("route", b"/*")])
async def test_an_answer_from_before_a_change_is_not_stored_after_it(scope: Scope) -> None:
    gate = asyncio.Event()
    async with Stage(held_by(gate)) as stage:
        slow = stage.supervisor.start(stage.get(), name="client")
        for _ in range(5):
            await asyncio.sleep(0)
        if scope.kind == "path":
            await stage.get("/a", method="POST")
        else:
            await stage.engine.purge(scope)
        gate.set()
        assert (await slow).body == b"old data"
        assert stage.memory.statistics()["entries"] == 0


async def test_a_change_of_something_else_doesn_t_keep_an_answer_out() -> None:
    gate = asyncio.Event()
    async with Stage(held_by(gate)) as stage:
        slow = stage.supervisor.start(stage.get(), name="client")
        for _ in range(5):
            await asyncio.sleep(0)
        await stage.engine.purge(Scope("path", b"/b"))
        gate.set()
        await slow
        assert stage.memory.statistics()["entries"] == 1


async def test_after_more_changes_than_are_remembered_nothing_old_is_stored() -> None:
    gate = asyncio.Event()
    async with Stage(held_by(gate)) as stage:
        slow = stage.supervisor.start(stage.get(), name="client")
        for _ in range(5):
            await asyncio.sleep(0)
        for number in range(2000):
            await stage.engine.purge(Scope("path", b"/%d" % number))
        gate.set()
        await slow
        assert stage.memory.statistics()["entries"] == 0


@pytest.mark.parametrize(
    ("scope", "left"),
    [
        (Scope("all"), set()),
        (Scope("path", b"/a"), {"/a/b", "/ab"}),
        (Scope("prefix", b"/a"), {"/ab"}),
        (Scope("prefix", b"/a/"), {"/ab"}),
        (Scope("route", b"/*"), set()),
        (Scope("route", b"/other/*"), {"/a", "/a?q", "/a/b", "/ab"}),
        (Scope("key", b"http://gw/a?q"), {"/a", "/a/b", "/ab"}),
    ],
)
async def test_a_purge_forgets_what_it_is_about(scope: Scope, left: set[str]) -> None:
    targets = ("/a", "/a?q", "/a/b", "/ab")
    async with Stage(numbered(LONG)) as stage:
        for target in targets:
            await stage.get(target)
        await stage.engine.purge(scope)
        kept = {target for target in targets if (await stage.get(target, "Cache-Control: max-stale")).is_hit}

    assert kept == left
