"""Taking over changed settings while a gateway runs: all of them or none, and never what its sockets depend on.

Where a change comes from: `gateway.reload()`, a changed file, a config store, SIGHUP (`server`). What then happens is
the same: everything is loaded and validated beside the running settings, in a thread; what can't change live keeps its
value; the rest is swapped between two requests. Those under way, and open WebSockets, keep what they began with.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi_mesh.config.edge.listener import FIXED
from fastapi_mesh.config.environment import FILE_VARIABLE
from fastapi_mesh.config.load import stored_gateway_layer
from fastapi_mesh.configstore.polling import signature, wait_settled
from fastapi_mesh.core.closing import closing
from fastapi_mesh.exceptions import ConfigStoreError, ConfigurationError
from fastapi_mesh.service_mesh.backends import Closed, store_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi_mesh.api_gateway.last_good import LastGood
    from fastapi_mesh.config.gateway import GatewayConfig
    from fastapi_mesh.config.layers import SettingsLayer
    from fastapi_mesh.config.load import Entry as Stored
    from fastapi_mesh.configstore.base import ConfigStore, Entry
    from fastapi_mesh.configstore.polling import Signature
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

logger = logging.getLogger("fastapi_mesh.gateway")

POLL = 0.25
"""Seconds between two looks at the settings file; a change counts after two of them."""
PATIENCE = 3
"""Times that changes in code may come before a reload, which goes on beside requests; then it holds them up."""
FIRST_ANSWER = 5.0
"""Seconds that a gateway which opens waits for its config store."""
NOTE = "config"
"""Where `/health` has what became of the last reload, if it was refused."""

_PLACE = re.compile(r"[\w.\-\[\]']+(?: \([^)]*\))?(?=: )")
"""The beginning of a problem's line: which setting, and where it was set. The rest may hold its value."""


@dataclass(frozen=True, slots=True)
class Reload:
    """What came of a reload: the settings that are different from now on, and those that wait for a restart.

    Both are names of GatewayConfig's fields, sorted.
    """

    changed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """A gateway's settings, as far as a reload has to do with them.

    `code` gives what was set in code, another object whenever that changes; `load` reads all sources anew, with what a
    config store says and a file in place of the gateway's own, and `take` makes the result count, in one step or in
    slices; then it gives False where others were taken meanwhile. Both raise ConfigurationError and change nothing.
    """

    running: Callable[[], GatewayConfig]
    code: Callable[[], object]
    load: Callable[[SettingsLayer | None, Path | None], GatewayConfig]
    take: Callable[[GatewayConfig, bool], Awaitable[bool]]


class Reloads:
    """The changes of one gateway's settings. `stored` is what its config store said when that was last good."""

    def __init__(self, settings: Settings, file: str | os.PathLike[str] | None, *, env: bool) -> None:
        """`file` is the settings file; with `env` the variable MESH_CONFIG_FILE may name one. To be made before it is
        read for the first time, so that no change after that is missed.
        """
        self._settings = settings
        self._given_file = file
        self._file = file or (os.environ.get(FILE_VARIABLE) if env else None)
        self._seen = None if self._file is None else signature(self._file)
        self._given: tuple[ConfigStore, str] | None = None
        self._store: tuple[ConfigStore, str] | None = None
        self._entry: Entry | None = None
        """What the config store said last; `_good_entry` when that was last good."""
        self._good_entry: Stored | None = None
        self._mesh: ServiceMesh | None = None
        self._tasks: list[asyncio.Task[object]] = []
        self._lock: asyncio.Lock | None = None
        self._counts = {"applied": 0, "unchanged": 0, "refused": 0}
        self._refusal: ConfigurationError | None = None
        self._fell_back = False
        self.stored: SettingsLayer | None = None
        self.last_good: LastGood | None = None
        """Where what was last good is kept for those who take this process's place; None: nowhere."""

    def statistics(self) -> dict[str, int]:
        """How many reloads were applied, found nothing changed, and were refused."""
        return dict(self._counts)

    def use(self, store: ConfigStore, key: str) -> None:
        """Take settings from `store` when the gateway opens, whatever `config_store` says."""
        self._given = (store, key)

    def follow(self, file: str, refusal: ConfigurationError) -> None:
        """Read and watch `file` from now on, which is no good; what was read before counts until it is."""
        self._given_file = self._file = file
        self._seen = signature(file)
        self._refusal = refusal

    # Life

    async def prepare(self) -> None:
        """Before the gateway opens: ask the config store, so that its settings count from the first request on.

        Raises ConfigurationError when they are not valid and none were before (`fall_back`); a store that doesn't
        answer is waited for in the background.
        """
        settings = self._settings.running().config_store
        self._store = self._given or (
            None if settings is None else (store_of(settings, None, namespace=settings.namespace), settings.key)
        )
        if self._store is None:
            return
        store, key = self._store
        try:
            async with asyncio.timeout(FIRST_ANSWER):
                self._entry = await store.get(key)
        except (ConfigStoreError, TimeoutError) as error:
            logger.warning("the config store does not answer yet (%s); starting without it", str(error) or "timeout")
        if self._entry is None:
            logger.info("the config store has no %r yet", key)
        else:
            try:
                await self._begin_with(self._entry, None)
            except ConfigurationError as error:
                await self.fall_back(error)

    async def fall_back(self, refusal: ConfigurationError) -> None:
        """Begin with the settings that were last good, as those of now were refused. Raises the refusal where there
        are none, or where it is those that were refused.
        """
        good = self.last_good
        if good is None or self._fell_back or (good.file is None and good.entry is None):
            raise refusal
        self._fell_back = True
        self._refusal = refusal
        self.stored = None
        logger.error("%s\nthis process starts with the settings that were last good", refusal)
        await self._begin_with(good.entry, None if self._given_file is None else good.file)

    async def _begin_with(self, entry: Stored | None, file: Path | None) -> None:
        stored = None if entry is None else stored_gateway_layer(entry)
        config = await asyncio.to_thread(self._settings.load, stored, file)
        await self._settings.take(_with_fixed(config, self._settings.running())[0], True)
        self.stored, self._good_entry = stored, entry

    def start(self, mesh: ServiceMesh) -> None:
        """The gateway is open: watch its file and its store, if it may."""
        self._mesh = mesh
        if self._refusal is None:
            self._keep_good(self._seen)
        else:
            self._refused(self._refusal)
        if not self._settings.running().watch_config:
            return
        if self._file is not None:
            self._tasks.append(mesh.supervisor.keep(self._follow_file, name="gateway-config-file"))
        if self._store is not None:
            self._tasks.append(mesh.supervisor.keep(self._follow_store, name="gateway-config-store"))

    async def aclose(self) -> None:
        """Watch no more. Safe to call twice."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
        store, self._store, self._entry, self._good_entry = self._store, None, None, None
        if store is not None and store is not self._given and isinstance(store[0], Closed):
            await store[0].aclose()
        if self._mesh is not None:
            self._mesh.life.notes.pop(NOTE, None)
        self._mesh = self._lock = self._refusal = None
        self._fell_back = False

    # A reload

    async def run(self, entry: Entry | None = None) -> Reload:
        """Load everything anew and take it over; `entry` is what the config store says now, if it said something new.

        Raises ConfigurationError, logged and counted, when anything is wrong; then nothing has changed.
        """
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            started, read = time.monotonic(), None if self._file is None else signature(self._file)
            try:
                outcome = await self._run_with(entry)
            except ConfigurationError as error:
                self._refused(error)
                raise
            self._accepted(outcome, time.monotonic() - started)
            self._keep_good(read)
            return outcome

    async def _run_with(self, entry: Entry | None) -> Reload:
        """A document that was refused before is tried again, as it may fit the file of now; else the last good one."""
        newest = self._entry if entry is None else entry
        try:
            stored = None if newest is None else stored_gateway_layer(newest)
            outcome = await self._run(self.stored if stored is None else stored)
        except ConfigurationError:
            if entry is not None or newest is None or newest == self._good_entry:
                raise
            return await self._run(self.stored)
        if stored is not None:
            self.stored, self._good_entry = stored, newest
        return outcome

    async def _run(self, stored: SettingsLayer | None) -> Reload:
        settings = self._settings
        for attempt in itertools.count():
            code = settings.code()
            loaded = await asyncio.to_thread(settings.load, stored, None)
            if settings.code() is not code:  # settings were changed in code meanwhile, and they win
                continue
            before = settings.running()
            config, kept = _with_fixed(loaded, before)
            changed = tuple(sorted(name for name in type(config).model_fields if _differs(name, config, before)))
            if not changed or await settings.take(config, attempt >= PATIENCE):
                return Reload(changed, kept)
        raise AssertionError("at once is never in vain")

    def _accepted(self, outcome: Reload, seconds: float) -> None:
        self._count("applied" if outcome.changed else "unchanged")
        if self._mesh is not None:
            self._mesh.life.notes.pop(NOTE, None)
        if outcome.changed:
            logger.info("settings reloaded in %.0f ms: %s", seconds * 1000, ", ".join(outcome.changed))
        if outcome.kept:
            logger.warning(
                "settings that can't be changed while the gateway runs keep their values until it is restarted: %s",
                ", ".join(outcome.kept),
            )

    def _keep_good(self, read: Signature) -> None:
        """Keep what counts now; a file only if it is still the one that was `read`."""
        if self.last_good is not None:
            file = None if self._given_file is None else Path(self._given_file)
            self.last_good.keep(file if file is not None and signature(file) == read else None, self._good_entry)

    def _refused(self, error: ConfigurationError) -> None:
        self._count("refused")
        logger.error("the new settings are refused, and the old ones stay in force: %s", error)
        if self._mesh is not None:
            places = [match[0] for line in error.problems if (match := _PLACE.match(line))]
            self._mesh.life.notes[NOTE] = {
                "reload": "refused",
                "at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                "problems": len(error.problems),
                "settings": places[:20],  # places only: values of settings are not for everybody who may ask
            }

    def _count(self, result: str) -> None:
        self._counts[result] += 1
        if self._mesh is not None and self._mesh.metrics is not None and self._settings.running().enable_metrics:
            self._mesh.metrics.gateway.reloaded(result)

    # What triggers one

    async def run_quietly(self, entry: Entry | None = None) -> None:
        """A reload that nobody waits for: whether it was refused is in the log."""
        try:
            await self.run(entry)
        except ConfigurationError:
            return  # `run` has said so

    async def _follow_file(self) -> None:
        assert self._file is not None, "followed where there is one"
        assert self._mesh is not None, "followed while the gateway is open"
        clock = self._mesh.clock
        while True:
            self._seen = await wait_settled(self._file, self._seen, interval=POLL, clock=clock)
            if self._seen is None:
                logger.warning("the settings file %s is gone; what it said stays in force", self._file)
            else:
                await self.run_quietly()

    async def _follow_store(self) -> None:
        assert self._store is not None, "followed where there is one"
        store, key = self._store
        async with closing(store.watch(key)) as entries:
            async for entry in entries:
                if self._mesh is not None:
                    self._mesh.supervisor.recovered("gateway-config-store")
                await self._take_entry(entry, key)

    async def _take_entry(self, entry: Entry | None, key: str) -> None:
        before, self._entry = self._entry, entry
        if entry is None:
            if before is not None:
                logger.warning("the config store has no %r any more; what it said stays in force", key)
            return
        if before is not None and before.text == entry.text:
            return
        await self.run_quietly(entry)


def _with_fixed(config: GatewayConfig, running: GatewayConfig) -> tuple[GatewayConfig, tuple[str, ...]]:
    """`config` with what can't change as it is in `running`, and the names of what would have changed."""
    kept = tuple(sorted(name for name in FIXED if _differs(name, config, running)))
    if kept:
        config = config.model_copy(update={name: getattr(running, name) for name in kept})
    return config, kept


def _differs(name: str, config: GatewayConfig, other: GatewayConfig) -> bool:
    return bool(getattr(config, name) != getattr(other, name))
