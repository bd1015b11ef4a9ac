"""Large bodies through the gateway, each way, with a slow reader at the end: it holds next to nothing of them.

160 MiB in every run, which is well over what is allowed to stay; a whole gibibyte in `nox -s soak`.
"""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import ChildProcess, Processes

pytestmark = pytest.mark.anyio

SIZES = [pytest.param(160 << 20, id="160MiB"), pytest.param(1 << 30, id="1GiB", marks=pytest.mark.soak)]
PART = b"\x5a" * (1 << 20)
ALLOWED = 64 << 20


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildProcess]:
    """A gateway in front of one instance, warm; the tests use it one after the other."""
    folder = tmp_path_factory.mktemp("large")
    with Processes(folder) as processes:
        instance = processes.app(
            "tests.scenarios.counting_app:app",
            "--no-access-log",
            environment={"JOURNAL": str(folder / "journal"), "INSTANCE": "one"},
        )
        gateway = processes.app(
            "tests.scenarios.gateway_app:app",
            "--no-access-log",
            "--no-proxy-headers",
            environment={"INSTANCES": instance.url},
        )
        instance.wait_ready()
        gateway.wait_ready()
        with urllib.request.urlopen(f"{gateway.url}/item?size=1000") as answer:
            assert answer.status == 200
        yield gateway


def peak_memory(child: ChildProcess) -> int:
    """The largest resident set since `forget_peak`, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{child.pid}/status").read_text())
    assert found is not None
    return int(found.group(1)) * 1024


def forget_peak(child: ChildProcess) -> None:
    Path(f"/proc/{child.pid}/clear_refs").write_text("5")


@pytest.mark.spec("X-23")
@pytest.mark.parametrize("size", SIZES)
async def test_a_large_body_down_to_a_slow_reader(gateway: ChildProcess, size: int) -> None:
    forget_peak(gateway)
    before = peak_memory(gateway)

    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1 << 20)
    writer.write(f"GET /blob?size={size} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert f"content-length: {size}".encode() in head.lower()
    total, pauses = 0, 0
    while total < size:
        total += len(await reader.read(1 << 20))
        if total // (16 << 20) > pauses:
            pauses += 1
            await asyncio.sleep(0.02)  # slower than the sender: what is under test is who waits for whom
    writer.close()

    extra = peak_memory(gateway) - before
    print(f"\n{size >> 20} MiB down: {extra / 2**20:.1f} MiB more at the gateway's peak")
    assert total == size
    assert extra < ALLOWED


@pytest.mark.spec("X-23")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body_up_to_a_slow_reader(gateway: ChildProcess, chunked: bool, size: int) -> None:
    forget_peak(gateway)
    before = peak_memory(gateway)

    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    framing = "transfer-encoding: chunked" if chunked else f"content-length: {size}"
    writer.write(f"PUT /blob?pause=0.02 HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n".encode())
    for _ in range(size // len(PART)):
        writer.write(b"%x\r\n%b\r\n" % (len(PART), PART) if chunked else PART)
        await writer.drain()
    if chunked:
        writer.write(b"0\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    counted = await reader.readexactly(len(str(size)))
    writer.close()

    extra = peak_memory(gateway) - before
    print(f"\n{size >> 20} MiB up ({framing.split(':')[0]}): {extra / 2**20:.1f} MiB more at the gateway's peak")
    assert head.startswith(b"HTTP/1.1 200")
    assert counted == str(size).encode()
    assert extra < ALLOWED
