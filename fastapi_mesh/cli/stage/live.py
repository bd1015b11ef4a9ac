"""Shows what the processes of the demo log, as they log it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ACCESS = re.compile(r'^INFO: +\S+ - "(?P<request>[^"]+) HTTP/[\d.]+" (?P<status>.+)$')


class Logs:
    """Follows several logs from where they are when this is made."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(paths)
        self._read = {name: path.stat().st_size if path.exists() else 0 for name, path in paths.items()}
        self._width = max(map(len, paths), default=0)

    def new_lines(self) -> list[str]:
        """What was logged since the last time; requests in short, everything else as it is."""
        return [
            f"{name.ljust(self._width)}  {_short(line)}"
            for name, path in self._paths.items()
            for line in self._of(name, path)
        ]

    def _of(self, name: str, path: Path) -> list[str]:
        if not path.exists():
            return []
        with path.open("rb") as log:
            log.seek(self._read[name])
            whole, newline, _ = log.read().rpartition(b"\n")
        self._read[name] += len(whole) + len(newline)
        return whole.decode(errors="replace").splitlines()


def _short(line: str) -> str:
    found = _ACCESS.match(line)
    return f"{found['request']}  {found['status']}" if found else line
