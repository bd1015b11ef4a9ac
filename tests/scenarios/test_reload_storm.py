"""Settings change again and again under load: no request fails, and open WebSockets stay open."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from tests.api_gateway.gateway_support import request, talk
from tests.support.process import Processes, free_port
from tests.support.servers import find

pytestmark = [pytest.mark.anyio, pytest.mark.server("wrk"), pytest.mark.spec("X-30")]

SERVES = re.compile(r"gateway on http://")


def settings(file: Path, items: str, sockets: int, turn: int) -> None:
    """Each turn has other routes, another service, and other numbers; /item and /ws are always there."""
    text = (
        f"retry_backoff = {1 + turn % 7}\nvia = 'turn-{turn}'\n[services]\nitems = '{items}'\n"
        f"sockets = 'http://127.0.0.1:{sockets}'\nextra-{turn % 5} = 'http://127.0.0.1:{1 + turn % 5}'\n"
    )
    for path, service in (("/item", "items"), ("/ws", "sockets"), (f"/turn/{turn}/*", f"extra-{turn % 5}")):
        text += f"[[routes]]\npath = '{path}'\nservice = '{service}'\n"
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


async def storm(processes: Processes, folder: Path, *, seconds: int, reloads: int, workers: int = 1) -> None:
    async def echo(socket: ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    items = processes.app(
        "tests.scenarios.counting_app:app",
        "--no-access-log",
        environment={"JOURNAL": str(folder / "journal"), "INSTANCE": "i"},
    )
    file = folder / "gateway.toml"
    metrics = free_port()
    async with serve(echo, "127.0.0.1", 0) as upstream:
        port = next(iter(upstream.sockets)).getsockname()[1]
        settings(file, items.url, port, 0)
        gateway = processes.start(
            [
                *(sys.executable, "-m", "fastapi_mesh.api_gateway", "--config", str(file)),
                *("--host", "127.0.0.1", "--port", "{port}", "--workers", str(workers)),
            ],
            name="gateway",
            environment={"MESH_GATEWAY__METRICS_PORT": str(metrics), "MESH_GATEWAY__WATCH_CONFIG": "false"},
        )
        await items.ready()
        await gateway.ready(SERVES)
        async with connect(f"ws://127.0.0.1:{gateway.port}/ws") as socket:
            load = await asyncio.create_subprocess_exec(
                find("wrk") or "wrk",
                *["-t1", "-c64", f"-d{seconds}s", "--timeout", "10s", f"{gateway.url}/item?size=100"],
                stdout=asyncio.subprocess.PIPE,
            )
            for turn in range(1, reloads + 1):
                settings(file, items.url, port, turn)
                gateway.signal(signal.SIGHUP)
                await asyncio.sleep(seconds / reloads * 0.9)
                await socket.send(str(turn))
                assert await socket.recv() == str(turn)
            said = (await load.communicate())[0].decode()
        counted = (await talk(metrics, request("GET /metrics"))).decode()

    applied = re.search(r'gateway_config_reloads_total\{result="applied"\} ([\d.]+)', counted)
    answered = re.search(r"(\d+) requests in", said)
    print(said, applied and applied[0])
    assert applied is not None
    assert float(applied[1]) >= reloads * workers * 0.9  # two signals may become one
    assert 'result="refused"' not in counted
    assert answered is not None
    assert int(answered[1]) > 100 * seconds
    assert "Socket errors" not in said
    assert "Non-2xx" not in said
    assert gateway.log.count("Exception in ASGI application") == 0


async def test_sixty_reloads_in_ten_seconds(processes: Processes, tmp_path: Path) -> None:
    await storm(processes, tmp_path, seconds=10, reloads=60)


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2])
async def test_two_hundred_reloads_in_a_minute(processes: Processes, tmp_path: Path, workers: int) -> None:
    await storm(processes, tmp_path, seconds=60, reloads=200, workers=workers)
