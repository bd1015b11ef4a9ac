"""The client of a request, without a server: reading its body, and noticing that it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest

from fastapi_mesh.api_gateway.client import Client, SlowClientError, Watch
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.exceptions import ClientDisconnectedError

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-22")]

GONE = {"type": "http.disconnect"}


def body(data: bytes, more: bool = False) -> dict[str, object]:
    return {"type": "http.request", "body": data, "more_body": more}


class Script:
    """A `receive` that gives the messages in turn, then waits for ever; `asked` counts the calls."""

    def __init__(self, messages: Iterable[dict[str, object]] = ()) -> None:
        self.queue: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        for message in messages:
            self.queue.put_nowait(message)
        self.asked = 0

    async def __call__(self) -> dict[str, object]:
        self.asked += 1
        return await self.queue.get()


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    supervisor = Supervisor()
    watch = Watch(supervisor)
    yield watch
    watch.close()
    await supervisor.aclose()


async def test_a_body_comes_in_its_parts_and_empty_ones_are_left_out(watch: Watch) -> None:
    client = Client(Script([body(b"ab", True), body(b"", True), body(b"c", True), body(b"")]), watch)

    assert [part async for part in client] == [b"ab", b"c"]
    client.release()


async def test_a_client_that_leaves_before_its_body_is_complete_raises(watch: Watch) -> None:
    client = Client(Script([body(b"ab", True), GONE]), watch)

    with pytest.raises(ClientDisconnectedError):
        await client.read_all(5)
    client.release()


async def test_a_body_that_does_not_come_in_time_raises_and_leaves_the_task_uncancelled(watch: Watch) -> None:
    client = Client(Script([body(b"ab", True)]), watch)

    with pytest.raises(SlowClientError):
        await client.read_all(0.01)

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    client.release()


async def test_nobody_asks_after_the_client_of_a_short_request(watch: Watch) -> None:
    receive = Script()
    client = Client(receive, watch)

    client.no_body()
    client.release()
    await asyncio.sleep(0.08)

    assert receive.asked == 0
    assert watch.statistics() == {"waiting": 0}


async def test_a_client_that_goes_away_cancels_the_task_and_nothing_else(watch: Watch) -> None:
    receive = Script([body(b"")])
    client = Client(receive, watch)
    client.no_body()
    receive.queue.put_nowait(GONE)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(5)

    assert client.gone
    assert client.is_what_cancelled()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    client.release()


async def test_a_cancellation_by_somebody_else_is_not_taken_for_ours(watch: Watch) -> None:
    client = Client(Script([body(b"")]), watch)
    client.no_body()

    assert not client.is_what_cancelled()
    client.release()


async def test_after_the_release_nothing_is_cancelled_any_more(watch: Watch) -> None:
    receive = Script([body(b"")])
    client = Client(receive, watch)
    client.no_body()
    while receive.asked < 2:  # noqa: ASYNC110 - the watch asks by its own clock
        await asyncio.sleep(0.005)

    receive.queue.put_nowait(GONE)
    client.release()
    await asyncio.sleep(0.01)

    assert not client.gone


async def test_what_is_left_of_a_body_that_nobody_wants_is_thrown_away(watch: Watch) -> None:
    receive = Script([body(b"x" * 10, True) for _ in range(100)])
    client = Client(receive, watch)

    client.answered()
    receive.queue.put_nowait(GONE)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(5)
    assert client.is_what_cancelled()
    client.release()


async def test_a_server_that_has_always_something_to_say_is_not_asked_for_ever(watch: Watch) -> None:
    asked = 0

    async def receive() -> dict[str, object]:
        nonlocal asked
        asked += 1
        return body(b"")

    client = Client(receive, watch)
    client.no_body()
    await asyncio.sleep(0.1)
    client.release()

    assert 0 < asked < 100
    assert not client.gone
