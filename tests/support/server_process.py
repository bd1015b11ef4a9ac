"""A real server in a process of its own: started, waited for, killed, paused. What each is, its own file says."""

from __future__ import annotations

import signal
import subprocess
import time
from typing import TYPE_CHECKING, ClassVar

from tests.support.process import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

READY = 30.0
"""Seconds that a server may take to answer."""


class ServerProcess:
    """One server on `port`, below 32768, with a folder of its own for its files and its log."""

    kind: ClassVar[str]
    """What it is called in messages, and what its folder's name begins with."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder / f"{self.kind}-{self.port}"
        self._folder.mkdir()
        self._cwd = self._folder
        self._process: subprocess.Popen[bytes] | None = None

    def _command_line(self) -> Sequence[str]:
        raise AssertionError("each server says how it is started")

    def _is_ready(self) -> bool:
        """Whether this very process answers, and not another one on its port. It runs when this is asked."""
        raise AssertionError("each server says when it is ready")

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was not started"
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def start(self, *, wait: bool = True) -> None:
        """Start it unless it runs, and wait until it is ready."""
        if not self.runs:
            with (self._folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    self._command_line(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self._cwd
                )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        end = time.monotonic() + READY
        while not self._is_ready():
            if not self.runs:
                raise RuntimeError(f"{self.kind} ended:\n{self.log}")
            if time.monotonic() > end:
                raise RuntimeError(f"{self.kind} was not ready in time:\n{self.log}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Kill it and start it again on the same port."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Make it hang (SIGSTOP): connections are accepted by the kernel and nothing answers."""
        assert self._process is not None, "it was not started"
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None, "it was not started"
        self._process.send_signal(signal.SIGCONT)
