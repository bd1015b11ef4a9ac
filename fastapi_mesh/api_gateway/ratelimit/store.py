"""Counts of rate limits in a Redis that several gateways share: one round trip for all requests that wait.

A request costs one call of a script, whatever the number of its windows. (The library `limits` makes two to three
round trips for each window, and can't take back the first window's count when the second refuses.) Requests that come
while a round trip is under way go together with the next one; a client that goes away cuts no connection.
"""

from __future__ import annotations

import asyncio
import logging
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from fastapi_mesh.api_gateway.ratelimit.windows import judge
from fastapi_mesh.wire.redis import RedisClient, Script, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.api_gateway.ratelimit.windows import Charge, State, Verdict
    from fastapi_mesh.core.tasks import Supervisor
    from fastapi_mesh.wire.redis import Reply, Word

logger = logging.getLogger("fastapi_mesh.gateway")

CHARGE = Script(files(__package__).joinpath("charge.lua").read_text())
MAX_BATCH = 256
"""Requests in one round trip at most."""


class _Waiting(NamedTuple):
    """A request that waits for its verdict."""

    charges: Sequence[Charge]
    future: asyncio.Future[Verdict]


class RedisCounters:
    """Counts requests in Redis, each in all of its windows or in none (in a Cluster: of each limit).

    While Redis doesn't answer, `charge` raises StorageUnavailableError at once: after a failure a task looks every
    `retry_interval` seconds whether it is back, so that requests neither wait nor pile up.
    """

    def __init__(
        self, url: str, supervisor: Supervisor, *, timeout: float, retry_interval: float, namespace: str
    ) -> None:
        self._client = RedisClient(url, timeout=timeout)
        self._supervisor = supervisor
        self._retry_interval = retry_interval
        self._probe_key = f"{namespace}:probe"
        self._queue: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None
        self._probe: asyncio.Task[None] | None = None
        self._closed = False
        self.outages = 0

    @property
    def is_down(self) -> bool:
        """Whether the storage failed and was not seen again since."""
        return self._probe is not None

    def statistics(self) -> dict[str, int]:
        """Requests that wait, whether the storage is down, and how often it went down."""
        return {"waiting": len(self._queue), "down": int(self.is_down), "outages": self.outages}

    async def charge(self, charges: Sequence[Charge]) -> Verdict:
        """Count a request in all its windows, or in none where one of them has no room.

        Raises StorageUnavailableError within `timeout` seconds (twice that at most, where it came while another round
        trip was under way), and at once while the storage is known to be down.
        """
        if self._probe is not None or self._closed:
            raise StorageUnavailableError("the storage of rate limits is down")
        if self._worker is None:
            try:
                self._worker = self._supervisor.start(self._work(), name="rate-limit-store")
            except RuntimeError as error:  # the mesh has stopped under a request
                raise StorageUnavailableError("the mesh has stopped") from error
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(charges, future))
        return await future

    async def aclose(self) -> None:
        """Fail who waits, end the tasks and close the connections."""
        self._closed = True
        for task in (self._worker, self._probe):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._fail(self._queue, StorageUnavailableError("the storage of rate limits was closed"))
        self._queue = []
        await self._client.aclose()

    async def _work(self) -> None:
        """Send what waits until nothing does. Ends then: starting a task is cheaper than waking one up by an event."""
        batch: list[_Waiting] = []
        try:
            while self._queue:
                batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
                batch = [waiting for waiting in batch if not waiting.future.done()]  # its client has gone
                if batch:
                    await self._send(batch)
        except StorageUnavailableError as error:
            self._went_down(error)
            self._fail([*batch, *self._queue], error)
            self._queue = []
        except BaseException as error:
            self._fail([*batch, *self._queue], StorageUnavailableError(f"{type(error).__name__} in the gateway"))
            self._queue = []
            raise
        finally:
            self._worker = None

    async def _send(self, batch: list[_Waiting]) -> None:
        """One round trip. Raises StorageUnavailableError when anything in it failed; the others have their verdicts."""
        groups = [self._groups(waiting.charges) for waiting in batch]
        calls = [_call(group) for each in groups for group in each]
        replies = await self._client.run(CHARGE, calls)
        failure: StorageUnavailableError | None = None
        at = 0
        for waiting, each in zip(batch, groups, strict=True):
            own = replies[at : at + len(each)]
            at += len(each)
            failed = next((reply for reply in own if isinstance(reply, StorageUnavailableError)), None)
            if failed is not None:
                failure = failure or failed
            elif not waiting.future.done():
                waiting.future.set_result(_verdict(each, own))
        if failure is not None:
            raise failure

    def _groups(self, charges: Sequence[Charge]) -> list[list[Charge]]:
        """What one call of the script may hold: in a Cluster only keys of one slot, so each client's by themselves."""
        if not self._client.is_cluster:
            return [list(charges)]
        groups: dict[str, list[Charge]] = {}
        for charge in charges:
            groups.setdefault(charge[0].partition("}")[0], []).append(charge)
        return list(groups.values())

    @staticmethod
    def _fail(waiting: Sequence[_Waiting], error: StorageUnavailableError) -> None:
        for each in waiting:
            if not each.future.done():
                each.future.set_exception(StorageUnavailableError(str(error)))
                each.future.exception()  # a request that is cancelled in this very moment doesn't take it

    def _went_down(self, error: StorageUnavailableError) -> None:
        if self._probe is None and not self._closed:
            self.outages += 1
            logger.warning(
                "rate limits: %r failed (%s); looking for it every %g s", self._client, error, self._retry_interval
            )
            self._probe = self._supervisor.start(self._look(), name="rate-limit-probe")

    async def _look(self) -> None:
        """Try a write until one succeeds."""
        try:
            while True:
                await asyncio.sleep(self._retry_interval)
                try:
                    await self._client.probe("SET", self._probe_key, "1", "PX", 1000)
                except StorageUnavailableError as error:
                    logger.debug("rate limits: %r still fails (%s)", self._client, error)
                else:
                    logger.info("rate limits: %r answers again", self._client)
                    return
        finally:
            self._probe = None  # also when a mesh that stops ends it: the next request will see how it is


def _call(charges: Sequence[Charge]) -> tuple[list[str], list[Word]]:
    words: list[Word] = []
    for _, window, cost in charges:
        words += (window.strategy, window.amount, window.seconds * 1000, cost)
    return [key for key, _, _ in charges], words


def _verdict(groups: Sequence[Sequence[Charge]], replies: Sequence[Reply]) -> Verdict:
    """What the script's answers come to."""
    charges: list[Charge] = []
    states: list[State] = []
    allowed = True
    for group, reply in zip(groups, replies, strict=True):
        allowed = allowed and reply[0] == 1
        for index, charge in enumerate(group):
            before, count, left = reply[1 + 3 * index : 4 + 3 * index]
            if charge[1].strategy == "moving":
                before /= 1000
            charges.append(charge)
            states.append((before, count, left / 1000))
    return judge(charges, allowed, states)
