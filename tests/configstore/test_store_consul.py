"""The config store on a real Consul: where keys are, and what is said when it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack

import pytest

from fastapi_mesh import ServiceMesh
from fastapi_mesh.config.servers import ServerSettings
from fastapi_mesh.configstore.consul import MAX_VALUE, ConsulStore
from fastapi_mesh.exceptions import ConfigStoreError
from fastapi_mesh.wire.http import ControlClient
from tests.contracts.config_backends import Watched
from tests.support.consul import ConsulServer

pytestmark = [pytest.mark.anyio, pytest.mark.server("consul"), pytest.mark.spec("S-170", "B31")]

Maker = Callable[..., ConsulStore]


@pytest.fixture
async def store_of() -> AsyncIterator[Maker]:
    async with AsyncExitStack() as stack:

        def make(server: ConsulServer, token: str | None = None, **consul: object) -> ConsulStore:
            control = ControlClient(server.url, headers={"X-Consul-Token": token} if token else None)
            store = ConsulStore(control, ServerSettings(consul=consul), namespace="shop")
            stack.push_async_callback(store.aclose)
            return store

        yield make


async def test_keys_are_where_any_tool_of_consul_finds_them(store_of: Maker, consul_server: ConsulServer) -> None:
    store = store_of(consul_server)
    await store.put("teams/größe & 1.toml", "a = 1")

    assert consul_server.call("GET", "/v1/kv/?keys") == ["fastapi-mesh/shop/config/teams/größe & 1.toml"]
    consul_server.call("PUT", "/v1/kv/fastapi-mesh/shop/config/database", b'{"pool": 5}')
    entry = await store.get("database")
    assert entry is not None
    assert entry.document() == {"pool": 5}


async def test_the_largest_value_fits_and_a_larger_one_is_refused_with_the_limit(
    store_of: Maker, consul_server: ConsulServer
) -> None:
    store = store_of(consul_server)
    await store.put("large", "x" * MAX_VALUE)

    with pytest.raises(ConfigStoreError, match="'large' has 524290 bytes; Consul keeps at most 524288 under a key"):
        await store.put("large", "ü" * (MAX_VALUE // 2 + 1))

    entry = await store.get("large")
    assert entry is not None
    assert len(entry.text) == MAX_VALUE


async def test_what_is_no_text_is_told_with_its_key(store_of: Maker, consul_server: ConsulServer) -> None:
    consul_server.call("PUT", "/v1/kv/fastapi-mesh/shop/config/logo", b"\xff\xfe\x00")

    with pytest.raises(ConfigStoreError, match=r"config key 'logo': .* no text in UTF-8"):
        await store_of(consul_server).get("logo")


async def test_missing_rights_are_told_with_the_key_and_the_right(
    store_of: Maker, consul_acl_server: ConsulServer
) -> None:
    rules = 'key_prefix "fastapi-mesh/shop/config/" { policy = "read" }'
    reader = store_of(consul_acl_server, consul_acl_server.token_for(rules)[0])
    assert await reader.get("database") is None

    with pytest.raises(ConfigStoreError, match=r'needs key "fastapi-mesh/shop/config/database" \{ policy = "write" \}'):
        await reader.put("database", "{}")
    with pytest.raises(ConfigStoreError, match='policy = "write"'):
        await reader.delete("database")
    with pytest.raises(ConfigStoreError, match=r'config key .database.: .*403.* \{ policy = "read" \}'):
        await store_of(consul_acl_server).get("database")
    with pytest.raises(ConfigStoreError, match="403"):
        await anext(store_of(consul_acl_server, "unknown-token").watch("database"))


async def test_keys_beyond_the_blocking_queries_are_watched_too(store_of: Maker, consul_server: ConsulServer) -> None:
    store = store_of(consul_server, max_watches=2)
    async with AsyncExitStack() as stack:
        watched = [await stack.enter_async_context(Watched(store, f"key-{number}")) for number in range(5)]
        for each in watched:
            await each.until(lambda texts: texts == [None])
        await asyncio.gather(*[store.put(f"key-{number}", str(number)) for number in range(5)])
        for number, each in enumerate(watched):
            await each.until(lambda texts, number=number: texts[-1] == str(number))  # type: ignore[misc]  # on purpose
        assert store.statistics() == {"watches": 5, "blocking": 2}
    assert store.statistics() == {"watches": 0, "blocking": 0}


async def test_a_mesh_on_consul_has_its_configuration_from_there_live(consul_server: ConsulServer) -> None:
    path = "/v1/kv/fastapi-mesh/production/config/database"
    consul_server.call("PUT", path, b'{"pool_size": 5}')
    heard: asyncio.Queue[object] = asyncio.Queue()
    mesh = ServiceMesh(
        "config-user",
        namespace="production",
        discovery_backend="consul",
        discovery_config={"host": "127.0.0.1", "port": consul_server.port},
    )

    @mesh.watch_config("database")
    async def changed(config: Mapping[str, object]) -> None:
        heard.put_nowait(config["pool_size"])

    async with mesh:
        config = await mesh.get_config("database")
        assert config.get("pool_size", 20) == 5
        async with asyncio.timeout(20):
            while await heard.get() != 5:
                continue
            consul_server.call("PUT", path, b'{"pool_size": 9}')
            while await heard.get() != 9:
                continue
