"""The registrations of this process, kept alive: register, beat, register again when forgotten, withdraw at the end."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.exceptions import ConfigurationError, MeshError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.core.tasks import Supervisor
    from fastapi_mesh.discovery.base import Registrar, Registration

logger = logging.getLogger("fastapi_mesh.discovery")

WITHDRAW_TIMEOUT = 2.0
"""Seconds for all withdrawals together, so that a dead registry does not hold up the end of the process."""

FIRST_ATTEMPT = 5.0
"""Seconds that `add` waits for the registry's answer."""

EARLIER = 0.2
"""The part of the interval by which a beat may come early."""


class OwnRegistrations:
    """Registers instances of this process and beats for them until they are withdrawn.

    A registry that fails is tried again after 0.1 s, then ever more slowly, at most every 10 s; meanwhile the
    registration is in `supervisor.degraded` as `registration:SERVICE/ID`. Beats come a little earlier than the
    registry wants (by up to a fifth of the interval, at random), so that nodes started together don't beat together.
    """

    def __init__(
        self,
        registrar: Registrar,
        supervisor: Supervisor,
        *,
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._registrar = registrar
        self._supervisor = supervisor
        self._clock: Clock = clock or SystemClock()
        self._jitter = jitter
        self._own: dict[tuple[str, str], _Own] = {}

    @property
    def instances(self) -> tuple[Instance, ...]:
        """What is kept registered, also while the registry does not answer."""
        return tuple(own.instance for own in self._own.values())

    def statistics(self) -> dict[str, int]:
        """Instances kept registered, and those of them that the registry has accepted."""
        accepted = sum(own.registration is not None for own in self._own.values())
        return {"kept": len(self._own), "accepted": accepted}

    async def add(self, instance: Instance, *, timeout: float = FIRST_ATTEMPT) -> bool:
        """Keep `instance` registered, in place of an earlier one of the same service and id.

        Waits for the first attempt, `timeout` seconds at most, and returns whether it succeeded; if not, it goes on in
        the background. Raises ConfigurationError for what trying again can't mend; nothing is kept then.
        """
        key = instance.service, instance.id
        earlier = self._own.get(key)
        own = self._own[key] = _Own(instance, asyncio.get_running_loop().create_future())
        try:
            if earlier is not None:
                await earlier.end()
            if self._own.get(key) is own:  # not replaced or withdrawn meanwhile
                await self._first_attempt(own, timeout)
        except (asyncio.CancelledError, RuntimeError):  # given up, or the supervisor is closed
            await self._drop(key, own)
            raise
        if own.refused is not None:
            await self._drop(key, own)
            raise own.refused
        return own.registration is not None

    async def withdraw_all(self, *, timeout: float = WITHDRAW_TIMEOUT) -> None:
        """Withdraw everything at once, within `timeout` seconds; what fails is left to its lease, with a log line.

        Never raises. Safe to call twice; `add` works again afterwards.
        """
        leaving, self._own = tuple(self._own.values()), {}
        tasks = []
        for own in leaving:
            own.stop()
            self._supervisor.degraded.pop(own.name, None)
            work = self._withdraw(own)
            try:
                tasks.append(self._supervisor.start(work, name=f"withdrawal:{own.key}"))
            except RuntimeError:  # closed before us
                logger.warning("%s is not withdrawn: the supervisor is closed", own.name)
        if not tasks:
            return
        _, unfinished = await asyncio.wait(tasks, timeout=timeout)
        for task in unfinished:
            task.cancel()
            logger.warning("%s did not end within %.1f s; the lease will", task.get_name(), timeout)

    async def _first_attempt(self, own: _Own, timeout: float) -> None:
        own.task = self._supervisor.keep(lambda: self._keep_alive(own), name=own.name)
        timer = self._clock.call_later(timeout, own.answer)
        try:
            await own.answered
        finally:
            timer.cancel()

    async def _keep_alive(self, own: _Own) -> None:
        try:
            if own.registration is None:
                own.registration = await self._registrar.register(own.instance)
                logger.info("registered %s at %s:%d", own.key, own.instance.address, own.instance.port)
            else:
                await own.registration.beat()
        except ConfigurationError as error:
            if own.answered.done():
                raise
            own.refused = error
            return
        finally:
            own.answer()
        registration = own.registration
        while True:
            self._supervisor.recovered(own.name)
            if registration.interval <= 0:
                return
            await self._clock.sleep(registration.interval * (1.0 - EARLIER * self._jitter()))
            await registration.beat()

    async def _drop(self, key: tuple[str, str], own: _Own) -> None:
        if self._own.get(key) is own:
            del self._own[key]
            await own.end()
            self._supervisor.degraded.pop(own.name, None)

    @staticmethod
    async def _withdraw(own: _Own) -> None:
        await own.end()  # a beat on its way must not register anew
        if own.registration is None:
            return
        try:
            await own.registration.withdraw()
        except (MeshError, OSError) as error:
            logger.warning(
                "%s could not be withdrawn (%s: %s); its lease ends it", own.name, type(error).__name__, error
            )


class _Own:
    """One instance of ours: the loop that keeps it registered, and whether the first attempt is over."""

    __slots__ = ("answered", "instance", "refused", "registration", "task")

    def __init__(self, instance: Instance, answered: asyncio.Future[None]) -> None:
        self.instance = instance
        self.answered = answered
        self.refused: ConfigurationError | None = None
        self.registration: Registration | None = None
        self.task: asyncio.Task[object] | None = None

    @property
    def key(self) -> str:
        return f"{self.instance.service}/{self.instance.id}"

    @property
    def name(self) -> str:
        return f"registration:{self.key}"

    def answer(self) -> None:
        if not self.answered.done():
            self.answered.set_result(None)

    def stop(self) -> None:
        self.answer()
        if self.task is not None:
            self.task.cancel()

    async def end(self) -> None:
        self.stop()
        if self.task is not None:
            await asyncio.gather(self.task, return_exceptions=True)
