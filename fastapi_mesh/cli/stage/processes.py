"""Child processes that run an application on uvicorn, each with a log, and all of them ended by pid."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from fastapi_mesh.cli.stage.ports import HOST

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

POLITE = 5.0
"""Seconds between asking the processes to end and killing those that have not."""
LOOK_EVERY = 0.02
LOG_TAIL = 15
"""Lines of a log that are shown when its process has failed."""


class Child:
    """One running application: where it listens, and what it says."""

    def __init__(self, name: str, target: str, port: int, *, log: Path, folder: Path, env: Mapping[str, str]) -> None:
        """Start `target` ("module:app") from `folder`. Does not wait until it serves."""
        self.name = name
        self.port = port
        self.url = f"http://{HOST}:{port}"
        self.log = log
        command = [sys.executable, "-m", "fastapi_mesh.cli.stage.child", target, "--host", HOST, "--port", str(port)]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "--no-proxy-headers", "--no-use-colors"],
                cwd=folder,
                stdin=subprocess.PIPE,  # never written to: the child ends when it is closed
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,  # Ctrl-C is for the demo, which ends its children in its own order
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll()

    def ask_to_end(self) -> None:
        """SIGTERM: it leaves the registry, finishes its requests and ends."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL, as a crash: nothing is finished, nobody is told."""
        self._process.kill()
        self._process.wait()
        self._let_go()

    def _let_go(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def end_of_log(self) -> str:
        """The last lines it wrote."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LOG_TAIL:])


def end(children: list[Child], timeout: float = POLITE) -> list[Child]:
    """Ask all to end, wait up to `timeout` seconds, kill the rest; returns those that had to be killed.

    It does not give control back before all are gone, so that no second Ctrl-C leaves one behind.
    """
    running = [child for child in children if child.exit_code is None]
    for child in running:
        child.ask_to_end()
    deadline = time.monotonic() + timeout
    while any(child.exit_code is None for child in running) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY)
    stubborn = [child for child in running if child.exit_code is None]
    for child in children:
        child.kill()  # for one that has ended this only collects what is left of it
    return stubborn
