"""A config store that is a folder with a file for each key, such as a mounted Kubernetes ConfigMap."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi_mesh.configstore.base import MAX_SIZE, Entry, check_key, check_text
from fastapi_mesh.configstore.polling import Signature, signature, wait_settled
from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.exceptions import ConfigStoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi_mesh.core.clock import Clock


class FileStore:
    """Reads and writes files below `folder`; `~` is expanded. A change is seen after at most two `poll_interval`s.

    A file that is being written is not taken half: it must have been the same for one interval. `put` replaces a file
    in one step, so that nobody else reads it half either.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, poll_interval: float = 0.25, clock: Clock | None = None
    ) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self._interval = poll_interval
        self._clock: Clock = clock or SystemClock()
        self._reads = 0

    def statistics(self) -> dict[str, int]:
        return {"reads": self._reads}

    async def get(self, key: str) -> Entry | None:
        """See `ConfigStore.get`."""
        return (await self._read(key))[1]

    async def watch(self, key: str) -> AsyncIterator[Entry | None]:
        """See `ConfigStore.watch`."""
        seen, entry = await self._read(key)
        yield entry
        while True:
            look = partial(self._signature, key)
            seen = await wait_settled(look, seen, interval=self._interval, clock=self._clock)
            before = entry
            seen, entry = await self._read(key)
            if (entry and entry.text) != (before and before.text):
                yield entry

    async def put(self, key: str, text: str) -> None:
        """See `ConfigWriter.put`."""
        await asyncio.to_thread(_replace, self._path(key), check_text(key, text))

    async def delete(self, key: str) -> None:
        """See `ConfigWriter.delete`."""
        path = self._path(key)
        try:
            await asyncio.to_thread(path.unlink, missing_ok=True)
        except OSError as error:
            raise ConfigStoreError(f"{path} can't be removed: {error.strerror}") from error

    def _path(self, key: str) -> Path:
        """The key's file. A key without an ending, like 'database', may be 'database.json', as in a ConfigMap."""
        path = self.folder / check_key(key)
        if not path.suffix and not path.exists():
            typed = path.with_name(f"{path.name}.json")
            if typed.exists():
                return typed
        return path

    def _signature(self, key: str) -> Signature:
        return signature(self._path(key))

    async def _read(self, key: str) -> tuple[Signature, Entry | None]:
        """The file's signature from before it was read, so that a later change is never missed."""
        path = self._path(key)
        self._reads += 1
        seen = signature(path)
        try:
            raw = await asyncio.to_thread(_content, path)
            text = raw.decode("utf-8-sig")
        except (FileNotFoundError, NotADirectoryError):
            return None, None
        except UnicodeDecodeError as error:
            raise ConfigStoreError(f"{path} is not UTF-8") from error
        except OSError as error:
            raise ConfigStoreError(f"{path} can't be read: {error.strerror}") from error
        return seen, Entry(key, check_text(key, text), "-".join(map(str, seen or ())))


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_SIZE + 4)  # what is longer is refused, and must not fill the memory before


def _replace(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise ConfigStoreError(f"{path} can't be written: {error.strerror}") from error
