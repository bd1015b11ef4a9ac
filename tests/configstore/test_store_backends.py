"""What single config stores do beyond the contract: files that are replaced, mounts that are swapped, processes."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import sys
from pathlib import Path

import pytest

from fastapi_mesh.configstore import FileStore, LocalStore, MemoryStore
from fastapi_mesh.configstore.base import MAX_SIZE
from fastapi_mesh.configstore.polling import signature, wait_settled
from fastapi_mesh.discovery.local import LocalRegistry
from fastapi_mesh.exceptions import ConfigStoreError, ConfigurationError
from fastapi_mesh.testing import FakeClock
from tests.contracts.config_backends import Watched
from tests.support.process import Processes

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-30")]

QUICK = 0.02


# A folder


async def test_a_swapped_link_is_a_change(tmp_path: Path) -> None:
    """Kubernetes mounts a ConfigMap as `key -> ..data/key`, `..data -> ..2026_01`, and swaps `..data`."""
    for name, text in (("..1", "a = 1"), ("..2", "a = 2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gateway.toml").write_text(text)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "gateway.toml").symlink_to("..data/gateway.toml")

    async with Watched(FileStore(tmp_path, poll_interval=QUICK), "gateway.toml") as watched:
        await watched.until(lambda texts: texts == ["a = 1"])
        (tmp_path / "..data_tmp").symlink_to("..2")
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
        await watched.until(lambda texts: texts[-1] == "a = 2")

    assert watched.texts == ["a = 1", "a = 2"]


async def test_an_editor_that_moves_the_old_file_away_first_is_no_deletion(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("a = 1")
    async with Watched(FileStore(tmp_path, poll_interval=QUICK), "gateway.toml") as watched:
        await watched.until(lambda texts: texts == ["a = 1"])
        file.rename(tmp_path / "gateway.toml~")
        await asyncio.sleep(QUICK)
        (tmp_path / "gateway.toml").write_text("a = 2")
        await watched.until(lambda texts: texts[-1] == "a = 2")

    assert watched.texts == ["a = 1", "a = 2"]


async def test_a_file_that_is_being_written_is_not_taken_half(tmp_path: Path) -> None:
    clock = FakeClock()
    file = tmp_path / "f"
    file.write_text("1")
    seen = signature(file)
    waiting = asyncio.ensure_future(wait_settled(file, seen, interval=1.0, clock=clock))  # noqa: TID251 - the test's own

    for part in ("22", "333", "4444"):
        file.write_text(part)
        await clock.advance(1.0)
        assert not waiting.done()
    await clock.advance(1.0)

    assert await waiting == signature(file)


async def test_a_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigStoreError, match="is not UTF-8"):
        await FileStore(tmp_path).get("a")


async def test_a_folder_in_the_place_of_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()

    with pytest.raises(ConfigStoreError, match="can't be read"):
        await FileStore(tmp_path).get("a")
    with pytest.raises(ConfigStoreError, match="can't be written"):
        await FileStore(tmp_path).put("a", "text")
    assert names(tmp_path) == ["a"], "no half-written file is left"


async def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * (MAX_SIZE + 10))

    with pytest.raises(ConfigStoreError, match="at most"):
        await FileStore(tmp_path).get("a")


# The local registry's file


async def test_the_registry_and_the_store_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    async with LocalRegistry(path) as registry, LocalStore(path) as store:
        await store.put("gateway", "{}")

        assert await registry.instances() == ()
        assert await store.keys() == ("gateway",)
    assert names(tmp_path) == ["registry.db"]


async def test_namespaces_are_told_apart(tmp_path: Path) -> None:
    async with LocalStore(tmp_path / "r.db") as store, LocalStore(tmp_path / "r.db", namespace="prod") as other:
        await store.put("gateway", "{}")

        assert await other.get("gateway") is None


async def test_a_deleted_file_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    async with LocalStore(path) as store:
        await store.put("gateway", "1")
        for name in names(tmp_path):
            os.unlink(tmp_path / name)

        assert await store.get("gateway") is None
        await store.put("gateway", "2")
        entry = await store.get("gateway")

    assert entry is not None
    assert entry.text == "2"


async def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()

    async with LocalStore(path) as store:
        with pytest.raises(ConfigurationError, match="is a SQLite database of something else"):
            await store.get("gateway")


async def test_a_damaged_file_is_an_error_that_can_be_waited_out(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)

    async with LocalStore(path) as store:
        with pytest.raises(ConfigStoreError, match="the config store"):
            await store.get("gateway")


async def test_a_locked_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi_mesh.discovery.local_database.BUSY_TIMEOUT", 0.2)
    path = tmp_path / "registry.db"
    async with LocalStore(path) as store:
        await store.put("gateway", "1")
        with sqlite3.connect(path, isolation_level=None) as connection:
            connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(ConfigStoreError, match="locked"):
                await store.put("gateway", "2")
            connection.execute("ROLLBACK")
        connection.close()
        await store.put("gateway", "3")


async def test_another_process_sees_a_change(tmp_path: Path, processes: Processes) -> None:
    path = tmp_path / "registry.db"
    script = (
        "import asyncio, sys\n"
        "from fastapi_mesh.configstore import LocalStore\n"
        "async def main():\n"
        "    async with LocalStore(sys.argv[1]) as store:\n"
        "        async for entry in store.watch('gateway'):\n"
        "            print('SAW', entry and entry.text, flush=True)\n"
        "asyncio.run(main())\n"
    )
    child = processes.start([sys.executable, "-c", script, str(path)])
    child.traceback_expected = True  # SIGTERM ends it in the middle of its loop
    async with LocalStore(path) as store:
        await child.ready(re.compile("SAW None"))
        await store.put("gateway", "first")
        await child.ready(re.compile("SAW first"))


# Memory


async def test_a_table_becomes_json() -> None:
    store = MemoryStore({"gateway": {"port": 1}})
    await store.put("other", {"port": 2})

    first, second = await store.get("gateway"), await store.get("other")

    assert first is not None
    assert second is not None
    assert (first.document(), second.document()) == ({"port": 1}, {"port": 2})
    assert store.statistics() == {"keys": 2, "changes": 2}


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))
