"""Runs ASGI applications and other programs in child processes: free ports, waiting, logs, and an end by pid."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
READY = re.compile(r"Uvicorn running on https?://")
_NEVER = re.compile(r"(?!)")
_PORTS = range(12_000, 32_000)
"""Below the kernel's ephemeral range (32768 and up), where an outgoing connection could already sit on a port."""
_handed_out: set[int] = set()
_DEFAULTS = {"MESH_DRAIN_DELAY": "0.1"}
"""For children whose test says nothing else: what they wait at their end, 2 s by default, is seconds of each test."""


def free_port() -> int:
    """A port below 32768 on which nothing listens on 127.0.0.1, and that was not handed out before."""
    for _ in range(200):
        port = random.choice(_PORTS)
        if port in _handed_out:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _handed_out.add(port)
        return port
    raise RuntimeError("no free port found in 200 tries")


def process_tree(pid: int) -> list[int]:
    """`pid` and all its descendants that still run."""
    found = [pid]
    for parent in found:  # grows while it is walked
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        except FileNotFoundError:
            continue
        found += [int(child) for child in children]
    return found


def listening_ports(pid: int) -> set[int]:
    """The TCP ports on which a process listens (Linux)."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            links = {os.readlink(entry.path) for entry in entries}
        tables = [Path(f"/proc/{pid}/net/{table}").read_text() for table in ("tcp", "tcp6")]
    except (FileNotFoundError, ProcessLookupError):  # it has ended, or has just closed one of them
        return set()
    ports = set()
    for table in tables:
        for line in table.splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in links:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout: float = 40.0) -> None:
    """Wait until `condition` holds; for what another process does in its own time, such as registering."""
    end = time.monotonic() + timeout
    while not await condition():
        if time.monotonic() > end:
            raise AssertionError(f"it never came true that {what}")
        await asyncio.sleep(0.02)


class ChildProcess:
    """A running child: its port, its log, and how to end it. Made by `Processes`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        log: Path,
        environment: Mapping[str, str],
        folder: Path,
    ) -> None:
        self.name = name
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = log
        self.traceback_expected = False
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_ready(self, ready: re.Pattern[str] = READY, timeout: float = 60.0) -> Self:
        """Wait until the log says so; a line of our own child's log proves that it is the one on the port."""
        end = time.monotonic() + timeout
        while not self._is_ready(ready, end):
            time.sleep(0.02)
        return self

    async def ready(self, ready: re.Pattern[str] = READY, timeout: float = 60.0) -> Self:
        """The same from an event loop that has to go on meanwhile."""
        end = time.monotonic() + timeout
        while not self._is_ready(ready, end):  # noqa: ASYNC110 - another process can't set an event of ours
            await asyncio.sleep(0.02)
        return self

    def wait_listening(self, timeout: float = 60.0) -> Self:
        """Wait until this very child (or one of its own) listens on its port; for programs that log no such line."""
        end = time.monotonic() + timeout
        while not any(self.port in listening_ports(pid) for pid in process_tree(self.pid)):
            self._is_ready(_NEVER, end)
            time.sleep(0.05)  # looking at the sockets of all processes is not for nothing
        return self

    def _is_ready(self, ready: re.Pattern[str], end: float) -> bool:
        log = self.log
        if ready.search(log):
            return True
        if self.returncode is not None:
            raise RuntimeError(f"{self.name} ended with {self.returncode} before it was ready:\n{log}")
        if time.monotonic() > end:
            raise RuntimeError(f"{self.name} was not ready in time:\n{log}")
        return False

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash does."""
        self._process.kill()
        self._process.wait()

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for its end and return the exit code."""
        return self._process.wait(timeout)

    def stop(self, timeout: float = 30.0) -> int:
        """End it politely (SIGTERM) and return the exit code; a child that doesn't end in time is killed, and fails."""
        if self.returncode is None:
            self.signal(signal.SIGTERM)
        return self.ended(timeout)

    def ended(self, timeout: float = 30.0) -> int:
        """Wait for the end of a child that was told to end; see `stop`."""
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"{self.name} did not end within {timeout:g} s of SIGTERM:\n{self.log}") from None


class Processes:
    """Starts children and ends all of them at the end; a traceback in a log is an error unless it was expected."""

    def __init__(self, folder: Path, *, run_in: Path = ROOT, tracebacks_allowed: bool = False) -> None:
        """`folder` gets the logs; the children run in `run_in`."""
        self._folder = folder
        self._run_in = run_in
        self._tracebacks_allowed = tracebacks_allowed
        self._children: list[ChildProcess] = []

    def start(
        self,
        command: Sequence[str],
        *,
        name: str = "child",
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
        core: int | None = None,
    ) -> ChildProcess:
        """Start any program; "{port}" in its arguments becomes the port, `core` is the only one it may use.

        Does not wait.
        """
        port = port or free_port()
        arguments = [part.replace("{port}", str(port)) for part in command]
        if core is not None:
            arguments = ["taskset", "--cpu-list", str(core), *arguments]  # becomes the program, so the pid is its own
        log = self._folder / f"{len(self._children)}-{name.replace('/', '-')}.log"
        child = ChildProcess(name, arguments, port, log, {**_DEFAULTS, **(environment or {})}, self._run_in)
        child.traceback_expected = self._tracebacks_allowed
        self._children.append(child)
        return child

    def app(
        self,
        target: str,
        *arguments: str,
        name: str = "",
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
        core: int | None = None,
    ) -> ChildProcess:
        """Start `target` ("package.module:app") on uvicorn. Does not wait: use `wait_ready()` or `await ready()`."""
        command = [sys.executable, "-m", "uvicorn", target, "--host", "127.0.0.1", "--port", "{port}", *arguments]
        name = name or target.replace(":", ".")
        return self.start(command, name=name, port=port, environment=environment, core=core)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        problems = []
        for child in self._children:  # all at once: each may take its time to drain
            if child.returncode is None:
                child.signal(signal.SIGTERM)
        for child in self._children:
            try:
                child.ended()
            except RuntimeError as error:
                problems.append(str(error))
            if not child.traceback_expected and "Traceback (most recent call last)" in child.log:
                problems.append(f"{child.name} logged a traceback:\n{child.log}")
        if kind is None and problems:
            raise AssertionError("\n\n".join(problems))
