"""How a node finds its own address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery import address
from fastapi_mesh.discovery.address import (
    Listener,
    best_listener,
    own_listeners,
    routed_address,
    wait_listening,
    wait_own_address,
)
from fastapi_mesh.exceptions import ServiceDiscoveryError
from fastapi_mesh.testing.clock import FakeClock
from tests.support.process import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.spec("B37")]


@contextlib.contextmanager
def listening(host: str = "127.0.0.1", port: int = 0, *, listen: bool = True) -> Iterator[int]:
    """A TCP socket on `host`; gives its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        if listen:
            sock.listen()
        yield sock.getsockname()[1]


@pytest.fixture
def elsewhere() -> set[int]:
    """Ports on which this process listens already, for reasons of the test run."""
    return {each.port for each in own_listeners()}


def test_the_listening_sockets_of_this_process_are_found_and_no_others():
    with (
        listening() as one,
        listening("0.0.0.0") as two,
        listening("::1") as three,
        listening("::") as four,
        listening(listen=False) as bound_only,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(("127.0.0.1", 0))
        found = own_listeners()

        assert {
            Listener("127.0.0.1", one),
            Listener("0.0.0.0", two),
            Listener("::1", three),
            Listener("::", four),
        } <= set(found)
        assert bound_only not in {each.port for each in found}
        assert datagrams.getsockname()[1] not in {each.port for each in found}
    assert one not in {each.port for each in own_listeners()}


def test_a_socket_of_another_process_is_not_ours_and_an_inherited_one_is():
    program = "from fastapi_mesh.discovery.address import own_listeners; print([each.port for each in own_listeners()])"
    with socket.create_server(("127.0.0.1", 0)) as inherited, socket.create_server(("127.0.0.1", 0)) as other:
        seen = subprocess.run(
            [sys.executable, "-c", program], pass_fds=[inherited.fileno()], capture_output=True, text=True, check=True
        ).stdout

        assert str(inherited.getsockname()[1]) in seen
        assert str(other.getsockname()[1]) not in seen


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0100007F:1F90", ("127.0.0.1", 8080)),
        ("00000000:0050", ("0.0.0.0", 80)),
        ("00000000000000000000000001000000:1F90", ("::1", 8080)),
        ("00000000000000000000000000000000:1F90", ("::", 8080)),
        ("0000000000000000FFFF00000100007F:1F90", ("127.0.0.1", 8080)),
        ("B80D0120000000000000000001000000:0001", ("2001:db8::1", 1)),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="the samples are from a little-endian machine")
def test_addresses_of_the_kernel_s_table_are_read(text, expected):
    assert address._decoded(text) == expected


def test_of_several_sockets_the_one_that_somebody_meant_is_taken():
    chosen, helper = Listener("0.0.0.0", 8000), Listener("0.0.0.0", 45000)
    loopback, other = Listener("127.0.0.1", 5678), Listener("0.0.0.0", 9000)

    assert best_listener([helper, loopback, other, chosen]) == chosen
    assert best_listener([loopback, helper]) == loopback, "an ephemeral port is the last choice"
    assert best_listener([Listener("0.0.0.0", 8000), Listener("::", 8000)]) == chosen


async def test_settings_win():
    with listening() as port, listening():
        assert await wait_own_address(address="127.0.0.1", port=port) == ("127.0.0.1", port)
        assert await wait_own_address(port=port) == ("127.0.0.1", port)
        assert await wait_own_address(address="localhost", port=port) == ("localhost", port)


async def test_an_address_by_which_others_reach_us_need_not_be_one_of_ours(elsewhere):
    with listening() as port:
        assert await wait_own_address(address="192.0.2.1", port=port) == ("192.0.2.1", port)
        assert await wait_own_address(address="192.0.2.1", exclude=elsewhere) == ("192.0.2.1", port)


async def test_a_port_on_one_interface_only_is_found_there():
    with listening("127.0.0.3") as port:
        assert await wait_own_address(port=port) == ("127.0.0.3", port)


async def test_both_settings_together_are_trusted_after_a_while(caplog):
    clock = FakeClock()
    supervisor = Supervisor()
    port = free_port()
    both = supervisor.start(wait_own_address(address="127.0.0.9", port=port, clock=clock), name="both")
    only_port = supervisor.start(wait_own_address(port=port, clock=clock), name="port only")
    while not both.done():
        await clock.advance(0.5)
        await asyncio.sleep(0.001)  # real connections are refused in between

    assert both.result() == ("127.0.0.9", port)
    assert clock.now() - 1000 >= 10
    assert not only_port.done()
    await supervisor.aclose()
    assert [record.message for record in caplog.records] == [
        f"nothing accepts connections at 127.0.0.9:{port}, seen from here; going by the settings"
    ]


async def test_without_a_port_the_own_socket_is_found_and_excluded_ports_are_not(elsewhere):
    with listening() as metrics, listening("0.0.0.0") as port:
        assert await wait_own_address(exclude={metrics, *elsewhere}) == ("127.0.0.1", port)
        assert await wait_own_address(exclude={port, *elsewhere}) == ("127.0.0.1", metrics)


@pytest.mark.parametrize(
    ("bound", "reached"),
    [("0.0.0.0", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("::1", "::1"), ("::", "::1")],
)
async def test_a_wildcard_becomes_an_address_that_can_be_reached(bound, reached, elsewhere):
    with listening(bound) as port:
        assert await wait_own_address(exclude=elsewhere) == (reached, port)
        assert await wait_own_address(port=port, address=bound) == (reached, port)


async def test_it_waits_until_the_process_listens(elsewhere):
    supervisor = Supervisor()
    waiting = supervisor.start(wait_own_address(exclude=elsewhere), name="wait")
    await asyncio.sleep(0.05)
    assert not waiting.done()

    with listening() as port:
        async with asyncio.timeout(15):
            assert await waiting == ("127.0.0.1", port)


async def test_it_waits_until_the_port_accepts():
    port = free_port()
    supervisor = Supervisor()
    waiting = supervisor.start(wait_listening(["127.0.0.1"], port), name="wait")
    await asyncio.sleep(0.05)
    assert not waiting.done()
    with listening(port=port, listen=False):
        await asyncio.sleep(0.05)
        assert not waiting.done()

    with listening(port=port):
        async with asyncio.timeout(15):
            assert await waiting == "127.0.0.1"


async def test_waiting_can_be_cancelled_and_leaves_no_socket():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await wait_listening(["127.0.0.1", "::1"], free_port())


async def test_the_route_to_a_host_gives_the_address_of_our_interface():
    started = time.monotonic()
    assert await routed_address("127.0.0.1") == "127.0.0.1"
    assert await routed_address("::1", 8500) == "::1"
    assert await routed_address("localhost") in ("127.0.0.1", "::1")
    assert time.monotonic() - started < 4, "no resolver was asked"


async def test_a_host_without_a_name_or_a_route_is_an_error():
    with pytest.raises(ServiceDiscoveryError, match="can't be resolved"):
        await routed_address("x" * 64)  # a label too long to be asked for
    with pytest.raises(ServiceDiscoveryError, match=r"no interface leads to '255\.255\.255\.255'"):
        await routed_address("255.255.255.255")  # connecting to broadcast is not permitted
