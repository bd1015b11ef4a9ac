"""How a node finds out where it can be reached: settings, the sockets it listens on, the route to another host."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.discovery.lists import is_wildcard
from fastapi_mesh.exceptions import ServiceDiscoveryError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from fastapi_mesh.core.clock import Clock

logger = logging.getLogger("fastapi_mesh.discovery")

LOOPBACK = "127.0.0.1"

CONNECT_TIMEOUT = 1.0
"""Seconds for one attempt to connect to our own port."""

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
"""Seconds between two looks for our own port: twice as long after each."""

PATIENCE = 10.0
"""Seconds of looking in vain until the settings are trusted."""

_LISTEN = "0A"
"""TCP_LISTEN of the kernel's include/net/tcp_states.h, as /proc/net/tcp prints it."""


class _Place(NamedTuple):
    """Where to try to connect to ourselves."""

    addresses: tuple[str, ...]
    port: int


class Listener(NamedTuple):
    """A socket that accepts connections: the address it is bound to (maybe a wildcard) and its port."""

    address: str
    port: int


async def wait_own_address(
    *,
    address: str | None = None,
    port: int | None = None,
    default: str = LOOPBACK,
    exclude: Collection[int] = (),
    clock: Clock | None = None,
) -> Listener | None:
    """Wait until this process accepts connections, and return where others reach it.

    `address` and `port` are the settings (MESH_ADDRESS, MESH_PORT or PORT) and win. Without a port it is that of the
    process's own listening socket, also one inherited by a worker; ports in `exclude` (of metrics) are not considered.
    Without an address it is the socket's, or `default` where that is a wildcard. None where there is no port and the
    platform doesn't tell a process its sockets (no /proc).

    When both settings are given and nothing accepts there for 10 s, it goes by them: an address in front of a
    container may not be reachable from inside.
    """
    if port is None and not own_listeners_known():
        return None
    clock = clock or SystemClock()
    given = None if address is None or is_wildcard(address) else address
    pause, patience = FIRST_PAUSE, PATIENCE
    while True:
        place = _place(await asyncio.to_thread(own_listeners), given, port, default, exclude)
        if place is not None:
            for each in place.addresses:
                if await _accepts(each, place.port):
                    return Listener(given or each, place.port)
        if patience <= 0 and given is not None and port is not None:
            logger.warning("nothing accepts connections at %s:%d, seen from here; going by the settings", given, port)
            return Listener(given, port)
        await clock.sleep(pause)
        patience -= pause
        pause = min(LONGEST_PAUSE, 2 * pause)


async def wait_listening(addresses: Sequence[str], port: int, *, clock: Clock | None = None) -> str:
    """Wait until a TCP connection to `port` is accepted at one of `addresses`; returns which."""
    clock = clock or SystemClock()
    pause = FIRST_PAUSE
    while True:
        for address in addresses:
            if await _accepts(address, port):
                return address
        await clock.sleep(pause)
        pause = min(LONGEST_PAUSE, 2 * pause)


def own_listeners_known() -> bool:
    """Whether `own_listeners` works here (Linux)."""
    return os.path.exists("/proc/self/net/tcp")


def own_listeners() -> tuple[Listener, ...]:
    """The TCP sockets on which this process listens, by port; () where there is no /proc.

    Those are the entries in state LISTEN of /proc/self/net/tcp and tcp6 whose inode is among the process's file
    descriptors, so sockets that a worker inherited count too.
    """
    inodes = _own_socket_inodes()
    found = {
        listener
        for table in ("tcp", "tcp6")
        for inode, listener in _listeners_of_the_host(Path("/proc/self/net", table))
        if inode in inodes
    }
    return tuple(sorted(found, key=lambda each: (each.port, ":" in each.address, each.address)))


async def routed_address(host: str, port: int = 80) -> str:
    """The address of our interface that packets to `host` leave from. Nothing is sent: connecting UDP only routes.

    Raises ServiceDiscoveryError when `host` can't be resolved or no interface leads there.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise ServiceDiscoveryError(f"{host!r} can't be resolved: {error}") from error
    problem: OSError | None = None
    for family, kind, protocol, _, target in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(target)
                return str(probe.getsockname()[0])
        except OSError as error:
            problem = error
    raise ServiceDiscoveryError(f"no interface leads to {host!r}: {problem}") from problem


def _place(
    found: Sequence[Listener], given: str | None, port: int | None, default: str, exclude: Collection[int]
) -> _Place | None:
    """Where to try to reach the socket that the settings mean, or that is the best one; None while there is none."""
    candidates = [each for each in found if (each.port not in exclude if port is None else each.port == port)]
    bound = best_listener(candidates) if candidates else None
    if bound is not None and not is_wildcard(bound.address):
        return _Place((bound.address,), bound.port)
    port_to_try = port if bound is None else bound.port
    if port_to_try is None:
        return None
    # A socket on [::] may take IPv6 only.
    addresses = (default, "::1") if default == LOOPBACK else (default,)
    if port is not None and given is not None:
        addresses = (given, *addresses)
    return _Place(addresses, port_to_try)


def best_listener(listeners: Sequence[Listener]) -> Listener:
    """Of several sockets: one on a port somebody chose, open to other machines, on the lowest port.

    Helpers (debuggers, kernels of notebooks, managers of processes) take an ephemeral port, or listen on loopback.
    """
    ephemeral = _ephemeral_ports()
    best = min(listeners, key=lambda each: (each.port in ephemeral, each.address.startswith("127."), each.port))
    if len({each.port for each in listeners}) > 1:
        others = ", ".join(str(each.port) for each in listeners if each.port != best.port)
        logger.info(
            "this process listens on %d and on %s; registering %d (MESH_PORT changes that)",
            best.port,
            others,
            best.port,
        )
    return best


def _ephemeral_ports() -> range:
    try:
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
    except OSError:
        return range(49152, 65536)  # RFC 6335 section 6
    return range(int(first), int(last) + 1)


def _own_socket_inodes() -> set[str]:
    inodes: set[str] = set()
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return inodes
    for number in numbers:
        try:
            link = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # closed meanwhile
            continue
        if link.startswith("socket:["):
            inodes.add(link[8:-1])
    return inodes


def _listeners_of_the_host(table: Path) -> list[tuple[str, Listener]]:
    """Inode and socket of each entry in state LISTEN. Fields: proc(5), "/proc/net/tcp"."""
    try:
        lines = table.read_text(encoding="ascii").splitlines()[1:]
    except OSError:  # no IPv6, or no /proc
        return []
    entries = [line.split() for line in lines]
    return [(entry[9], _decoded(entry[1])) for entry in entries if entry[3] == _LISTEN]


def _decoded(text: str) -> Listener:
    """A socket's address as /proc prints it: words of 32 bits in the machine's byte order, colon, port; all in hex."""
    digits, _, port = text.partition(":")
    words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    raw = struct.pack(f"={len(words)}I", *words)
    if len(raw) == 16 and raw.startswith(b"\x00" * 10 + b"\xff\xff"):  # IPv4 on an IPv6 socket
        raw = raw[12:]
    address = socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
    return Listener(address, int(port, 16))


async def _accepts(address: str, port: int) -> bool:
    loop = asyncio.get_running_loop()
    with anyio.move_on_after(CONNECT_TIMEOUT):
        try:
            found = await loop.getaddrinfo(address, port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, target = found[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setblocking(False)
                await loop.sock_connect(probe, target)
                # Where nobody listens on an ephemeral port, a socket can be given that very port and meet itself.
                return bool(probe.getsockname() != probe.getpeername())
        except (OSError, UnicodeError):
            return False
    return False
