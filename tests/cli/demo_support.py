"""Runs `fastapi-mesh demo` as a child process, and finds what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = "FASTAPI_MESH_TEST_RUN"
"""A variable that all processes of one run inherit, so that they can be told from those of other runs."""

PROMISES = 7


class DemoRun:
    """The demo as a child process in a folder of its own; whatever a test does, nothing of it survives `close`."""

    def __init__(self, folder: Path, *arguments: str, stdout: int | None = None) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.out = folder / "out.txt"
        self._mark = str(folder)
        environment = {**os.environ, "TMPDIR": str(self.temporary), MARK: self._mark, **OTHER_NODES_SETTINGS}
        with self.out.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fastapi_mesh", "demo", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output if stdout is None else stdout,
                stderr=subprocess.STDOUT if stdout is None else stdout,
                env=environment,
                cwd=folder,
            )

    @property
    def text(self) -> str:
        return self.out.read_text()

    def children(self) -> set[int]:
        """The processes of this run that are there, except the demo itself."""
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.process.pid:
                try:
                    environment = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if f"{MARK}={self._mark}".encode() in environment.split(b"\0"):
                    found.add(int(entry.name))
        return found

    def close(self) -> None:
        """End what is left, by pid."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in self.children():
            os.kill(pid, 9)


OTHER_NODES_SETTINGS = {
    "MESH_SERVICES": '{"profile-service": ["http://127.0.0.1:9"]}',
    "SERVICE_NAME": "somebody-else",
    "PORT": "9",
    "MESH_GATEWAY__PREFIX": "/elsewhere",
    "UVICORN_ROOT_PATH": "/elsewhere",
}
"""What a developer's shell may hold, none of which is meant for the demo."""


def wait_until(true: Callable[[], object], what: str, timeout: float = 60.0) -> None:
    """Poll for what another process does."""
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.05)
