"""Configuration of programs, kept in a store and followed while they run: `mesh.get_config` and `mesh.watch_config`.

Every key that was asked for is watched, so only the first question waits for the store. What is read is validated
before anybody sees it; a document that is wrong, a store that is away and a key that was deleted leave the last good
value in force.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from pydantic import BaseModel, ValidationError

from fastapi_mesh.config.problems import explain
from fastapi_mesh.configstore.base import check_key
from fastapi_mesh.core.closing import closing
from fastapi_mesh.exceptions import ConfigStoreError, ConfigurationError
from fastapi_mesh.service_mesh.backends import Closed, Opened, store_of
from fastapi_mesh.service_mesh.handlers import run_handler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AsyncExitStack

    from fastapi_mesh.config.mesh import MeshConfig
    from fastapi_mesh.configstore.base import ConfigStore, Entry
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.tasks import Supervisor

logger = logging.getLogger("fastapi_mesh.config")

M = TypeVar("M", bound=BaseModel)
D = TypeVar("D")
H = TypeVar("H", bound="Callable[[Any], object]")

FIRST_ANSWER = 5.0
"""Seconds that a question waits for the store's first answer."""
MAX_KEYS = 1000
"""Keys followed at once; the one asked for longest ago, and that no handler watches, is followed no more."""
_NOTHING: Any = object()


class Configuration:
    """What a mesh's programs are told, by key. `open_mesh` starts the mesh if it isn't."""

    def __init__(
        self,
        config: MeshConfig,
        *,
        store: ConfigStore | None,
        supervisor: Supervisor,
        clock: Clock,
        open_mesh: Callable[[], Awaitable[None]],
    ) -> None:
        self._config = config
        self._given = store
        self._store: ConfigStore | None = store
        self._supervisor = supervisor
        self._clock = clock
        self._open_mesh = open_mesh
        self._open = False
        self._keys: OrderedDict[str, _Key] = OrderedDict()

    def statistics(self) -> dict[str, int]:
        """Keys followed, and those of them that have a value."""
        return {"keys": len(self._keys), "known": sum(each.document is not None for each in self._keys.values())}

    @property
    def store(self) -> ConfigStore:
        """The store, made on its first use. Raises ConfigurationError where the settings name none."""
        if self._store is None:
            config = self._config
            self._store = store_of(config.config_store, config.discovery, namespace=config.namespace, clock=self._clock)
        return self._store

    async def start(self, life: AsyncExitStack) -> None:
        """Open the store if it is needed already, and follow what handlers watch."""
        life.push_async_callback(self._stop)
        if self._keys or self._given is not None or self._config.config_store.backend is not None:
            await self._open_store()
        self._open = True
        for each in self._keys.values():
            self._follow(each)

    async def _open_store(self) -> None:
        store = self.store
        if isinstance(store, Opened):
            try:
                await store.open()
            except ConfigStoreError as error:
                if self._config.start_policy == "fail":
                    raise
                logger.warning("the config store does not answer yet (%s); starting without it", error)

    async def _stop(self) -> None:
        self._open = False
        tasks = [each.task for each in self._keys.values() if each.task is not None]
        for each in self._keys.values():
            each.task = None
            if not each.answered.is_set():
                each.answered = asyncio.Event()  # the next start may be in another event loop
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        store = self._store
        if store is not None and store is not self._given:
            self._store = None
            if isinstance(store, Closed):
                await store.aclose()

    # For users

    @overload
    async def get(self, key: str) -> Mapping[str, Any]: ...
    @overload
    async def get(self, key: str, model: None = None, *, default: D) -> Mapping[str, Any] | D: ...
    @overload
    async def get(self, key: str, model: type[M]) -> M: ...
    @overload
    async def get(self, key: str, model: type[M], *, default: D) -> M | D: ...
    async def get(self, key: str, model: type[BaseModel] | None = None, *, default: object = _NOTHING) -> object:
        """What the config store has under `key` now: a read-only mapping, or an instance of the pydantic `model`.

        The key's ending says how the document is written: .toml, .yaml, else JSON. The first question waits for the
        store, 5 s at most; from then on the key is watched and the answer comes from memory, the last good one while
        the store is away. `default` is returned where nothing is stored. Raises ConfigStoreError without a default, and
        for a store that never answered; ConfigurationError for a document that is wrong.
        """
        check_key(key)
        if not self._open:
            await self._open_mesh()
        watched = self._keys.get(key)
        if watched is None:
            watched = self._add(key)
            self._follow(watched)
        self._keys.move_to_end(key)
        view = watched.view(model)
        if not watched.answered.is_set():
            await self._first(watched)
        if view.value is not None:
            return view.value
        if view.refusal is not None:
            raise view.refusal
        if not watched.answered.is_set():
            why = self._supervisor.degraded.get(_name(key), "no answer")
            raise ConfigStoreError(f"{key!r} is not known yet, the config store does not answer: {why}")
        if default is not _NOTHING:
            return default
        raise ConfigStoreError(
            f"nothing is stored under {key!r} in namespace {self._config.namespace!r}; put it there, or pass default="
        )

    def watch(self, key: str, model: type[BaseModel] | None = None) -> Callable[[H], H]:
        """Decorator: call a function, async or not, with what is stored under `key`, and again after each change.

        It is called with a read-only mapping, or with an instance of the pydantic `model`: at the start, if there is
        something stored, and whenever that changes; not for a document that is wrong. Calls come one after the other,
        of quick changes only the last need be told. A `def` function is called in a thread. What it raises is logged.
        """
        check_key(key)
        watched = self._keys.get(key) or self._add(key)

        def register(handler: H) -> H:
            view = watched.view(model)
            added = _Handler(key, handler)
            view.handlers.append(added)
            if self._open:
                if watched.task is None:
                    self._follow(watched)
                self._supervisor.start(added.tell(view.value), name=f"config:{key}:first")
            return handler

        return register

    # How

    def _add(self, key: str) -> _Key:
        watched = self._keys[key] = _Key(key)
        while len(self._keys) > MAX_KEYS:
            idle = next((each for each in self._keys.values() if not each.has_handlers and each is not watched), None)
            if idle is None:
                break
            del self._keys[idle.key]
            if idle.task is not None:
                idle.task.cancel()
            self._supervisor.degraded.pop(_name(idle.key), None)
        return watched

    def _follow(self, watched: _Key) -> None:
        store = self.store
        watched.task = self._supervisor.keep(lambda: self._read(store, watched), name=_name(watched.key))

    async def _read(self, store: ConfigStore, watched: _Key) -> None:
        async with closing(store.watch(watched.key)) as entries:
            async for entry in entries:
                self._supervisor.recovered(_name(watched.key))
                await watched.take(entry)
        raise ConfigStoreError(f"the watch of {watched.key!r} ended by itself")

    async def _first(self, watched: _Key) -> None:
        """Wait for the store's first answer, or until it is clear that there is none."""
        try:
            async with asyncio.timeout(FIRST_ANSWER):
                await watched.answered.wait()
        except TimeoutError:
            return


class _Key:
    """A key that is followed: its document, and what that is to those who asked."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.document: Mapping[str, Any] | None = None
        self.refusal: ConfigurationError | None = None
        self.answered = asyncio.Event()
        self.task: asyncio.Task[object] | None = None
        self._views: dict[type[BaseModel] | None, _View[Any]] = {}

    @property
    def has_handlers(self) -> bool:
        return any(view.handlers for view in self._views.values())

    def view(self, model: type[BaseModel] | None) -> _View[Any]:
        view = self._views.get(model)
        if view is None:
            view = self._views[model] = _View(self.key, model)
            if self.document is not None:
                view.take(self.document)
            else:
                view.refusal = self.refusal
        return view

    async def take(self, entry: Entry | None) -> None:
        """What the store says now."""
        if entry is None:
            if self.document is not None:
                logger.warning("the config store has no %r any more; what it said stays in force", self.key)
            self.answered.set()
            return
        try:
            document = cast("Mapping[str, Any]", _frozen(entry.document()))
        except ConfigurationError as error:
            self._refuse(error)
            return
        finally:
            self.answered.set()
        if document == self.document:
            return
        self.document, self.refusal = document, None
        for view in tuple(self._views.values()):
            if view.take(document):
                for handler in tuple(view.handlers):
                    await handler.tell(view.value)

    def _refuse(self, error: ConfigurationError) -> None:
        kept = "what was there before stays in force" if self.document is not None else "it has no value"
        logger.error("the config store's %r is refused, %s: %s", self.key, kept, error)
        self.refusal = error
        for view in self._views.values():
            view.refusal = error


class _View(Generic[M]):
    """A document as a mapping or as a model, and who is told of it."""

    def __init__(self, key: str, model: type[M] | None) -> None:
        self._key = key
        self._model = model
        self.value: object = None
        self.refusal: ConfigurationError | None = None
        self.handlers: list[_Handler] = []

    def take(self, document: Mapping[str, Any]) -> bool:
        """Whether `document` is the value from now on; the last one stays where it doesn't fit the model."""
        if self._model is None:
            self.value, self.refusal = document, None
            return True
        try:
            self.value = self._model.model_validate(_thawed(document))
        except ValidationError as error:
            source = f"config store, {self._key!r}"
            self.refusal = ConfigurationError(problems=explain(error, self._model), source=source)
            logger.error("%s; what was there before stays in force", self.refusal)
            return False
        self.refusal = None
        return True


class _Handler:
    """A function of the user's that is told of a key: once of each value, one after the other."""

    def __init__(self, key: str, function: Callable[[Any], object]) -> None:
        self._key = key
        self._function = function
        self._told: object = None
        self._lock = asyncio.Lock()

    async def tell(self, value: object) -> None:
        """Call the function, unless there is nothing to tell or it knows."""
        if value is None or value is self._told:
            return
        self._told = value
        async with self._lock:
            try:
                await run_handler(self._function, value)
            except Exception:  # of the user's code: the watch must outlive it
                logger.exception("a handler of the configuration %r failed", self._key)


def _name(key: str) -> str:
    return f"config:{key}"


def _frozen(value: object) -> object:
    """Tables become read-only mappings, lists become tuples: one value is seen by all who ask."""
    if isinstance(value, dict):
        return MappingProxyType({key: _frozen(each) for key, each in value.items()})
    if isinstance(value, list):
        return tuple(_frozen(each) for each in value)
    return value


def _thawed(value: object) -> object:
    """What pydantic validates: strict models take lists and dictionaries only."""
    if isinstance(value, MappingProxyType):
        return {key: _thawed(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_thawed(each) for each in value]
    return value
