"""Looks at a gateway's settings file as a gateway would that starts with it, and starts nothing."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.extensions import Extensions
from fastapi_mesh.api_gateway.life import Life
from fastapi_mesh.api_gateway.routes import Route, new_table
from fastapi_mesh.api_gateway.run import mesh_of_file
from fastapi_mesh.api_gateway.tls import Material
from fastapi_mesh.config.files import read_file
from fastapi_mesh.config.load import GATEWAY_TABLE, load_gateway_config, load_mesh_config
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fastapi_mesh.config.gateway import GatewayConfig
    from fastapi_mesh.config.layers import SettingsLayer

_LINE = re.compile(r"^([^(]*) \(line (\d+)\)(: .*)$", re.DOTALL)
_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_ALWAYS = frozenset({"Problems", "Observe", "RequestId", "Buffer", "Hop"})
"""Layers of every route, which say nothing about one."""
_SAMPLE = "zzz-any"
"""Stands for what a parameter or "*" of a path may be; not likely a segment of another route."""
_EVERYBODY = ("0.0.0.0/0", "::/0")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say: where in the file, as far as that is known."""

    text: str
    line: int | None = None

    @classmethod
    def of(cls, text: str) -> Finding:
        """A line of a ConfigurationError, with its "(line N)" taken out."""
        match = _LINE.match(text)
        return cls(text) if match is None else cls(f"{match[1]}{match[3]}", int(match[2]))


@dataclass(slots=True)
class Inspection:
    """What was found. `routes` have their layers where nothing is wrong."""

    file: str
    problems: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    config: GatewayConfig | None = None
    routes: list[Route] = field(default_factory=list)


def inspect(file: str, env: Mapping[str, str] | None = None) -> Inspection:
    """Read and judge `file`; variables count only where they are given. Raises ConfigurationError when there is no such
    file, or it can't be read at all.
    """
    found = Inspection(file)
    if not Path(file).is_file():
        raise ConfigurationError(f"{file}: there is no such file")
    try:
        layer = read_file(file)
    except ConfigurationError as error:
        found.problems = [Finding.of(text.removeprefix(f"{file}: ")) for text in error.problems]
        return found
    if GATEWAY_TABLE in layer.data and len(layer.data) > 1:
        _collect(found, lambda: load_mesh_config(file=file, env=env or {}))
    found.config = _collect(found, lambda: load_gateway_config(file=file, env=env or {}, strict=True))
    if found.config is not None and not found.problems:
        config = found.config
        with _warnings_of("fastapi_mesh") as logged:
            found.routes = asyncio.run(_opened(found, config))
        found.warnings += [Finding(text) for text in logged]
        if found.problems:
            return found
        found.warnings += [Finding(text, _line_of(text, layer)) for text in _doubts(config, found.routes)]
    return found


def layers_of(route: Route) -> list[str]:
    """What a route has besides what every route has, outermost first."""
    names = []
    layer: object = route.chain
    while layer is not None and hasattr(layer, "inner"):
        names.append(type(layer).__name__)
        layer = layer.inner
    return [name for name in names if name not in _ALWAYS]


def _line_of(text: str, layer: SettingsLayer) -> int | None:
    """Where the file has the setting that a line begins with."""
    steps = [int(number) if number else name for number, name in _STEP.findall(text.partition(":")[0])]
    prefix = [GATEWAY_TABLE] if isinstance(layer.data.get(GATEWAY_TABLE), dict) else []
    origin = layer.origin((*prefix, *steps)) if layer.reach((*prefix, *steps[:1])) > len(prefix) else ""
    return int(origin.removeprefix("line ")) if origin.startswith("line ") else None


def _collect(found: Inspection, work: Callable[[], object]) -> GatewayConfig | None:
    try:
        return work()  # type: ignore[return-value] # only what loads a gateway's settings is asked for its result
    except ConfigurationError as error:
        found.problems += [Finding.of(text) for text in error.problems]
        return None


async def _opened(found: Inspection, config: GatewayConfig) -> list[Route]:
    """Everything made that a gateway makes before it opens."""
    life: Life | None = None
    try:
        routes = list(new_table(config.routes).routes)
        life = Life(config, routes, Extensions(), apps={}, mesh=mesh_of_file(found.file), added=set())
    except ConfigurationError as error:
        found.problems += [Finding.of(text) for text in error.problems]
        return []
    except ImportError as error:
        found.problems.append(Finding(str(error)))
        return []
    finally:
        if life is not None:
            await life.aclose()
            await life.mesh.supervisor.aclose()
    return routes


class _warnings_of:  # noqa: N801 - used as a function is
    """Collects what is logged as a warning meanwhile: weak keys and the like are said when a gateway is made."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._texts: list[str] = []
        self._handler = logging.Handler(logging.WARNING)
        self._handler.emit = lambda record: self._texts.append(record.getMessage())  # type: ignore[method-assign]

    def __enter__(self) -> list[str]:
        self._propagate, self._logger.propagate = self._logger.propagate, False
        self._logger.addHandler(self._handler)
        return self._texts

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self._handler)
        self._logger.propagate = self._propagate


def _doubts(config: GatewayConfig, routes: list[Route]) -> Iterator[str]:
    """What is valid, and seldom meant."""
    if not config.routes and not config.dynamic_routing:
        yield "routes: there are none, so every request is answered 404"
    yield from _unreached(config, routes)
    used = {name for route in routes for name in route.services}
    if not config.dynamic_routing:
        for name in config.services:
            if name not in used:
                yield f"services.{name}: no route leads there"
    if config.ssl_cert is not None:
        try:
            Material(config)
        except ConfigurationError as error:
            yield error.problems[0]
    if set(_EVERYBODY) & set(config.trusted_proxies):
        yield "trusted_proxies: everybody is trusted, so any client can say that it is another"
    guarded = [route for route in routes if "Authenticate" in layers_of(route)]
    if not guarded and routes:
        yield "auth: no route asks who its client is"
    elif config.ssl_cert is None and not config.trusted_proxies:
        yield "ssl_cert: credentials come over plain HTTP, unless a proxy in front (name it in trusted_proxies) has TLS"
    if config.max_connections is None:
        yield "max_connections: without a limit, clients can take all memory and file descriptors"
    for index, route in enumerate(config.routes):
        if "Fault" in layers_of(routes[index]):
            yield f"routes[{index}].fault: {route.path} fails on purpose"


def _unreached(config: GatewayConfig, routes: list[Route]) -> Iterator[str]:
    """Routes that others take everything from. Those with conditions are left out: a sample might not fulfil them."""
    table = new_table(config.routes)
    for index, route in enumerate(config.routes):
        if route.host or route.headers or route.query:
            continue
        scope = {"type": "http", "headers": [(b"host", b"gateway.invalid")], "query_string": b""}
        tried = [
            table.find(path, method, scope)
            for path in _samples(route.path)
            for method in route.methods or ("GET", "POST", "PUT", "PATCH", "DELETE")
        ]
        takers = [each.path for each in tried if isinstance(each, Route) and each.config != route]
        if len(takers) == len(tried):
            yield f"routes[{index}]: {route.path} gets no request, {' and '.join(dict.fromkeys(takers))} takes them all"


def _samples(path: str) -> list[bytes]:
    """Paths that a route should get: "*" of several depths, as one depth may be another route's."""
    filled = re.sub(r"\{\w+\}", _SAMPLE, path)
    return [
        filled.replace("*", "/".join([_SAMPLE] * depth)).encode() for depth in ((1, 2, 5, 9) if "*" in path else (1,))
    ]
