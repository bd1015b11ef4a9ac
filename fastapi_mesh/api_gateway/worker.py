"""One worker process of a gateway: serves on the sockets that its parent gives it, and ends when that ends.

    python -m fastapi_mesh.api_gateway.worker --config FILE --listen 5 --parent 7 --last-good FOLDER

The numbers are file descriptors. `--parent` is a socket: a word goes over it when the worker serves, and another one
again and again while its event loop runs; its end is the parent's. In `--last-good` the workers keep the settings that
were good, for the one that takes another's place.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.last_good import LastGood
from fastapi_mesh.api_gateway.run import CANT_START, Ending, Options, make_gateway, run_in_loop
from fastapi_mesh.api_gateway.server import Standalone
from fastapi_mesh.exceptions import ConfigurationError, MeshError
from fastapi_mesh.service_mesh.doors import explain_start

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.gateway import APIGateway

READY, ALIVE = b"ready\n", b"alive\n"
SIGNS = 4
"""Signs of life within the time after which a silent worker is killed."""


def main() -> int:
    """Serve; gives the exit code."""
    ending = Ending()
    faulthandler.enable()  # a worker that hangs says where, when its parent ends it
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--app")
    parser.add_argument("--listen", type=int, nargs="+", required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--last-good", type=Path, required=True)
    given = parser.parse_args()
    sockets = [socket.socket(fileno=number) for number in given.listen]
    parent = socket.socket(fileno=given.parent)
    try:
        gateway = _made(Options(config=given.config, app=given.app), LastGood(given.last_good))
    except (MeshError, ImportError, OSError) as error:
        sys.stderr.write(f"{explain_start('the gateway', error)}\n")
        return CANT_START
    return run_in_loop(lambda: _serve(gateway, sockets, parent), ending)


def _made(options: Options, last_good: LastGood) -> APIGateway:
    """The gateway, with the settings that were last good where those of now are not: a worker that takes the place of
    another must not need a file that the others have refused.
    """
    try:
        gateway = make_gateway(options)
    except ConfigurationError as error:
        if options.config is None or last_good.file is None:
            raise
        sys.stderr.write(f"{error}\nthis process starts with the settings that were last good\n")
        gateway = make_gateway(replace(options, config=str(last_good.file)))
        gateway._file = options.config
        gateway._reloads.follow(options.config, error)
    gateway._reloads.last_good = last_good
    return gateway


async def _serve(gateway: APIGateway, sockets: list[socket.socket], parent: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    parent.setblocking(False)

    def heard() -> None:
        try:
            if parent.recv(64):
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # it ended without a goodbye
        loop.remove_reader(parent)
        os.kill(os.getpid(), signal.SIGTERM)

    every = None if (limit := gateway.config.worker_timeout) is None else limit / SIGNS
    timer: asyncio.TimerHandle | None = None

    def say(word: bytes) -> None:
        nonlocal timer
        with suppress(OSError):  # it has ended, or reads nothing, which is its own affair
            parent.send(word)
        if every is not None:
            timer = loop.call_later(every, say, ALIVE)

    loop.add_reader(parent, heard)
    try:
        await gateway._serve(Standalone(gateway, sockets, on_ready=lambda: say(READY)))
    finally:
        if timer is not None:
            timer.cancel()
        loop.remove_reader(parent)
        parent.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
