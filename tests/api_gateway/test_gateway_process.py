"""A gateway as a program: how it starts, ends and reloads, with one process and with several."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fastapi_mesh.api_gateway.run import Ending, Options, make_gateway, run_in_loop
from fastapi_mesh.exceptions import ConfigurationError
from tests.api_gateway.gateway_support import RawUpstream, parts, request, talk
from tests.support.process import ROOT, ChildProcess, Processes, free_port, process_tree, until

pytestmark = pytest.mark.anyio

MODULE = [sys.executable, "-m", "fastapi_mesh.api_gateway"]
COMMAND = [sys.executable, "-m", "fastapi_mesh", "gateway"]
SERVES = re.compile(r"gateway on https?://")


@pytest.fixture
async def upstream() -> AsyncIterator[RawUpstream]:
    async with RawUpstream() as running:
        yield running


def settings(folder: Path, upstream: str, extra: str = "", path: str = "/api/*") -> Path:
    file = folder / "gateway.toml"
    file.write_text(
        f'host = "127.0.0.1"\n{extra}\n[services]\nup = "{upstream}"\n[[routes]]\npath = "{path}"\nservice = "up"\n'
    )
    return file


def start(processes: Processes, *arguments: object, by: list[str] = MODULE, **environment: str) -> ChildProcess:
    # Where one is killed, what it had in its temporary folder stays: in the test's own.
    environment = {"MESH_DRAIN_DELAY": "0.4", "TMPDIR": str(processes._folder), **environment}
    return processes.start([*by, *map(str, arguments)], name="gateway", environment=environment)


async def status(port: int, path: str) -> int:
    return parts(await talk(port, request(f"GET {path}")))[0]


@pytest.mark.spec("S-350", "A13", "X-51")
async def test_it_serves_what_its_file_says_and_on_sigterm_is_unready_first_and_completes_what_is_under_way(
    processes: Processes, tmp_path: Path
) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone")

    async with RawUpstream(slow) as upstream:
        file = settings(tmp_path, upstream.url)
        child = start(processes, "--config", file, "--port", "{port}", MESH_DRAIN_DELAY="1")
        await child.ready(SERVES)
        assert await status(child.port, "/health/ready") == 200
        asked = asyncio.ensure_future(talk(child.port, request("GET /api/x")))  # noqa: TID251 - the test's own
        await arrived.wait()

        child.signal(signal.SIGTERM)
        await until(lambda: _is(child.port, "/health/ready", 503), "readiness is 503 while the port is still open")
        go_on.set()

        assert parts(await asked)[2] == b"done"
        assert await asyncio.to_thread(child.ended) == 0
    assert child.log.count("gateway on") == 1
    assert f"gateway on http://127.0.0.1:{child.port} (routes: 1, services: 1)" in child.log


@pytest.mark.spec("S-350", "A13", "X-51")
async def test_the_command_serves_too_and_a_file_with_a_node_s_settings_makes_the_gateway_one(
    processes: Processes, tmp_path: Path, upstream: RawUpstream
) -> None:
    file = tmp_path / "both.toml"
    file.write_text(
        f'service_name = "edge"\nmetrics_path = "/own-metrics"\n[gateway]\nhost = "127.0.0.1"\n'
        f'services = {{ up = "{upstream.url}" }}\nroutes = [{{ path = "/api/*", service = "up" }}]\n'
    )
    child = start(processes, "--config", file, "--port", "{port}", by=COMMAND)
    await child.ready(SERVES)

    assert await status(child.port, "/api/x") == 200
    assert b'source_service="edge"' in await talk(child.port, request("GET /own-metrics"))
    assert f"gateway on http://127.0.0.1:{child.port} (routes: 1, services: 1)" in child.log
    assert await asyncio.to_thread(child.stop) == 0


async def _is(port: int, path: str, expected: int) -> bool:
    return await status(port, path) == expected


@pytest.mark.spec("S-320", "S-321")
async def test_variables_say_where_it_listens_and_ctrl_c_ends_it_without_a_drain(
    processes: Processes, tmp_path: Path, upstream: RawUpstream
) -> None:
    port = free_port()
    file = settings(tmp_path, upstream.url, extra="port = 1")
    child = start(processes, "--config", file, GATEWAY_HOST="localhost", GATEWAY_PORT=str(port), MESH_DRAIN_DELAY="600")
    await child.ready(SERVES)
    assert await status(port, "/api/x") == 200

    child.signal(signal.SIGINT)

    assert await asyncio.to_thread(child.ended) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_can_not_start_is_told_in_four_lines_with_exit_code_3(workers: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        file = settings(tmp_path, "http://127.0.0.1:1", extra=f"port = {taken.getsockname()[1]}")

        ended = subprocess.run(
            [*MODULE, "--config", file, "--workers", workers],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=ROOT,
        )

    assert ended.returncode == 3
    assert "fastapi-mesh: the gateway can't start" in ended.stderr
    assert "is in use by another program" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(config="none.toml"), "none.toml: there is no such file"),
        (Options(app="tests.api_gateway.code_gateway"), "is not MODULE:NAME"),
        (Options(app="no_such_module:gateway"), "there is no module 'no_such_module'"),
        (Options(app="tests.api_gateway.code_gateway:nothing"), "is nothing, not an APIGateway"),
        (Options(app="tests.api_gateway.code_gateway:not_a_gateway"), "is a int, not an APIGateway"),
        (Options(port=70000), "port: 70000 is too large"),
        (Options(app="tests.api_gateway.code_gateway:gateway", workers=0), "workers: 0 is too small"),
    ],
)
def test_wrong_arguments_are_told(options: Options, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM", "http://127.0.0.1:1")

    with pytest.raises(ConfigurationError, match=re.escape(said)):
        make_gateway(options)


@pytest.mark.parametrize(("given", "during"), [(700, 10_000), (50_000, 50_000), (0, 0)])
def test_the_process_looks_for_garbage_less_often_unless_somebody_has_said_how_often(given: int, during: int) -> None:
    before = gc.get_threshold()
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    seen: list[int] = []

    async def work() -> int:
        seen.append(gc.get_threshold()[0])
        return 7

    try:
        gc.set_threshold(given, *before[1:])
        assert run_in_loop(work, Ending()) == 7
        assert gc.get_threshold()[0] == given
    finally:
        gc.set_threshold(*before)
        for number, handler in handlers:
            signal.signal(number, handler)

    assert seen == [during]


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


# Workers


@pytest.fixture
async def workers(processes: Processes, tmp_path: Path, upstream: RawUpstream) -> ChildProcess:
    """Two workers with metrics on a port of their own (the next one)."""
    file = settings(tmp_path, upstream.url, extra=f"metrics_port = {free_port()}")
    child = start(processes, "--config", file, "--port", "{port}", "--workers", "2")
    return await child.ready(SERVES)


def metrics_port(child: ChildProcess) -> int:
    found = re.search(r"metrics on http://127\.0\.0\.1:(\d+)/metrics", child.log)
    assert found is not None
    return int(found[1])


@pytest.mark.spec("S-064", "B16")
async def test_workers_share_the_port_count_together_are_replaced_and_end_together(workers: ChildProcess) -> None:
    for _ in range(40):
        assert await status(workers.port, "/api/x") == 200

    metrics = await talk(metrics_port(workers), request("GET /metrics"))
    assert b'gateway_requests_total{method="GET",path="/api/*",status="200"} 40.0' in metrics
    assert await status(metrics_port(workers), "/health/ready") == 200
    assert await status(workers.port, "/metrics") == 404
    assert len(process_tree(workers.pid)) == 3
    assert "2 workers, each a node of its own" in workers.log

    # One that dies is replaced, and no connection is lost.
    _, victim, _ = process_tree(workers.pid)
    os.kill(victim, signal.SIGKILL)

    answers = await asyncio.gather(*[status(workers.port, "/api/x") for _ in range(20)])

    assert answers == [200] * 20
    await until(lambda: _is(metrics_port(workers), "/health", 200), "the worker is replaced")
    assert victim not in process_tree(workers.pid)
    assert "ended with -9; another takes its place" in workers.log

    # All end gracefully on SIGTERM.
    tree = process_tree(workers.pid)

    assert await asyncio.to_thread(workers.stop) == 0

    assert not any(map(runs, tree))
    assert workers.log.count("signal 15, draining") == 2


def _logged(child: ChildProcess, text: str, times: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return child.log.count(text) >= times

    return check


@pytest.mark.spec("X-30")
async def test_all_workers_reload_and_one_that_is_replaced_meanwhile_has_what_was_last_good(
    workers: ChildProcess, tmp_path: Path, upstream: RawUpstream
) -> None:
    file = settings(tmp_path, upstream.url, extra="port = [")
    workers.signal(signal.SIGHUP)
    await until(_logged(workers, "are refused", 2), "both have refused it")
    _, victim, _ = process_tree(workers.pid)
    os.kill(victim, signal.SIGKILL)

    for _ in range(10):
        assert await status(workers.port, "/api/x") == 200
    await until(_logged(workers, "this process starts with the settings that were last good", 1), "it is replaced")

    settings(tmp_path, upstream.url, path="/new/*")
    assert file.exists()
    workers.signal(signal.SIGHUP)
    await until(_logged(workers, "settings reloaded", 2), "both have taken it over")
    for _ in range(10):
        assert await status(workers.port, "/new/x") == 200

    # And they end when their parent is killed.
    tree = process_tree(workers.pid)
    workers.kill()

    async def gone() -> bool:
        return not any(map(runs, tree))

    await until(gone, "the workers end by themselves")


@pytest.mark.spec("S-064")
async def test_a_gateway_made_in_code_has_workers_and_one_that_hangs_is_killed_and_replaced(
    processes: Processes, upstream: RawUpstream
) -> None:
    arguments = ["--app", "tests.api_gateway.code_gateway:gateway", "--port", "{port}", "--workers", "2"]
    child = start(processes, *arguments, UPSTREAM=upstream.url, MESH_GATEWAY__WORKER_TIMEOUT="2")
    await child.ready(SERVES)

    assert await status(child.port, "/api/x") == 200
    assert b"gateway_requests_total" in await talk(child.port, request("GET /metrics")), "any worker answers for all"

    _, victim, other = process_tree(child.pid)
    os.kill(victim, signal.SIGSTOP)

    await until(_logged(child, "has given no sign of life for 2 s and is killed", 1), "it is noticed")
    answers = await asyncio.gather(*[status(child.port, "/api/x") for _ in range(20)])

    assert answers == [200] * 20
    assert not runs(victim)
    assert runs(other)
