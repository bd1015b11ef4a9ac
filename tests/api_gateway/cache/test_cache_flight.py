"""Single flight: who asks, who waits, and what is left when somebody goes away."""

from __future__ import annotations

import asyncio

import pytest

from fastapi_mesh.api_gateway.cache.flight import MEMORY, Flights, Landing
from fastapi_mesh.api_gateway.exchange import Exchange
from fastapi_mesh.api_gateway.principal import Principal
from fastapi_mesh.core.message import Response
from fastapi_mesh.exceptions import UpstreamConnectionError
from tests.api_gateway.cache.cache_support import Parts, Reply, Stage, pairs, reply

pytestmark = pytest.mark.anyio

LONG = "Cache-Control: max-age=600"


class Held:
    """A service whose answers wait until they are let go."""

    def __init__(self, *headers: str, status: int = 200) -> None:
        self.headers = headers
        self.status = status
        self.waiting: list[asyncio.Event] = []
        self.count = 0

    async def __call__(self, request: Exchange) -> Response:
        self.count += 1
        number = self.count
        event = asyncio.Event()
        self.waiting.append(event)
        await event.wait()
        return reply(str(number), *self.headers, status=self.status)

    def let_go(self) -> None:
        for event in self.waiting:
            event.set()
        self.waiting.clear()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def start(stage: Stage, *headers: str, target: str = "/a", principal: Principal | None = None) -> asyncio.Task[Reply]:
    return stage.supervisor.start(stage.get(target, *headers, principal=principal), name="client")


@pytest.mark.spec("X-26")
async def test_of_many_requests_one_asks_and_all_are_served() -> None:
    held = Held(LONG)
    async with Stage(held) as stage:
        clients = [start(stage) for _ in range(50)]
        await turns()
        assert held.count == 1
        held.let_go()
        got = [await client for client in clients]

    assert {each.body for each in got} == {b"1"}
    assert [each.is_hit for each in got].count(False) == 1
    assert got[1].cache == "hit; ttl=600; detail=collapsed"
    assert stage.flights.statistics() == {"flights": 0, "waits": 49}


@pytest.mark.spec("X-26")
@pytest.mark.parametrize("said", ["Cache-Control: private", "Cache-Control: no-store", "Vary: *", "Set-Cookie: a=1"])
async def test_an_answer_that_is_for_one_client_is_given_to_one(said: str) -> None:
    held = Held(said)
    async with Stage(held, ttl=600.0) as stage:
        clients = [start(stage) for _ in range(5)]
        await turns()
        held.let_go()
        await turns()
        assert held.count == 5, "when the head is there, the others go by themselves, all at once"
        held.let_go()
        got = [await client for client in clients]
        more = [start(stage) for _ in range(5)]
        await turns()
        assert held.count == 10, "and next time nobody waits"
        held.let_go()
        got += [await client for client in more]

    assert sorted(int(each.body) for each in got) == list(range(1, 11))


@pytest.mark.spec("X-26", "B12")
async def test_clients_of_different_names_do_not_wait_for_each_other() -> None:
    held = Held(LONG)
    async with Stage(held) as stage:
        clients = [start(stage, principal=Principal(name, "jwt")) for name in ("ann", "bob", "ann")]
        await turns()
        assert held.count == 2
        held.let_go()
        got = [(await client).body for client in clients]

    assert got == [b"1", b"2", b"1"]


async def test_a_variant_of_another_client_is_not_waited_for_twice() -> None:
    async def script(request: Exchange) -> Response:
        await turns(3)
        language = next(value for name, value in request.headers if name == b"accept-language")
        return reply(language, LONG, "Vary: Accept-Language")

    async with Stage(script) as stage:
        clients = [start(stage, f"Accept-Language: {language}") for language in ("en", "de", "en", "de", "fr", "de")]
        got = [(await client).body for client in clients]

    assert got == [b"en", b"de", b"en", b"de", b"fr", b"de"]
    assert len(stage.calls) == 3


@pytest.mark.spec("X-26")
async def test_when_the_one_that_asks_goes_away_another_one_asks() -> None:
    held = Held(LONG)
    async with Stage(held) as stage:
        leader, *others = [start(stage) for _ in range(4)]
        await turns()
        leader.cancel()
        await turns()
        assert held.count == 2
        held.let_go()
        got = [(await client).body for client in others]

    assert got == [b"2", b"2", b"2"]


async def test_a_service_that_fails_is_asked_by_one_after_the_other() -> None:
    count = 0

    async def script(request: Exchange) -> Response:
        nonlocal count
        count += 1
        await turns(3)
        if count < 3:
            raise UpstreamConnectionError("gone")
        return reply("there", LONG)

    async with Stage(script) as stage:
        clients = [start(stage) for _ in range(5)]
        got = await asyncio.gather(*clients, return_exceptions=True)

    assert count == 3
    assert [isinstance(each, UpstreamConnectionError) for each in got].count(True) == 2


async def test_an_error_that_is_not_kept_lets_the_others_go() -> None:
    held = Held(status=503)
    async with Stage(held) as stage:
        clients = [start(stage) for _ in range(3)]
        await turns()
        held.let_go()
        await turns()
        assert held.count == 3
        held.let_go()
        assert [(await client).status for client in clients] == [503, 503, 503]
        more = [start(stage) for _ in range(3)]
        await turns()
        assert held.count == 4, "an error says nothing of whether the next answer can be kept"
        held.let_go()
        await turns()
        held.let_go()
        await asyncio.gather(*more)


@pytest.mark.spec("X-26")
async def test_nobody_waits_longer_than_it_is_told() -> None:
    held = Held(LONG)
    async with Stage(held, lock_timeout=0.02) as stage:
        clients = [start(stage) for _ in range(3)]
        await turns()
        assert held.count == 1
        while held.count < 3:  # noqa: ASYNC110  # nothing there has an event
            await asyncio.sleep(0.005)
        held.let_go()
        assert {(await client).status for client in clients} == {200}

    async with Stage(held := Held(LONG), lock_timeout=0.0) as stage:
        clients = [start(stage) for _ in range(3)]
        await turns()
        assert held.count == 3
        held.let_go()
        await asyncio.gather(*clients)


async def test_a_leader_whose_client_does_not_read_holds_nobody_for_longer() -> None:
    stuck = asyncio.Event()

    def script(request: Exchange) -> Response:
        return Response(200, pairs([LONG]), Parts([b"half", stuck, b"whole"]))

    async with Stage(script, lock_timeout=0.02) as stage:
        leader = start(stage)
        await turns()
        follower = start(stage)
        await turns()
        assert len(stage.calls) == 1
        while len(stage.calls) < 2:  # noqa: ASYNC110  # nothing there has an event
            await asyncio.sleep(0.005)
        stuck.set()
        assert (await follower).body == (await leader).body == b"halfwhole"


async def test_a_stale_answer_is_validated_once() -> None:
    gate = asyncio.Event()

    async def script(request: Exchange) -> Response:
        if any(name == b"if-none-match" for name, _ in request.headers):
            await gate.wait()
            return Response.of(304, pairs([LONG]), b"")
        return reply("x", "Cache-Control: max-age=5", 'ETag: "1"')

    async with Stage(script) as stage:
        await stage.get()
        stage.now += 6
        clients = [start(stage) for _ in range(5)]
        await turns()
        gate.set()
        got = [await client for client in clients]

    assert len(stage.calls) == 2
    assert {each.body for each in got} == {b"x"}


async def test_what_must_be_validated_each_time_is_validated_by_each() -> None:
    async def script(request: Exchange) -> Response:
        await turns(3)
        if any(name == b"if-none-match" for name, _ in request.headers):
            return Response.of(304, pairs(["Cache-Control: no-cache"]), b"")
        return reply("x", "Cache-Control: no-cache", 'ETag: "1"')

    async with Stage(script) as stage:
        clients = [start(stage) for _ in range(4)]
        got = [await client for client in clients]

    assert {each.body for each in got} == {b"x"}
    assert len(stage.calls) == 4


@pytest.mark.parametrize("when", range(12))
async def test_cancelled_at_any_moment_nothing_is_left(when: int) -> None:
    async def script(request: Exchange) -> Response:
        await turns(2)
        return Response(200, pairs([LONG]), Parts([b"a", b"b", b"c"]))

    async with Stage(script) as stage:
        clients = [start(stage) for _ in range(3)]
        await turns(when)
        for client in clients[:2]:
            client.cancel()
        last = await clients[2]
        await asyncio.gather(*clients, return_exceptions=True)
        entries = stage.memory.statistics()["entries"]
        again = await stage.get()

    assert last.body == again.body == b"abc"
    assert entries == 1


async def test_all_cancelled_at_any_moment_and_the_next_one_is_served() -> None:
    for when in range(12):
        async with Stage(Held(LONG)) as stage:
            clients = [start(stage) for _ in range(3)]
            await turns(when)
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            assert stage.flights.statistics()["flights"] == 0
            assert stage.memory.statistics()["entries"] == 0


def test_the_memory_of_what_is_not_shared_has_a_bound_and_an_end() -> None:
    now = 0.0
    flights = Flights(lambda: now)
    for number in range(MEMORY + 10):
        flight = flights.start(number)
        assert flight is not None
        flight.land(Landing.UNSHARED)
        flight.land(Landing.STORED)

    assert flights.start(MEMORY) is None
    first = flights.start(0)
    assert first is not None, "the oldest was forgotten"
    first.land(Landing.LOST)
    assert flights.start(MEMORY, doubted=False) is not None
    now = 61.0
    assert flights.start(MEMORY + 1) is not None


async def test_a_flight_that_has_landed_is_not_waited_for() -> None:
    flights = Flights()
    flight = flights.start("a")
    assert flight is not None
    flight.land(Landing.STORED)

    assert await flights.wait(flight, 60.0) is Landing.LOST
