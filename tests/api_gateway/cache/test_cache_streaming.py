"""Bodies are stored while they stream: whole, in time, or not at all."""

from __future__ import annotations

import asyncio

import pytest

from fastapi_mesh.core.message import Outcome, Response
from fastapi_mesh.exceptions import UpstreamConnectionError
from tests.api_gateway.cache.cache_support import Parts, Stage, exchange, pairs

pytestmark = pytest.mark.anyio

LONG = "Cache-Control: max-age=600"


@pytest.mark.spec("X-26")
async def test_parts_reach_the_client_as_they_come_and_the_end_only_after_it_is_stored() -> None:
    second = asyncio.Event()

    async with Stage(lambda request: Response(200, pairs([LONG]), Parts([b"one", second, b"two"]))) as stage:
        response = await stage.cache(exchange("/a"))
        assert await response.read() == b"one", "nothing waits for the whole body"
        assert stage.memory.statistics()["entries"] == 0
        second.set()
        assert await response.read() == b"two"
        assert stage.memory.statistics()["entries"] == 1, "who has seen the end finds it in the cache"
        assert response.at_end
        await response.aclose()
        assert (await stage.get()).body == b"onetwo"


@pytest.mark.parametrize("parts", [[b"a", b"", b"b"], [b""], [], [b"all"]])
async def test_a_body_in_whatever_parts_is_stored_as_one(parts: list[bytes]) -> None:
    async with Stage(lambda request: Response(200, pairs([LONG]), Parts([part for part in parts if part]))) as stage:
        first = await stage.get()
        second = await stage.get()

    assert first.body == second.body == b"".join(parts)
    assert second.is_hit
    assert second["content-length"] == str(len(second.body))


@pytest.mark.spec("X-26")
async def test_a_body_that_breaks_off_is_not_stored() -> None:
    broken = UpstreamConnectionError("died")
    async with Stage(lambda request: Response(200, pairs([LONG]), Parts([b"half", broken]))) as stage:
        with pytest.raises(UpstreamConnectionError):
            await stage.get()
        assert stage.memory.statistics()["entries"] == 0


@pytest.mark.spec("X-26")
@pytest.mark.parametrize("read", [0, 1])
async def test_a_body_that_the_client_gave_up_is_not_stored(read: int) -> None:
    outcomes = []
    async with Stage(lambda request: Response(200, pairs([LONG]), Parts([b"a", b"b", b"c"]))) as stage:
        response = await stage.cache(exchange("/a"))
        response.on_close(lambda _, outcome, error: outcomes.append(outcome), None)
        for _ in range(read):
            await response.read()
        await response.aclose()
        await response.aclose()
        assert stage.memory.statistics()["entries"] == 0

    assert outcomes == [Outcome.ABANDONED]


@pytest.mark.spec("X-26")
async def test_a_body_that_is_too_long_streams_on_and_is_not_stored() -> None:
    async with Stage(
        lambda request: Response(200, pairs([LONG]), Parts([b"x" * 60, b"y" * 60])), max_object=100
    ) as stage:
        got = await stage.get()
        assert got.body == b"x" * 60 + b"y" * 60
        assert stage.memory.statistics()["entries"] == 0
        assert (await stage.get()).cache == "fwd=uri-miss; stored", "nobody knows it by the head"


async def test_a_body_that_says_that_it_is_too_long_is_not_even_kept_meanwhile() -> None:
    headers = [LONG, "Content-Length: 120"]
    async with Stage(lambda request: Response(200, pairs(headers), Parts([b"x" * 120])), max_object=100) as stage:
        got = await stage.get()

    assert got.cache == "fwd=uri-miss; detail=too-large"


async def test_a_hit_holds_nothing_of_the_service() -> None:
    body = Parts([b"a"])
    async with Stage(lambda request: Response(200, pairs([LONG]), body)) as stage:
        await stage.get()
        assert body.closed
        response = await stage.cache(exchange("/a"))
        assert len(stage.calls) == 1
        assert await response.read() == b"a"
        await response.aclose()


@pytest.mark.parametrize("said", [["Cache-Control: no-cache"], [], [LONG]])
async def test_event_streams_are_not_waited_for(said: list[str]) -> None:
    forever = asyncio.Event()
    headers = ["Content-Type: text/event-stream", *said]
    async with Stage(lambda request: Response(200, pairs(headers), Parts([b"data: 1", forever])), ttl=60.0) as stage:
        first = await stage.cache(exchange("/events"))
        second = await stage.cache(exchange("/events"))
        assert (await first.read(), await second.read()) == (b"data: 1", b"data: 1")
        assert len(stage.calls) == 2
        await first.aclose()
        await second.aclose()
