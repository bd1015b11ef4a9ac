"""`get_config`, `watch_config` and a node's own settings from a config store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from fastapi_mesh import ServiceMesh
from fastapi_mesh.configstore import Entry, FileStore, LocalStore, MemoryStore
from fastapi_mesh.exceptions import ConfigStoreError, ConfigurationError
from fastapi_mesh.service_mesh import configuration
from fastapi_mesh.testing import FakeClock

pytestmark = pytest.mark.anyio


class Pool(BaseModel):
    model_config = ConfigDict(strict=True)
    url: str
    size: int = 10
    hosts: list[str] = []


def a_mesh(store: object = None, **options: Any) -> ServiceMesh:
    return ServiceMesh("users", discovery_backend="static", config_store=store, **options)


class Told:
    """Everything that a handler was called with."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._more = asyncio.Event()

    async def __call__(self, value: object) -> None:
        self.values.append(value)
        self._more.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.values) < count:
                self._more.clear()
                await self._more.wait()


async def until(condition: Callable[[], Awaitable[bool] | bool]) -> None:
    """Wait until `condition` holds; what it waits for has no event."""
    async with asyncio.timeout(5):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.001)


async def says(mesh: ServiceMesh, key: str, value: object) -> bool:
    return bool(await mesh.get_config(key) == value)


class Flaky:
    """A store that fails until it is told not to; `entry` is what it has."""

    def __init__(self) -> None:
        self.away = True
        self.entry: Entry | None = None
        self.watches = 0
        self.changed = asyncio.Event()

    async def get(self, key: str) -> Entry | None:
        if self.away:
            raise ConfigStoreError("the store is away")
        return self.entry

    async def watch(self, key: str) -> AsyncIterator[Entry | None]:
        self.watches += 1
        while True:
            yield await self.get(key)
            self.changed.clear()
            await self.changed.wait()


@pytest.mark.spec("S-170", "B31")
async def test_a_document_is_a_read_only_mapping() -> None:
    store = MemoryStore({"database": {"url": "postgres://db", "replicas": [{"url": "a"}]}})
    async with a_mesh(store) as mesh:
        config = await mesh.get_config("database")

        assert config.get("url") == "postgres://db"
        assert config.get("pool_size", 10) == 10
        assert config["replicas"] == ({"url": "a"},)
        with pytest.raises(TypeError):
            config["url"] = "x"  # type: ignore[index]
        with pytest.raises(TypeError):
            config["replicas"][0]["url"] = "x"


@pytest.mark.spec("S-170")
async def test_a_mesh_that_is_not_started_starts_for_the_first_question() -> None:
    mesh = a_mesh(MemoryStore({"a": {"b": 1}}))
    assert (await mesh.get_config("a"))["b"] == 1
    assert mesh.started
    await mesh.stop()


@pytest.mark.spec("S-170")
async def test_the_newest_document_is_answered_without_asking_the_store_again() -> None:
    store = Flaky()
    store.away, store.entry = False, Entry("a", '{"b": 1}', "1")
    async with a_mesh(store) as mesh:
        assert await mesh.get_config("a") == {"b": 1}
        store.entry = Entry("a", '{"b": 2}', "2")
        store.changed.set()
        await until(lambda: says(mesh, "a", {"b": 2}))
        assert store.watches == 1


@pytest.mark.spec("S-170")
async def test_nothing_stored_is_an_error_that_names_the_key_or_the_default() -> None:
    async with a_mesh(MemoryStore(), namespace="shop") as mesh:
        with pytest.raises(ConfigStoreError, match="nothing is stored under 'databse' in namespace 'shop'"):
            await mesh.get_config("databse")
        assert await mesh.get_config("databse", default=None) is None
        assert await mesh.get_config("databse", Pool, default=3) == 3


@pytest.mark.spec("S-170")
async def test_a_model_is_validated_before_anybody_sees_it_and_the_last_good_one_stays() -> None:
    store = MemoryStore({"database": {"url": "a", "size": 3, "hosts": ["x"]}})
    told = Told()
    async with a_mesh(store) as mesh:
        assert await mesh.get_config("database", Pool) == Pool(url="a", size=3, hosts=["x"])
        mesh.watch_config("database")(told)
        await told.until(1)
        await store.put("database", {"url": "b", "size": "many"})
        await told.until(2)  # as a mapping it is right

        assert (await mesh.get_config("database", Pool)).url == "a"
        await store.put("database", {"url": "c"})
        await told.until(3)
        assert (await mesh.get_config("database", Pool)).url == "c"


@pytest.mark.spec("S-170")
async def test_a_document_that_was_never_right_is_refused_with_all_its_problems() -> None:
    store = MemoryStore({"database": {"size": "many"}, "broken": "{"})
    async with a_mesh(store) as mesh:
        with pytest.raises(ConfigurationError) as caught:
            await mesh.get_config("database", Pool)
        assert len(caught.value.problems) == 2
        assert "config store, 'database'" in str(caught.value)
        with pytest.raises(ConfigurationError, match="config store, 'broken'"):
            await mesh.get_config("broken")


@pytest.mark.spec("S-170", "X-57")
async def test_a_store_that_is_away_is_told_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "FIRST_ANSWER", 0.01)
    store = Flaky()
    async with a_mesh(store, clock=FakeClock(skip_sleeps=True)) as mesh:
        with pytest.raises(ConfigStoreError, match=r"not known yet.*the store is away"):
            await mesh.get_config("a")
        assert "config:a" in mesh.degraded
        store.away, store.entry = False, Entry("a", '{"b": 1}', "1")
        await until(lambda: "config:a" not in mesh.degraded)
        assert await mesh.get_config("a") == {"b": 1}
        store.away = True
        store.changed.set()
        await until(lambda: "config:a" in mesh.degraded)
        assert await mesh.get_config("a") == {"b": 1}


async def test_a_store_of_ones_own_may_watch_by_any_iterator() -> None:
    class Iterating:
        """One document, and no `aclose`."""

        def __init__(self) -> None:
            self._told = False

        def __aiter__(self) -> Iterating:
            return self

        async def __anext__(self) -> Entry | None:
            if self._told:
                await asyncio.Event().wait()
            self._told = True
            return Entry("a", '{"b": 1}', "1")

    class Store:
        def watch(self, key: str) -> Iterating:
            return Iterating()

        async def get(self, key: str) -> Entry | None:
            return await anext(self.watch(key))

    async with a_mesh(Store()) as mesh:
        assert await mesh.get_config("a") == {"b": 1}
        assert mesh.degraded == {}


@pytest.mark.spec("S-171")
async def test_a_handler_is_told_at_the_start_and_of_each_change_once() -> None:
    store = MemoryStore({"feature_flags": {"a": True}})
    mesh = a_mesh(store)
    told = Told()
    mesh.watch_config("feature_flags")(told)
    async with mesh:
        await told.until(1)
        await store.put("feature_flags", {"a": True})  # the same
        await store.put("other", {"a": 1})
        await store.put("feature_flags", "not JSON")
        await store.delete("feature_flags")
        await store.put("feature_flags", {"a": False})
        await told.until(2)

    assert told.values == [{"a": True}, {"a": False}]


@pytest.mark.spec("S-171")
async def test_a_handler_added_later_is_told_what_is_known() -> None:
    store = MemoryStore({"a": {"b": 1}})
    async with a_mesh(store) as mesh:
        await mesh.get_config("a")
        told = Told()
        mesh.watch_config("a")(told)
        await told.until(1)
        await store.put("a", {"b": 2})
        await told.until(2)

    assert told.values == [{"b": 1}, {"b": 2}]


@pytest.mark.spec("S-171")
async def test_handlers_may_be_plain_functions_and_fail_without_harm(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore({"a": {"size": 1, "url": "x"}})
    mesh = a_mesh(store)
    threads: list[threading.Thread] = []
    seen: list[object] = []
    told = Told()

    @mesh.watch_config("a")
    async def broken(config: Mapping[str, object]) -> None:
        raise ValueError("of the user's")

    @mesh.watch_config("a", Pool)
    def plain(pool: Pool) -> None:
        threads.append(threading.current_thread())
        seen.append(pool)

    mesh.watch_config("a")(told)
    async with mesh:
        await told.until(1)
        await store.put("a", {"url": "y"})
        await told.until(2)
        await until(lambda: len(seen) == 2)

    assert seen == [Pool(url="x", size=1), Pool(url="y")]
    assert threading.main_thread() not in threads
    assert caplog.text.count("a handler of the configuration 'a' failed") == 2


async def test_more_keys_than_can_be_followed_are_forgotten_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "MAX_KEYS", 3)
    store = MemoryStore({f"k{number}": {"n": number} for number in range(10)})
    mesh = a_mesh(store)
    told = Told()
    mesh.watch_config("k0")(told)
    async with mesh:
        for number in range(10):
            assert await mesh.get_config(f"k{number}") == {"n": number}
        assert mesh.configuration.statistics() == {"keys": 3, "known": 3}
        await store.put("k0", {"n": "new"})
        await told.until(2)


@pytest.mark.spec("S-170", "S-171")
async def test_the_store_is_that_of_discovery_where_no_other_is_named(tmp_path: Any) -> None:
    path = tmp_path / "registry.db"
    told = Told()
    async with LocalStore(path, namespace="shop") as other:
        await other.put("database", '{"url": "a"}')
        mesh = ServiceMesh("users", namespace="shop", discovery_backend="local", discovery_config={"path": path})
        mesh.watch_config("database")(told)
        async with mesh:
            assert await mesh.get_config("database") == {"url": "a"}
            await other.put("database", '{"url": "b"}')
            await told.until(2)

    assert told.values == [{"url": "a"}, {"url": "b"}]


async def test_a_discovery_that_keeps_no_configuration_says_so() -> None:
    async with a_mesh() as mesh:
        with pytest.raises(ConfigurationError, match=r"config_store.backend: the backend 'static' .* name one of file"):
            await mesh.get_config("database")


async def test_a_file_store_finds_the_data_key_of_a_config_map(tmp_path: Any) -> None:
    (tmp_path / "database.json").write_text('{"url": "a"}')
    async with ServiceMesh(
        "users",
        discovery_backend="static",
        config=None,
        config_file=_file(tmp_path, f'[config_store]\nbackend = "file"\npath = "{tmp_path}"\npoll_interval = 0.01\n'),
    ) as mesh:
        assert await mesh.get_config("database") == {"url": "a"}
        await FileStore(tmp_path).put("database", '{"url": "b"}')
        assert (tmp_path / "database.json").read_text() == '{"url": "b"}'
        await until(lambda: says(mesh, "database", {"url": "b"}))


def _file(folder: Any, text: str) -> str:
    path = folder / "mesh.toml"
    path.write_text(text)
    return str(path)


# A node's own settings

KEY = "mesh.toml"
NODE = {"backend": "memory", "key": KEY}


async def node(store: MemoryStore, tmp_path: Any, text: str = "", **options: Any) -> ServiceMesh:
    file = _file(tmp_path, f'{text}\n[config_store]\nkey = "{KEY}"\n')
    return a_mesh(store, config_file=file, **options)


@pytest.mark.spec("X-30", "X-53")
async def test_settings_in_the_store_count_over_the_file_and_under_code(tmp_path: Any) -> None:
    store = MemoryStore({KEY: "drain_delay = 5\n[defaults.retry]\nmax_attempts = 7\n"})
    mesh = await node(store, tmp_path, "drain_delay = 1\n")
    mesh.configure_retry_policies({"orders": {"max_attempts": 2}})
    async with mesh:
        assert mesh.config.drain_delay == 5
        assert mesh.policy_of("users").retry.max_attempts == 7  # type: ignore[union-attr]
        assert mesh.policy_of("orders").retry.max_attempts == 2  # type: ignore[union-attr]

    code = await node(store, tmp_path, drain_delay=3.0)
    async with code:
        assert code.config.drain_delay == 3


@pytest.mark.spec("X-30")
async def test_a_change_is_taken_over_and_only_what_changed_loses_its_state(tmp_path: Any) -> None:
    store = MemoryStore({KEY: "[services]\nusers = ['http://127.0.0.1:1']\n"})
    mesh = await node(store, tmp_path)
    async with mesh:
        users, orders = mesh.states.get("users"), mesh.states.get("orders")
        breakers = users.breaker, orders.breaker
        await store.put(
            KEY,
            "[services]\nusers = ['http://127.0.0.1:2', 'http://127.0.0.1:3']\n"
            "[policies.users.circuit_breaker]\nfailure_threshold = 9\n",
        )
        await until(lambda: mesh.policy_of("users").circuit_breaker.failure_threshold == 9)  # type: ignore[union-attr]
        assert users.breaker is not breakers[0]
        assert orders.breaker is breakers[1]
        assert sorted(each.port for each in await mesh.discover_services("users")) == [2, 3]
        await store.put(KEY, "")
        await until(lambda: mesh.fixed_services == ())
        assert mesh.policy_of("users").circuit_breaker == mesh.config.defaults.circuit_breaker


@pytest.mark.spec("X-30", "X-57")
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("drain_delay = -1", "drain_delay (config store, 'mesh.toml', line 1)"),
        ("service_name = 'x'", "service_name (config store, 'mesh.toml', line 1): can't be set in a config store"),
        ("[defaults.retry]\nmax_atempts = 1", "did you mean 'max_attempts'"),
        ("= 1", "config store, 'mesh.toml'"),
    ],
)
async def test_settings_that_are_wrong_change_nothing_and_are_told(
    tmp_path: Any, caplog: pytest.LogCaptureFixture, text: str, named: str
) -> None:
    store = MemoryStore({KEY: "drain_delay = 5"})
    mesh = await node(store, tmp_path)
    async with mesh:
        await store.put(KEY, text)
        await until(lambda: "config" in mesh.life.notes)
        assert mesh.config.drain_delay == 5
        assert named in caplog.text
        await store.put(KEY, "drain_delay = 6")
        await until(lambda: mesh.config.drain_delay == 6)
        assert "config" not in mesh.life.notes

    wrong = await node(MemoryStore({KEY: text}), tmp_path)
    async with wrong:
        assert wrong.config.drain_delay == 2
        assert wrong.life.notes["config"]["settings"] == "refused"  # type: ignore[index]


async def test_a_store_that_is_away_does_not_keep_a_node_from_starting(tmp_path: Any) -> None:
    store = Flaky()
    mesh = await node(store, tmp_path)  # type: ignore[arg-type]
    async with mesh:
        assert mesh.config.drain_delay == 2
        store.away, store.entry = False, Entry(KEY, "drain_delay = 5", "1")
        await until(lambda: mesh.config.drain_delay == 5)
