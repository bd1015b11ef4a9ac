"""`fastapi-mesh demo` as its users run it: as a process, with a terminal and without, to its end and interrupted."""

from __future__ import annotations

import os
import pty
import re
import signal
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastapi_mesh.cli.stage import story
from fastapi_mesh.cli.stage.ports import free_ports
from fastapi_mesh.cli.stage.shop import Shop, StartError
from tests.cli.demo_support import PROMISES, DemoRun, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    StartDemo = Callable[..., DemoRun]

RUN_TIMEOUT = 90.0
PROCESSES = 7


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[StartDemo]:
    runs = []

    def start(*arguments: str, stdout: int | None = None) -> DemoRun:
        runs.append(DemoRun(tmp_path, *arguments, stdout=stdout))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


class Terminal:
    """A terminal that a process can be given, and what it shows."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self._shown = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # nobody has the other side any more
                return
            self._shown += data

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[\d;]*m|\r", "", self._shown.decode())

    def close(self) -> None:
        os.close(self.theirs)
        self._reader.join(10)
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def unexpected_lines(logs: Path) -> list[str]:
    """What the demo's processes logged besides requests, their start and end, and what the story brings about."""
    return [
        f"{log.name}: {line}"
        for log in sorted(logs.glob("*.log"))
        for line in log.read_text().splitlines()
        if not line.startswith("INFO:")
        and not re.search(r"keeps failing; it gets no calls|the circuit of \S+ is", line)
    ]


@pytest.mark.spec("X-51")
def test_the_demo_keeps_its_promises_and_leaves_nothing(tmp_path: Path, start_demo: StartDemo):
    logs = tmp_path / "logs"

    run = start_demo("--once", "--logs", str(logs))
    code = run.process.wait(RUN_TIMEOUT)

    assert code == 0, run.text
    kept = re.findall(r"^  kept   (.+?): ", run.text, re.MULTILINE)
    assert kept == [story.REACH, story.CRASH, story.ROTATION, story.RETURN, story.OPEN, story.CLOSE, story.END]
    assert len(kept) == PROMISES
    assert "BROKEN" not in run.text
    ports = [int(port) for port in re.findall(r"http://127.0.0.1:(\d+)  ", run.text)]
    assert len(set(ports)) == PROCESSES
    assert max(ports) < 32768
    assert unexpected_lines(logs) == []
    assert len(list(logs.glob("*.log"))) == PROCESSES
    assert run.children() == set()
    assert list(run.temporary.iterdir()) == []


def test_a_broken_promise_is_named_and_the_exported_applications_are_what_is_played(
    tmp_path: Path, start_demo: StartDemo, terminal: Terminal
):
    shop = tmp_path / "shop"
    start_demo("--export", str(shop)).process.wait(RUN_TIMEOUT)
    (tmp_path / "tmp").rmdir()
    orders = shop / "order_service.py"
    orders.write_text(orders.read_text().replace("if FAULT.exists():", "if not FAULT:"))  # a fault that isn't one

    run = start_demo("--apps", str(shop), stdout=terminal.theirs)
    wait_until(lambda: "Calls as they come" in terminal.text or run.process.poll() is not None, "the end of the story")
    assert run.process.poll() is None, terminal.text
    url = re.search(r"curl -i (http\S+/users/3)", terminal.text)
    assert url is not None
    with urllib.request.urlopen(url[1]) as answer:
        assert answer.status == 200
    wait_until(lambda: "GET /api/v1/users/3  200 OK" in terminal.text, "the call is shown")
    run.process.send_signal(signal.SIGINT)

    assert run.process.wait(RUN_TIMEOUT) == 1
    broken = re.findall(r"^broken promise: (.+)$", terminal.text, re.MULTILINE)
    assert broken == [story.OPEN]
    assert len(re.findall(r"^  kept   ", terminal.text, re.MULTILINE)) == PROMISES - 1
    assert "the circuit is not open: 50 x 200" in terminal.text
    assert run.children() == set()
    assert not (shop / "order-service.fault").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_in_the_middle_leaves_no_process(start_demo: StartDemo, number: signal.Signals):
    run = start_demo("--once")
    wait_until(lambda: len(run.children()) == PROCESSES, "all processes are started")

    run.process.send_signal(number)
    code = run.process.wait(RUN_TIMEOUT)

    if number is signal.SIGKILL:  # it can't end them: they notice that it is gone
        wait_until(lambda: not run.children(), "the children end by themselves")
        assert code == -signal.SIGKILL
    else:
        assert code == 128 + number
        assert f"kept   {story.END}" in run.text
        assert "Traceback" not in run.text
        assert list(run.temporary.iterdir()) == []
    assert run.children() == set()


@pytest.mark.parametrize("plays", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_reader_that_goes_away_leaves_no_process(start_demo: StartDemo, plays: bool):
    """What can't be written is that one of them has died at its start; or, where it plays, how the story begins."""
    ours, theirs = os.pipe()
    run = start_demo("--once", stdout=theirs)
    os.close(theirs)
    wait_until(lambda: len(run.children()) == PROCESSES, "all processes are started")

    os.close(ours)
    if not plays:
        os.kill(min(run.children()), signal.SIGKILL)

    assert run.process.wait(RUN_TIMEOUT) == 1
    assert run.children() == set()
    assert list(run.temporary.iterdir()) == []


@pytest.mark.anyio
async def test_an_application_that_does_not_start_is_shown_with_its_log(tmp_path: Path):
    (tmp_path / "gateway.py").write_text("raise RuntimeError('not today')\n")
    registry, (port,) = tmp_path / "registry.db", free_ports(1)
    shop = Shop(tmp_path, registry=registry, logs=tmp_path, gateway_port=port, services=())
    shop.start()

    with pytest.raises(StartError, match=r"gateway ended with 1 at its start:\n(.*\n)+    RuntimeError: not today$"):
        await shop.wait_ready()

    assert (shop.end(), shop.left(), shop.started) == ([], [], 1)
    await shop.aclose()


@pytest.mark.anyio
async def test_an_application_that_is_never_ready_is_given_up(tmp_path: Path):
    (tmp_path / "gateway.py").write_text("import time\ntime.sleep(60)\n")
    registry, (port,) = tmp_path / "registry.db", free_ports(1)
    shop = Shop(tmp_path, registry=registry, logs=tmp_path, gateway_port=port, services=())
    shop.start()

    with pytest.raises(StartError, match="gateway was not ready in time"):
        await shop.wait_ready(timeout=0.2)

    assert (shop.end(), shop.left()) == ([], [])
    await shop.aclose()
