"""Follows a range of etcd's keys: all of them once, then each change, across cuts, silence and compaction."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.discovery.etcd_messages import EtcdError, Kind, encoded, entries, key_value, state_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.discovery.etcd_client import EtcdClient
    from fastapi_mesh.discovery.etcd_messages import KeyValue, Table

T = TypeVar("T")

PAGE = 200
"""Keys asked for at once: understanding them takes 10 ms, during which nothing else is done."""

RESUME = 60.0
"""Seconds after which a follower that was stopped asks for everything again; there may be more changes than keys."""

STEADY = 1.0
"""Seconds that a watch must have lasted to be opened again at once; the caller waits after one that is cut at once."""

ATTEMPTS = 3
"""How often in a row everything is asked for before that is an error."""


@dataclass(frozen=True, slots=True)
class Batch(Generic[T]):
    """Keys with what they hold now, None for one that is gone.

    `complete`: these are all the keys there are. `restored`: and etcd has lost what it knew, or is an older copy.
    """

    changes: Mapping[bytes, T | None] = field(default_factory=dict)
    complete: bool = False
    restored: bool = False


class Follow(Generic[T]):
    """What is in the keys from `start` to before `end` (b"": only `start`), as `parse` makes it of each key's value.

    `parse` gives None for what is none. `idle` is the seconds of silence after which the watch is opened anew.
    """

    def __init__(
        self,
        client: EtcdClient,
        start: bytes,
        end: bytes,
        parse: Callable[[KeyValue], T | None],
        *,
        idle: float = 10.0,
        clock: Clock | None = None,
    ) -> None:
        self._client = client
        self._start = start
        self._end = end
        self._parse = parse
        self._idle = idle
        self._clock: Clock = clock or SystemClock()
        self._revision = 0  # up to which all is known; 0 for nothing
        self._newest = (0, 0)  # the highest term and revision of the store that were seen
        self._heard = 0.0
        self._counts = {"snapshots": 0, "events": 0}

    def statistics(self) -> dict[str, int]:
        """How often everything was asked for, and how many changes came besides."""
        return dict(self._counts)

    def forget(self) -> None:
        """Begin with everything next time."""
        self._revision, self._newest = 0, (0, 0)

    async def changes(self) -> AsyncGenerator[Batch[T], None]:
        """Yield all keys, then each change; an empty batch says that a watch has begun.

        Goes on where the last call stopped, if that was a moment ago. Never ends; raises EtcdError when no endpoint
        answers, or one cuts each watch at once.
        """
        if self._clock.now() - self._heard > RESUME:
            self._revision = 0
        attempts = 0
        while True:
            begun: float | None = None
            try:
                if not self._revision:
                    attempts += 1
                    yield await self._everything()
                async with aclosing(self._watch()) as batches:
                    async for batch in batches:
                        attempts = 0
                        self._heard = self._clock.now()
                        begun = self._heard if begun is None else begun
                        yield batch
            except TimeoutError:  # silent for so long: go on, on another connection
                continue
            except EtcdError as error:
                if error.kind is Kind.COMPACTED and attempts < ATTEMPTS:
                    self._revision = 0
                elif error.kind is not Kind.AWAY or begun is None or self._clock.now() - begun < STEADY:
                    raise

    async def _everything(self) -> Batch[T]:
        """All keys as of one revision, page by page."""
        rows: dict[bytes, T | None] = {}
        start, first, more = self._start, (0, 0), True
        while more:
            body = {"key": encoded(start), "range_end": encoded(self._end), "limit": str(PAGE)}
            if first[1]:
                body["revision"] = str(first[1])
            answer = await self._client.call("kv/range", body)
            first = first if first[1] else state_of(answer)
            found = [key_value(each) for each in entries(answer, "kvs")]
            rows.update((each.key, row) for each in found if (row := self._parse(each)) is not None)
            more = bool(answer.get("more") and found)
            start = found[-1].key + b"\0" if found else start
        restored = self._knew_more(first)
        self._counts["snapshots"] += 1
        self._newest, self._revision, self._heard = first, first[1], self._clock.now()
        return Batch(rows, complete=True, restored=restored)

    async def _watch(self) -> AsyncGenerator[Batch[T], None]:
        messages = self._client.watch(self._start, self._end, self._revision + 1, idle=self._idle)
        async with aclosing(messages):
            async for message in messages:
                state = state_of(message)
                if message.get("created"):
                    if self._knew_more(state):  # restored from a backup, empty, or a member that lags
                        raise EtcdError("etcd knows less than it did", Kind.COMPACTED)
                    yield Batch()
                elif batch := self._events(message, state[1]):
                    yield batch
                self._newest = max(self._newest[0], state[0]), max(self._newest[1], state[1], self._revision)

    def _knew_more(self, state: tuple[int, int]) -> bool:
        """Whether the store was further once: its term and its revision only grow, unless it has lost something."""
        return state[0] < self._newest[0] or state[1] < self._newest[1]

    def _events(self, message: Table, revision: int) -> Batch[T] | None:
        """The changes in a message; later ones of a key replace earlier ones. None where there are none."""
        events = entries(message, "events")
        if not events:  # a notification of progress: nothing came up to there
            self._revision = max(self._revision, revision)
            return None
        changes: dict[bytes, T | None] = {}
        for event in events:
            if not isinstance(event, Mapping):
                raise EtcdError("an event is none")
            found = key_value(event.get("kv"))
            changes.pop(found.key, None)  # in the order of the last changes
            changes[found.key] = None if event.get("type") == "DELETE" else self._parse(found)
            # Not the header's: of many changes it sends some, with the revision that it will have got to (3.4).
            self._revision = max(self._revision, found.modified)
        self._counts["events"] += len(changes)
        return Batch(changes)
