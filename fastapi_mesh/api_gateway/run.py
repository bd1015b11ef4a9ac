"""A gateway as a program: `fastapi-mesh gateway` and `python -m fastapi_mesh.api_gateway` both come here."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi_mesh.api_gateway.gateway import APIGateway
from fastapi_mesh.api_gateway.life import PRIVATE_NAME
from fastapi_mesh.config.files import read_file
from fastapi_mesh.config.load import GATEWAY_TABLE
from fastapi_mesh.exceptions import ConfigurationError, MeshError
from fastapi_mesh.service_mesh.doors import explain_start
from fastapi_mesh.service_mesh.mesh import ServiceMesh

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

CANT_START = 3
COLLECT_EVERY = 10_000
"""New objects after which Python looks for garbage, in a process that is a gateway. With Python's own 700, the requests
under way at once set it off all the time, and it finds nothing: 20 us per request where there are 64.
"""
_ENDING = (signal.SIGTERM, signal.SIGINT)
_ASKS_FOR_DISCOVERY = ("MESH_DISCOVERY__BACKEND", "DISCOVERY_BACKEND")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. `app` is MODULE:NAME of a gateway made in code, instead of `config`, a file."""

    config: str | None = None
    app: str | None = None
    host: str | None = None
    port: int | None = None
    workers: int | None = None

    def arguments(self) -> list[str]:
        """The same as arguments, for a worker; one doesn't listen by itself."""
        named = {"--config": self.config, "--app": self.app}
        return [part for name, value in named.items() if value is not None for part in (name, value)]


def run(options: Options) -> int:
    """Serve until SIGTERM or SIGINT; gives the exit code: 0, or 3 when it can't start, after saying why."""
    ending = Ending()
    try:
        gateway = make_gateway(options)
        if gateway.config.workers > 1:
            from fastapi_mesh.api_gateway.workers import Workers

            workers = Workers(gateway.config, options)
            return run_in_loop(workers.run, ending)
    except (MeshError, ImportError, OSError) as error:
        sys.stderr.write(f"{explain_start('the gateway', error)}\n")
        return CANT_START
    return run_in_loop(gateway.start, ending)


def run_in_loop(work: Callable[[], Coroutine[Any, Any, int | None]], ending: Ending) -> int:
    """Run `work` on uvloop where that is installed. What it returns is the exit code, as is that of a SystemExit."""
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None
    first, *others = gc.get_threshold()
    if 0 < first < COLLECT_EVERY:
        gc.set_threshold(COLLECT_EVERY, *others)
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            ending.graceful = True
            return runner.run(work()) or 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        gc.set_threshold(first, *others)


class Ending:
    """Signals outside of the server's own handling: before it runs they end the program at once; when it has ended
    gracefully, the signal that uvicorn raises once more ends nothing, so that the exit code is 0.
    """

    def __init__(self) -> None:
        self.graceful = False
        for number in _ENDING:
            signal.signal(number, self._heard)

    def _heard(self, number: int, frame: object) -> None:
        if not self.graceful:
            sys.exit(128 + number)


def make_gateway(options: Options) -> APIGateway:
    """The gateway that the command line asks for. Raises ConfigurationError, or ImportError for `app`."""
    given: dict[str, Any] = {"host": options.host, "port": options.port, "workers": options.workers}
    if options.app is not None:
        gateway = imported(options.app)
        gateway._change({**gateway._code, **{name: value for name, value in given.items() if value is not None}})
        return gateway
    if options.config is None:
        return APIGateway(**given)
    return APIGateway(config_file=options.config, service_mesh=mesh_of_file(options.config), **given)


def mesh_of_file(file: str) -> ServiceMesh | None:
    """A node with the settings of a file that has a node's beside those of its table `gateway`; else None.

    Without a name it is called as a gateway's private mesh, and without a word about discovery it has none.
    """
    data = read_file(file).data
    if GATEWAY_TABLE not in data or len(data) == 1:
        return None
    name = None if data.get("service_name") or os.environ.get("SERVICE_NAME") else PRIVATE_NAME
    if "discovery" in data or any(os.environ.get(each) for each in _ASKS_FOR_DISCOVERY):
        return ServiceMesh(name, config_file=file)
    return ServiceMesh(name, config_file=file, discovery_backend="static", enable_service_discovery=False)


def imported(target: str) -> APIGateway:
    """The gateway at MODULE:NAME, with the current folder importable, as for uvicorn. Raises ConfigurationError."""
    module, _, name = target.partition(":")
    if not module or not name:
        raise ConfigurationError(f"--app: {target!r} is not MODULE:NAME, like 'main:gateway'")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ConfigurationError(f"--app: there is no module {module!r}") from error
    gateway = getattr(found, name, None)
    if not isinstance(gateway, APIGateway):
        what = "nothing" if gateway is None else f"a {type(gateway).__name__}"
        raise ConfigurationError(f"--app: {target!r} is {what}, not an APIGateway")
    return gateway
