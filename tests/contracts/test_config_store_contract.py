"""What every config store promises (configstore/base.py), run over all of them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fastapi_mesh.configstore.base import MAX_SIZE
from fastapi_mesh.exceptions import ConfigStoreError, ConfigurationError
from tests.contracts.backends import parameters, process_of
from tests.contracts.config_backends import StoreBackend, Watched
from tests.contracts.every import STORES

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-30")]

KEY = "teams/payments/gateway.toml"


@pytest.fixture(params=parameters(STORES))
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StoreBackend]:
    async with request.param(tmp_path, process_of(request)) as opened:
        yield opened


async def test_nothing_is_none_at_once(backend: StoreBackend) -> None:
    store = backend.client()

    assert await store.get("nobody") is None
    async with Watched(store, "nobody") as watched:
        await watched.until(lambda texts: texts == [None])


@pytest.mark.parametrize("text", ["", "a = 1\n", "b = 'grüße, \u4e16\u754c'\r\n\ttab\n\n", "x" * 100_000])
async def test_what_is_put_is_got_to_the_letter(backend: StoreBackend, text: str) -> None:
    await backend.client().put(KEY, text)

    entry = await backend.client().get(KEY)

    assert entry is not None
    assert (entry.key, entry.text) == (KEY, text)


async def test_the_version_changes_with_each_change(backend: StoreBackend) -> None:
    store = backend.client()
    versions = []
    for number in range(3):
        await store.put(KEY, f"a = {number}")
        entry = await store.get(KEY)
        assert entry is not None
        versions.append(entry.version)

    assert len(set(versions)) == 3


async def test_keys_are_told_apart(backend: StoreBackend) -> None:
    store = backend.client()
    await store.put("a", "1")
    await store.put("b/a", "2")
    await store.delete("a")

    found = await store.get("b/a")

    assert found is not None
    assert found.text == "2"
    assert await store.get("a") is None


async def test_deleting_what_is_not_there_is_no_error(backend: StoreBackend) -> None:
    await backend.client().delete("nobody")


async def test_a_watch_sees_what_another_program_puts_replaces_and_deletes(backend: StoreBackend) -> None:
    async with Watched(backend.client(), KEY) as watched:
        await watched.until(lambda texts: texts == [None])
        other = backend.client()
        for text in ("a = 1", "a = 2"):
            started = time.monotonic()
            await other.put(KEY, text)
            await watched.until(lambda texts, text=text: texts[-1] == text)  # type: ignore[misc]  # bound on purpose
            assert time.monotonic() - started < backend.settle
        await other.delete(KEY)
        await watched.until(lambda texts: texts[-1] is None)

    assert watched.texts == [None, "a = 1", "a = 2", None]


async def test_a_watch_is_not_told_of_the_same_text_or_of_other_keys(backend: StoreBackend) -> None:
    store = backend.client()
    await store.put(KEY, "a = 1")
    async with Watched(backend.client(), KEY) as watched:
        await watched.until(lambda texts: texts == ["a = 1"])
        await store.put(KEY, "a = 1")
        await store.put("another", "b")
        await store.put(KEY, "a = 2")
        await watched.until(lambda texts: texts[-1] == "a = 2")

    assert watched.texts == ["a = 1", "a = 2"]


async def test_of_quick_changes_the_last_one_is_seen(backend: StoreBackend) -> None:
    store = backend.client()
    async with Watched(backend.client(), KEY) as watched:
        for number in range(50):
            await store.put(KEY, f"a = {number}")
        await watched.until(lambda texts: texts[-1:] == ["a = 49"])

    assert all(before != after for before, after in zip(watched.texts, watched.texts[1:], strict=False))


async def test_many_watch_one_key(backend: StoreBackend) -> None:
    store = backend.client()
    async with Watched(store, KEY) as first, Watched(store, KEY) as second, Watched(backend.client(), KEY) as third:
        await backend.client().put(KEY, "a = 1")
        for watched in (first, second, third):
            await watched.until(lambda texts: texts[-1:] == ["a = 1"])


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../../etc/passwd", "a/../b", "a//b", ".", "a\0b", "a\\b", "a/"])
async def test_a_key_that_is_none_is_refused(backend: StoreBackend, key: str) -> None:
    store = backend.client()

    for call in (store.get(key), store.put(key, ""), store.delete(key), anext(store.watch(key))):
        with pytest.raises(ValueError, match="is not a key"):
            await call


async def test_what_is_too_large_is_refused_and_changes_nothing(backend: StoreBackend) -> None:
    store = backend.client()
    await store.put(KEY, "a = 1")

    with pytest.raises(ConfigStoreError, match="at most 1048576 bytes"):
        await store.put(KEY, "ü" * (MAX_SIZE // 2 + 1))

    entry = await store.get(KEY)
    assert entry is not None
    assert entry.text == "a = 1"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("gateway", '{"port": 1, "routes": []}'),
        ("gateway.json", '{"port": 1, "routes": []}'),
        ("gateway.toml", "port = 1\nroutes = []"),
        ("gateway.yaml", "port: 1\nroutes: []"),
    ],
)
async def test_the_ending_of_a_key_says_how_its_document_is_written(backend: StoreBackend, key: str, text: str) -> None:
    store = backend.client()
    await store.put(key, text)

    entry = await store.get(key)

    assert entry is not None
    assert entry.document() == {"port": 1, "routes": []}


async def test_a_text_that_is_no_document_is_told_with_its_key(backend: StoreBackend) -> None:
    store = backend.client()
    await store.put("gateway", "{")

    entry = await store.get("gateway")

    assert entry is not None
    with pytest.raises(ConfigurationError, match=r"config store, 'gateway': is not valid JSON"):
        entry.document()
