"""How other programs of the same user find the nodes of this machine, and see whether they have left the registry.

A node keeps a file in memory (Linux, `memfd_create`) whose name says what it is. It needs no folder that can be written
to, no port, and is gone with the process; only the same user and root can read it, below /proc/PID/fd.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

NAME = "fastapi-mesh-node"
_LINK = f"/memfd:{NAME} (deleted)"

State = Literal["serving", "draining", "left"]


@dataclass(frozen=True, slots=True)
class Node:
    """A node as its marker tells it. `drains` is whether it leaves the registry on SIGUSR1."""

    pid: int
    service: str
    state: State
    drains: bool


class Marker:
    """This process's marker. Does nothing where there is no `memfd_create`."""

    def __init__(self) -> None:
        self._file: int | None = None

    def say(self, service: str, state: State, *, drains: bool) -> None:
        """Be found from now on, with this state."""
        if self._file is None:
            create = getattr(os, "memfd_create", None)
            if create is None:
                return
            with suppress(OSError):  # not allowed here: then nobody finds it
                self._file = create(NAME)
        if self._file is not None:
            content = json.dumps(asdict(Node(os.getpid(), service, state, drains))).encode()
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, content, 0)

    def close(self) -> None:
        """Be found no more. Safe to call twice."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def find_nodes(processes: Path = Path("/proc")) -> list[Node]:
    """The nodes of this machine that this user may see, by process id."""
    pids = sorted(int(folder.name) for folder in processes.iterdir() if folder.name.isdigit())
    return [node for pid in pids for node in read_nodes(pid, processes)]


def read_nodes(pid: int, processes: Path = Path("/proc")) -> list[Node]:
    """The nodes in process `pid`; none where it has ended, or is another user's."""
    try:
        with os.scandir(processes / str(pid) / "fd") as entries:
            found = [_read(entry.path) for entry in entries if os.readlink(entry.path) == _LINK]
    except OSError:
        return []
    return [node for node in found if node is not None and node.pid == pid]  # a forked child has its parent's, too


def _read(path: str) -> Node | None:
    for _ in range(3):  # it may be written just now
        with suppress(ValueError, TypeError):
            return Node(**json.loads(Path(path).read_bytes()))
    return None
