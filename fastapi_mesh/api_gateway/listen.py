"""Listening sockets of a gateway's own server, and what to say where there can't be one."""

from __future__ import annotations

import errno
import os
import socket
import sys

from fastapi_mesh.exceptions import ConfigurationError


def bind(host: str, port: int, *, setting: str = "port", reuse_port: bool = False) -> list[socket.socket]:
    """A bound socket for each address that `host` stands for; port 0 becomes the same free one for all.

    They are made for TCP by name: from others asyncio's connections would wait for Nagle's algorithm, 40 ms for each
    answer. `setting` is what names `port`. Raises ConfigurationError where that can't be.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(problems=[f"host: {host!r} can't be resolved: {error.strerror}"]) from error
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            sockets.append(_bound(family, (address[0], port, *address[2:]), reuse_port=reuse_port))
            port = sockets[0].getsockname()[1]
    except OSError as error:
        close(sockets)
        raise ConfigurationError(problems=[_explained(error, host, port, setting)]) from error
    return sockets


def close(sockets: list[socket.socket]) -> None:
    """Close all of them."""
    for each in sockets:
        each.close()


def url_of(listener: socket.socket, scheme: str) -> str:
    """What a client on this machine may call it by."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _bound(family: int, address: tuple[object, ...], *, reuse_port: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix" and sys.platform != "cygwin":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def _explained(error: OSError, host: str, port: int, setting: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"{setting}: {port} on {host} is in use by another program"
        case errno.EACCES:
            return f"{setting}: {port} on {host} is not open to this user; ports from 1024 on are"
        case errno.EADDRNOTAVAIL:
            return f"host: {host!r} is no address of this machine"
        case _:
            return f"{setting}: {port} on {host} can't be listened on: {error.strerror}"
