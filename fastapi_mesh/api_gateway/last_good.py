"""The settings that were last good, on the disk: a gateway's workers keep them for one that replaces another."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi_mesh.config.load import Entry

logger = logging.getLogger("fastapi_mesh.gateway")


@dataclass(frozen=True, slots=True)
class Kept:
    """A document of a config store, as it was kept."""

    key: str
    text: str


class LastGood:
    """A folder that the workers of one gateway share; whoever has taken settings over writes them there, whole."""

    def __init__(self, folder: Path) -> None:
        self._files = folder / "file"
        self._entry = folder / "stored.json"

    @property
    def file(self) -> Path | None:
        """The settings file as it was, under its own name; None where there is none."""
        return next(iter(self._files.glob("*")), None)

    @property
    def entry(self) -> Entry | None:
        """What the config store said; None where it said nothing."""
        try:
            kept = json.loads(self._entry.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Kept(kept["key"], kept["text"])

    def keep(self, file: Path | None, entry: Entry | None) -> None:
        """Keep what is given, in place of what was kept of it before. Where the disk takes nothing, that is logged."""
        try:
            self._files.mkdir(parents=True, exist_ok=True)
            if file is not None:
                self._write(self._files / file.name, file.read_bytes())
            if entry is not None:
                self._write(self._entry, json.dumps({"key": entry.key, "text": entry.text}).encode())
        except OSError as error:
            logger.warning("the settings can't be kept for workers to come: %s", error)

    def _write(self, path: Path, data: bytes) -> None:
        """In one step, as others read it, and may write it, at the same time."""
        fresh = self._entry.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_bytes(data)
        fresh.replace(path)
