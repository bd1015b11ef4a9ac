"""Writes the demo's applications where they can be edited; the demo itself runs what this writes."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

ENDINGS = (".py", ".md")


def export(folder: Path) -> list[Path]:
    """Write all files into `folder`, which is made if needed, and return them.

    Raises ConfigurationError, and writes nothing, when one of them exists or the folder can't be used.
    """
    source = files("fastapi_mesh.cli") / "demo_apps"
    texts = {
        folder / each.name: each.read_text(encoding="utf-8")
        for each in sorted(source.iterdir(), key=lambda each: each.name)
        if each.name.endswith(ENDINGS)
    }
    if existing := [path.name for path in texts if path.exists()]:
        raise ConfigurationError(f"{folder} has {', '.join(existing)} already; nothing was written")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{folder} can't be written: {error}") from error
    return list(texts)
