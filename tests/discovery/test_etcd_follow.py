"""What following etcd's keys does with each message that it may get, by a server that says what the test tells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing

import pytest

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.etcd_client import EtcdClient
from fastapi_mesh.discovery.etcd_feed import Feed
from fastapi_mesh.discovery.etcd_follow import Batch, Follow
from fastapi_mesh.discovery.etcd_messages import EtcdError, Kind, encoded
from fastapi_mesh.discovery.etcd_rows import Space, Stored, read
from fastapi_mesh.exceptions import ServiceUnavailableError, UpstreamConnectionError, UpstreamTimeoutError
from fastapi_mesh.testing import FakeClock
from fastapi_mesh.wire.http import ControlResponse

pytestmark = [pytest.mark.anyio, pytest.mark.spec("S-102", "X-57")]

Body = Mapping[str, object]
CUT = UpstreamConnectionError("cut", request_sent=True)
SILENCE = UpstreamTimeoutError("silence", phase="read")


def header(revision: int, term: int = 2) -> dict[str, object]:
    return {"header": {"cluster_id": "1", "member_id": "2", "revision": str(revision), "raft_term": str(term)}}


def key(name: str, value: str = "1", revision: int = 1) -> dict[str, str]:
    return {
        "key": encoded(name.encode()),
        "value": encoded(value.encode()),
        "create_revision": str(revision),
        "mod_revision": str(revision),
    }


def created(revision: int, term: int = 2) -> dict[str, object]:
    return {**header(revision, term), "created": True}


def put(name: str, value: str, revision: int) -> dict[str, object]:
    return {"kv": key(name, value, revision)}


def events(revision: int, *each: dict[str, object]) -> dict[str, object]:
    return {**header(revision), "events": list(each)}


class Script:
    """A server: `ranges` are its answers to `kv/range`, `watches` the messages or errors of each watch; then silence.

    `starts` are the revisions from which it was asked to watch.
    """

    def __init__(self, *, ranges: list[object] | None = None, watches: list[list[object]] | None = None) -> None:
        self.ranges = ranges or []
        self.watches = watches or []
        self.starts: list[int] = []
        self.asked: list[str] = []
        self.headers: list[str | None] = []
        self.answer: Callable[[str, Body], object] | None = None

    async def request(
        self, method: str, path: str, *, json: Body, headers: Mapping[str, str] | None = None, **_: object
    ) -> ControlResponse:
        self.asked.append(path.removeprefix("/v3/"))
        self.headers.append((headers or {}).get("Authorization"))
        await asyncio.sleep(0)
        found = self.answer(path.removeprefix("/v3/"), json) if self.answer else self.ranges.pop(0)
        if isinstance(found, Exception):
            raise found
        status, body = found if isinstance(found, tuple) else (200, found)
        return ControlResponse(status, {}, body if isinstance(body, bytes) else dumps(body).encode())

    async def stream_lines(
        self, method: str, path: str, *, json: Body, headers: Mapping[str, str] | None = None, **_: object
    ) -> AsyncIterator[str]:
        request = json["create_request"]
        assert isinstance(request, Mapping)
        self.starts.append(int(request["start_revision"]))
        self.headers.append((headers or {}).get("Authorization"))
        for message in self.watches.pop(0) if self.watches else []:
            if isinstance(message, Exception):
                raise message
            yield dumps({"result": message})
        await asyncio.get_running_loop().create_future()

    async def aclose(self) -> None:
        """Nothing is open."""


def dumps(body: object) -> str:
    return json.dumps(body)


def follower(script: Script, clock: FakeClock | None = None) -> Follow[str]:
    client = EtcdClient({"one": script})
    return Follow(client, b"a", b"b", lambda found: found.value.decode(), clock=clock or FakeClock())


async def take(follow: Follow[str], number: int) -> list[Batch[str]]:
    taken = []
    async with asyncio.timeout(5), aclosing(follow.changes()) as batches:
        async for batch in batches:
            taken.append(batch)
            if len(taken) == number:
                break
    return taken


async def test_everything_comes_page_by_page_as_of_one_revision():
    pages = [
        {**header(7), "kvs": [key("a1"), key("a2")], "more": True},
        {**header(9), "kvs": [key("a3")]},
    ]
    bodies: list[Body] = []

    def answer(path: str, body: Body) -> object:
        bodies.append(body)
        return pages.pop(0)

    script = Script(watches=[[created(9)]])
    script.answer = answer

    batch, _ = await take(follower(script), 2)

    assert (dict(batch.changes), batch.complete) == ({b"a1": "1", b"a2": "1", b"a3": "1"}, True)
    assert [body.get("revision") for body in bodies] == [None, "7"]
    assert bodies[1]["key"] == encoded(b"a2\0")
    assert script.starts == [8]


async def test_of_a_backlog_that_comes_in_parts_nothing_is_skipped_when_it_is_cut_in_between():
    """etcd sends the revision that it will have got to, with the first part already."""
    watches = [
        [created(2), events(900, put("a1", "x", 3), put("a2", "y", 4)), SILENCE],
        [created(900)],
    ]
    script = Script(ranges=[header(2)], watches=watches)

    await take(follower(script), 4)

    assert script.starts == [3, 5]


async def test_progress_without_events_moves_on_so_that_a_compaction_costs_nothing():
    script = Script(ranges=[header(2)], watches=[[created(2), header(50), SILENCE], [created(50)]])

    await take(follower(script), 3)

    assert script.starts == [3, 51]


async def test_of_several_changes_of_a_key_in_one_message_the_last_counts():
    gone = {"type": "DELETE", "kv": {"key": encoded(b"a1"), "mod_revision": "4"}}
    message = events(6, put("a1", "x", 3), gone, put("a2", "y", 5), {**gone, "kv": {**gone["kv"], "mod_revision": "6"}})  # type: ignore[dict-item]  # a table
    script = Script(ranges=[header(2)], watches=[[created(2), message]])

    batch = (await take(follower(script), 3))[-1]

    assert dict(batch.changes) == {b"a1": None, b"a2": "y"}


async def test_what_is_compacted_is_asked_for_anew():
    compacted = {**header(0), "canceled": True, "compact_revision": "40"}
    script = Script(
        ranges=[header(2), {**header(50), "kvs": [key("a1")]}], watches=[[created(50), compacted], [created(50)]]
    )

    batches = await take(follower(script), 4)

    assert [batch.complete for batch in batches] == [True, False, True, False]
    assert not batches[2].restored
    assert script.starts == [3, 51]


@pytest.mark.parametrize(("revision", "term"), [(3, 2), (900, 1), (3, 9)])
async def test_a_server_that_knows_less_than_before_is_asked_for_everything(revision: int, term: int):
    script = Script(
        ranges=[header(50), header(revision, term)],
        watches=[[created(50), SILENCE], [created(revision, term)], [created(revision, term)]],
    )

    batches = await take(follower(script), 4)

    assert [batch.complete for batch in batches] == [True, False, True, False]
    assert batches[2].restored


async def test_a_server_that_lost_what_came_after_the_watch_began_is_asked_for_everything_too():
    script = Script(
        ranges=[header(50), header(60)],
        watches=[[created(50), events(900, put("a1", "x", 800)), SILENCE], [created(60)], [created(60)]],
    )

    batches = await take(follower(script), 5)

    assert [batch.complete for batch in batches] == [True, False, False, True, False]
    assert batches[3].restored
    assert script.starts == [51, 801, 61]


async def test_a_server_that_compacts_without_end_is_an_error_and_no_loop():
    compacted = {**header(0), "canceled": True, "compact_revision": "40"}
    script = Script(ranges=[header(2)] * 10, watches=[[compacted]] * 10)

    with pytest.raises(EtcdError):
        await take(follower(script), 100)

    assert len(script.starts) == 3


async def test_a_watch_that_is_cut_at_once_is_an_error_after_which_it_goes_on_where_it_was():
    script = Script(ranges=[header(2)], watches=[[created(2), events(5, put("a1", "x", 5)), CUT], [created(5)]])
    follow = follower(script)

    with pytest.raises(EtcdError):
        await take(follow, 100)
    (batch,) = await take(follow, 1)

    assert script.starts == [3, 6]
    assert not batch.complete


async def test_a_watch_that_is_cut_after_a_while_is_opened_again_at_once():
    clock = FakeClock()
    script = Script(ranges=[header(2)], watches=[[created(2), events(5, put("a1", "x", 5)), CUT], [created(5)]])

    async with asyncio.timeout(5), aclosing(follower(script, clock).changes()) as batches:
        for _ in range(3):
            await anext(batches)
        await clock.advance(2.0)
        await anext(batches)

    assert script.starts == [3, 6]


@pytest.mark.parametrize("revision", [9, 1])
async def test_a_follower_that_stood_still_for_long_asks_for_everything(revision: int):
    clock = FakeClock()
    script = Script(ranges=[header(2), header(revision)], watches=[[created(2)], [created(revision)]])
    follow = follower(script, clock)
    await take(follow, 2)

    await clock.advance(61.0)
    batches = await take(follow, 2)

    assert batches[0].complete
    assert batches[0].restored == (revision < 2)
    assert script.starts == [3, revision + 1]


@pytest.mark.parametrize(
    "answer",
    [
        {"kvs": []},
        {"header": {}, "kvs": []},
        {**header(2), "kvs": {}},
        {**header(2), "kvs": [7]},
        {**header(2), "kvs": [{"key": "!!"}]},
        {**header(2), "kvs": [{"value": "eA=="}]},
        {"header": {"cluster_id": "1", "revision": "x"}},
        (503, b"busy"),
        (429, b""),
        (500, {"error": "etcdserver: request timed out", "code": 14}),
    ],
    ids=str,
)
async def test_nonsense_and_trouble_are_errors_that_may_pass(answer: object):
    with pytest.raises(EtcdError) as caught:
        await take(follower(Script(ranges=[answer])), 1)

    assert caught.value.kind is Kind.AWAY


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ((404, b"<html>"), "no etcd of version 3.4"),
        ((200, b"<html>"), "no etcd of version 3.4"),
        ((403, {"error": "etcdserver: permission denied", "code": 7}), "permission denied"),
        ((400, {"error": "etcdserver: user name is empty", "code": 3}), "give username and password"),
        ((200, {"error": {"grpc_code": 7, "message": "etcdserver: permission denied"}}), "permission denied"),
    ],
    ids=str,
)
async def test_what_waiting_does_not_mend_is_told_apart(answer: object, named: str):
    with pytest.raises(EtcdError, match=named) as caught:
        await take(follower(Script(ranges=[answer])), 1)

    assert caught.value.kind is Kind.REFUSED


async def test_the_next_endpoint_is_asked_and_stays_the_one_that_is_asked():
    away = Script()
    away.answer = lambda path, body: UpstreamConnectionError("refused")
    there = Script(ranges=[header(2), header(2)])
    client = EtcdClient({"away": away, "there": there})

    for _ in range(2):
        await client.call("kv/range", {})

    assert (len(away.asked), len(there.asked)) == (1, 2)
    assert client.statistics()["failovers"] == 1


async def test_a_refusal_is_no_reason_to_ask_the_next_endpoint():
    one, two = Script(ranges=[(403, {"error": "etcdserver: permission denied", "code": 7})]), Script()

    with pytest.raises(EtcdError):
        await EtcdClient({"one": one, "two": two}).call("kv/put", {})

    assert two.asked == []


async def test_many_calls_that_find_their_token_invalid_fetch_one_new_token():
    tokens = iter(["first", "second"])
    valid = ["first"]

    def answer(path: str, body: Body) -> object:
        if path == "auth/authenticate":
            valid[:] = [next(tokens)]
            return {**header(1), "token": valid[0]}
        if script.headers[-1] not in valid:
            return 401, {"error": "etcdserver: invalid auth token", "code": 16}
        return header(1)

    script = Script()
    script.answer = answer
    client = EtcdClient({"one": script}, username="mesh", password="secret")
    await client.call("kv/range", {})
    valid.clear()  # the server was restarted

    await asyncio.gather(*(client.call("kv/range", {}) for _ in range(20)))

    assert client.statistics()["logins"] == 2
    assert script.asked.count("auth/authenticate") == 2


async def test_a_cancelled_login_keeps_nobody_waiting():
    hang = asyncio.Event()

    class Slow(Script):
        async def request(self, method: str, path: str, **given: object) -> ControlResponse:
            if not hang.is_set() and path.endswith("authenticate"):
                hang.set()
                await asyncio.get_running_loop().create_future()
            return ControlResponse(200, {}, dumps({**header(1), "token": "t"}).encode())

    client = EtcdClient({"one": Slow()}, username="mesh", password="secret")
    supervisor = Supervisor()
    first = supervisor.start(client.call("kv/range", {}), name="first")
    await hang.wait()
    second = supervisor.start(client.call("kv/range", {}), name="second")
    await asyncio.sleep(0)

    first.cancel()

    async with asyncio.timeout(5):
        await second
    await supervisor.aclose()


async def test_a_user_given_to_a_server_without_users_is_no_mistake():
    def answer(path: str, body: Body) -> object:
        if path == "auth/authenticate":
            return 412, {"error": "etcdserver: authentication is not enabled", "code": 9}
        return header(1)

    script = Script()
    script.answer = answer

    await EtcdClient({"one": script}, username="mesh", password="secret").call("kv/range", {})

    assert script.headers == [None, None]


async def test_a_watch_whose_token_is_invalid_is_begun_with_a_new_one():
    invalid = {**header(1), "created": True, "canceled": True, "cancel_reason": "etcdserver: invalid auth token"}
    script = Script(watches=[[invalid], [created(1)]])
    names = iter(["first", "second"])
    script.answer = lambda path, body: {**header(1), "token": next(names)} if "auth" in path else header(1)
    client = EtcdClient({"one": script}, username="mesh", password="secret")

    await take(Follow(client, b"a", b"b", lambda found: found.value.decode(), clock=FakeClock()), 2)

    assert script.headers[-1] == "second"


# The feed


def feed_of(script: Script, clock: FakeClock, supervisor: Supervisor, hold: float = 25.0) -> Feed:
    folder = Space().folder("instances")
    follow: Follow[Stored] = Follow(
        EtcdClient({"one": script}), folder, b"z", lambda found: read(found, folder), clock=clock
    )
    return Feed(follow, supervisor, hold=hold, clock=clock, jitter=lambda: 1.0)


def row(id: str, port: int, revision: int, service: str = "users") -> dict[str, str]:
    name = f"fastapi-mesh/default/instances/{service}/{id}/{id}"
    return key(name, json.dumps({"address": "127.0.0.1", "port": port}), revision)


def ids(feed: Feed, service: str = "users") -> list[str]:
    return [each.id for each in feed.rows.list_of(service)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what it waits for sets no event
            await asyncio.sleep(0)


async def test_rows_that_etcd_has_lost_stay_until_those_that_live_had_time_to_come_back():
    clock, supervisor = FakeClock(), Supervisor()
    back = events(4, {"kv": row("two", 2, 4)})
    script = Script(
        ranges=[{**header(50), "kvs": [row("one", 1, 40), row("two", 2, 41)]}, header(3)],
        watches=[[created(50), SILENCE], [created(3)], [created(3), back]],
    )
    feed = feed_of(script, clock, supervisor)
    async with feed.used():
        await until(lambda: len(script.starts) == 3)
        assert ids(feed) == ["one", "two"]

        await clock.advance(24.9)
        assert ids(feed) == ["one", "two"]
        await clock.advance(0.2)
        assert ids(feed) == ["two"]
    await supervisor.aclose()


def gone(id: str, port: int, revision: int) -> dict[str, object]:
    return {"type": "DELETE", "kv": {"key": row(id, port, 1)["key"], "mod_revision": str(revision)}}


async def test_leases_that_all_ended_while_etcd_was_away_empty_no_list_at_once():
    clock, supervisor = FakeClock(), Supervisor()
    rows = [row(id, port, 1) for port, id in enumerate("abcd", 1)]
    ends = [events(60 + port, gone(id, port, 60 + port)) for port, id in enumerate("abcd", 1)]
    back = events(70, {"kv": row("d", 4, 70)})
    script = Script(ranges=[{**header(50), "kvs": rows}], watches=[[created(50), CUT], [created(60), *ends, back]])
    feed = feed_of(script, clock, supervisor)
    async with feed.used():
        with pytest.raises(EtcdError):
            await feed.ready()
    async with feed.used():
        await clock.advance(0.1)
        await feed.ready()
        await until(lambda: script.watches == [])
        for _ in range(50):
            await asyncio.sleep(0)
        assert ids(feed) == ["c", "d"], "half of them may go at once"

        await clock.advance(25.1)
        assert ids(feed) == ["d"]
    feed.forget()
    await supervisor.aclose()


async def test_a_service_that_stops_while_all_is_well_is_gone_at_once():
    clock, supervisor = FakeClock(), Supervisor()
    script = Script(
        ranges=[{**header(50), "kvs": [row("a", 1, 1)]}], watches=[[created(50), events(60, gone("a", 1, 60))]]
    )
    feed = feed_of(script, clock, supervisor)
    async with feed.used():
        await until(lambda: feed.statistics()["events"] == 1)
        assert ids(feed) == []
    await supervisor.aclose()


async def test_what_nobody_has_watched_for_long_is_not_held():
    clock, supervisor = FakeClock(), Supervisor()
    script = Script(
        ranges=[{**header(50), "kvs": [row("a", 1, 1)]}, header(3)], watches=[[created(50), CUT], [created(3)]]
    )
    feed = feed_of(script, clock, supervisor)
    async with feed.used():
        with pytest.raises(EtcdError):
            await feed.ready()

    await clock.advance(61.0)
    async with feed.used():
        await feed.ready()
        assert ids(feed) == []
    await supervisor.aclose()


async def test_a_mistake_of_ours_is_an_error_for_who_waits_and_no_silence(caplog: pytest.LogCaptureFixture):
    clock, supervisor = FakeClock(), Supervisor()

    def mistake(path: str, body: Body) -> object:
        raise ZeroDivisionError

    script = Script()
    script.answer = mistake
    feed = feed_of(script, clock, supervisor)

    async with asyncio.timeout(5), feed.used():
        with pytest.raises(EtcdError, match="mistake"):
            await feed.ready()
        await until(lambda: "ZeroDivisionError" in caplog.text)
    await supervisor.aclose()


async def test_a_server_that_fails_is_asked_ever_more_slowly_however_many_ask():
    clock, supervisor = FakeClock(), Supervisor()
    script = Script()
    script.answer = lambda path, body: UpstreamConnectionError("refused")
    feed = feed_of(script, clock, supervisor)

    async def ask() -> None:
        async with feed.used():
            await feed.ready()

    attempts = []
    for _ in range(8):
        asking = [supervisor.start(_quietly(ask()), name="asks") for _ in range(10)]
        before = clock.now()
        while not all(each.done() for each in asking):
            await clock.advance(0.05)
        attempts.append(round(clock.now() - before, 1))

    assert len(script.asked) == 8
    assert attempts[1] < attempts[3] < attempts[6]
    assert attempts[7] <= 2.2
    await supervisor.aclose()


async def _quietly(work: object) -> None:
    with pytest.raises(EtcdError):
        await work  # type: ignore[misc]  # a coroutine


async def test_only_who_is_concerned_is_woken():
    clock, supervisor = FakeClock(), Supervisor()
    script = Script(ranges=[header(2)], watches=[[created(2)]])
    feed = feed_of(script, clock, supervisor)
    async with feed.used():
        await feed.ready()
        users = supervisor.start(feed.changed("users"), name="users")
        orders = supervisor.start(feed.changed("orders"), name="orders")
        await asyncio.sleep(0)

        feed._accept(Batch({b"k": read_row("one", 1, 3)}))  # what its task does with a message

        await until(users.done)
        assert not orders.done()
        orders.cancel()
    await supervisor.aclose()


def read_row(id: str, port: int, revision: int, service: str = "users") -> Stored:
    return Stored(Instance(service, id, "127.0.0.1", port), id, 1, revision)


async def test_errors_of_the_connection_are_told_with_the_endpoint():
    script = Script()
    script.answer = lambda path, body: ServiceUnavailableError("no route to host")

    with pytest.raises(EtcdError, match=r"^one can't be reached: no route to host$"):
        await EtcdClient({"one": script}).call("kv/range", {})
