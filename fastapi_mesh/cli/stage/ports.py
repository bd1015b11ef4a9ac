"""Free TCP ports on the loopback interface."""

from __future__ import annotations

import os
import random
import socket

HOST = "127.0.0.1"
GATEWAY_PORT = 8080
CHOICE = range(20_000, 32_000)
"""Below 32768, where Linux begins to give ports to outgoing connections."""
TRIES = 500


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # as servers do: a port that was used until a moment ago is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """`count` different free ports. Raises OSError when so many can't be found."""
    found: set[int] = set()
    for port in random.sample(CHOICE, TRIES):
        if len(found) == count:
            return sorted(found)
        if is_free(port):
            found.add(port)
    raise OSError(f"no {count} free ports between {CHOICE.start} and {CHOICE.stop} found in {TRIES} tries")


def gateway_port() -> int:
    """8080 where it is free, else any free one."""
    return GATEWAY_PORT if is_free(GATEWAY_PORT) else free_ports(1)[0]
