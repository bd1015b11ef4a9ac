"""A node's own settings that change while it runs: a document in its config store, taken over whole or not at all."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from fastapi_mesh.config.load import load_mesh_config, stored_mesh_layer
from fastapi_mesh.core.closing import closing
from fastapi_mesh.exceptions import ConfigStoreError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AsyncExitStack

    from fastapi_mesh.configstore.base import Entry
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

logger = logging.getLogger("fastapi_mesh.config")

LIVE = ("defaults", "drain_delay", "inbound_limit", "policies", "services")
"""The settings that may come from a store. The others say who the node is, and stay as they were at the start."""
FIRST_ANSWER = 5.0
"""Seconds that the start waits for the store."""
NOTE = "config"
"""Where `/health` says that the store's document was refused."""
LOOP = "mesh-settings"


class LiveSettings:
    """Follows the key that `config_store.key` names. `code` and `file` are what the mesh was made with."""

    def __init__(self, mesh: ServiceMesh, code: Mapping[str, object], file: str | None) -> None:
        self._mesh = mesh
        self._code = code
        self._file = file
        self._text: str | None = None
        self._counts = {"applied": 0, "refused": 0}

    def statistics(self) -> dict[str, int]:
        """Documents taken over, and documents refused."""
        return dict(self._counts)

    async def start(self, life: AsyncExitStack) -> None:
        """Take over what is stored, so that it counts from the first call on, and follow it.

        A store that is away, and a document that is wrong, don't keep the node from starting.
        """
        mesh = self._mesh
        key = mesh.config.config_store.key
        if key is None or not mesh.config.enabled:
            return
        store = mesh.configuration.store
        try:
            async with asyncio.timeout(FIRST_ANSWER):
                self._take(await store.get(key))
        except (ConfigStoreError, TimeoutError) as error:
            logger.warning(
                "this node's settings are not known yet (%s); starting without them", str(error) or "timeout"
            )
        following = mesh.supervisor.keep(lambda: self._follow(key), name=LOOP)
        life.callback(following.cancel)

    async def _follow(self, key: str) -> None:
        async with closing(self._mesh.configuration.store.watch(key)) as entries:
            async for entry in entries:
                self._mesh.supervisor.recovered(LOOP)
                self._take(entry)
        raise ConfigStoreError(f"the watch of {key!r} ended by itself")

    def _take(self, entry: Entry | None) -> None:
        if entry is None:
            if self._text is not None:
                logger.warning("the config store has this node's settings no more; what they said stays in force")
                self._text = None
            return
        if entry.text == self._text:
            return
        self._text = entry.text
        try:
            changed = self._apply(entry)
        except ConfigurationError as error:
            self._counts["refused"] += 1
            self._mesh.life.notes[NOTE] = {"settings": "refused", "key": entry.key, "problems": len(error.problems)}
            logger.error("the settings in the config store are refused, and the old ones stay in force: %s", error)
            return
        self._mesh.life.notes.pop(NOTE, None)
        if changed:
            self._counts["applied"] += 1
            logger.info("settings taken over from the config store: %s", ", ".join(changed))

    def _apply(self, entry: Entry) -> list[str]:
        """The names of what is different now. Raises ConfigurationError; nothing has changed then."""
        mesh = self._mesh
        stored = stored_mesh_layer(entry, LIVE)
        loaded = load_mesh_config(self._code, file=self._file, stored=stored)
        before = mesh.config
        changed = [name for name in LIVE if getattr(loaded, name) != getattr(before, name)]
        if changed:
            config = before.model_copy(update={name: getattr(loaded, name) for name in changed})
            mesh.policies.replace(config, [state.name for state in mesh.states.all()])
            mesh.config = config
            if "services" in changed:
                for name in {*before.services, *config.services}:
                    if before.services.get(name) != config.services.get(name):
                        mesh.add_service(name, config.services.get(name, ()))
        return changed
