"""The settings that were last good: what a gateway begins with that takes another one's place while those are wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.last_good import LastGood
from fastapi_mesh.configstore import MemoryStore
from fastapi_mesh.exceptions import ConfigurationError

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-30")]

UPSTREAM = 'max_retries = 0\n[services]\nup = "http://127.0.0.1:1"\n'


def document(path: str, service: str = "up") -> str:
    return f'[[routes]]\npath = "{path}"\nservice = "{service}"\n'


def write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(UPSTREAM + document("/a/*"))
    return path


@asynccontextmanager
async def opened(
    good: LastGood | None, file: Path | None = None, store: MemoryStore | None = None
) -> AsyncIterator[APIGateway]:
    """A gateway as a worker opens it."""
    gateway = APIGateway(config_file=None if file is None else str(file), watch_config=False)
    gateway._reloads.last_good = good
    if store is not None:
        gateway.use_config_store(store, "gateway.toml")
    async with gateway.opened({}):
        yield gateway


def paths(gateway: APIGateway) -> list[str]:
    return [route.path for route in gateway.config.routes]


def details(gateway: APIGateway) -> object:
    assert gateway.life is not None
    return gateway.life.mesh.life.notes


async def test_a_file_that_only_an_open_gateway_refuses_is_replaced_by_the_last_good_one(
    file: Path, tmp_path: Path
) -> None:
    good = LastGood(tmp_path / "good")
    async with opened(good, file):
        write(file, UPSTREAM + document("/b/*", "down"))

    with pytest.raises(ConfigurationError, match="'down' is not a known service"):
        async with opened(None, file):
            pass
    async with opened(good, file) as gateway:
        assert paths(gateway) == ["/a/*"]
        assert "config" in details(gateway)  # type: ignore[operator] # a mapping
        with pytest.raises(ConfigurationError):
            await gateway.reload()

        write(file, UPSTREAM + document("/c/*"))
        await gateway.reload()
        assert paths(gateway) == ["/c/*"]
        assert details(gateway) == {}

    write(file, "[")
    assert good.file is not None
    assert "/c/*" in good.file.read_text(), "what was refused did not take its place"


@pytest.mark.parametrize(
    "wrong", ["prt = 1", document("/b/*", "down"), "["], ids=["unknown key", "unknown service", "not TOML"]
)
async def test_a_wrong_document_of_a_store_is_replaced_by_the_last_good_one(
    wrong: str, file: Path, tmp_path: Path
) -> None:
    good = LastGood(tmp_path / "good")
    store = MemoryStore({"gateway.toml": document("/stored/*")})
    async with opened(good, file, store) as gateway:
        assert paths(gateway) == ["/stored/*"]
        await store.put("gateway.toml", wrong)

    with pytest.raises(ConfigurationError):
        async with opened(None, file, store):
            pass
    async with opened(good, file, store) as gateway:
        assert paths(gateway) == ["/stored/*"]
        await gateway.reload()
        assert paths(gateway) == ["/stored/*"]


async def test_the_first_document_of_a_store_is_given_up_for_the_file_alone_where_that_was_good(
    file: Path, tmp_path: Path
) -> None:
    good, store = LastGood(tmp_path / "good"), MemoryStore()
    async with opened(good, file, store):
        await store.put("gateway.toml", document("/b/*", "down"))

    async with opened(good, file, store) as gateway:
        assert paths(gateway) == ["/a/*"]


async def test_what_was_never_good_fails_the_start(file: Path, tmp_path: Path) -> None:
    write(file, UPSTREAM + document("/b/*", "down"))

    with pytest.raises(ConfigurationError, match="'down' is not a known service"):
        async with opened(LastGood(tmp_path / "good"), file):
            pass


async def test_a_document_that_was_refused_counts_as_soon_as_the_file_fits_it(file: Path) -> None:
    store = MemoryStore({"gateway.toml": document("/a/*")})
    gateway = APIGateway(config_file=str(file))
    gateway.use_config_store(store, "gateway.toml")
    async with gateway.opened({}):
        await store.put("gateway.toml", document("/b/*", "new"))
        entry = await store.get("gateway.toml")
        await gateway._reloads._take_entry(entry, "gateway.toml")
        assert paths(gateway) == ["/a/*"]

        write(file, UPSTREAM + 'new = "http://127.0.0.1:1"\n')
        await gateway.reload()

        assert paths(gateway) == ["/b/*"]


async def test_a_disk_that_takes_nothing_is_reported_and_fails_nothing(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "good").write_text("a file where the folder should be")

    async with opened(LastGood(tmp_path / "good"), file) as gateway:
        assert paths(gateway) == ["/a/*"]

    assert "the settings can't be kept for workers to come" in caplog.text
