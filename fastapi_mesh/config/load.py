"""Loads settings: code over MESH_* variables over the description's variables over a file."""

from __future__ import annotations

import itertools
import logging
import os
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from fastapi_mesh.config import environment
from fastapi_mesh.config.backends import DiscoveryConfig, MeshStoreConfig
from fastapi_mesh.config.compat import CONFIG_MAP_TABLE, from_config_map
from fastapi_mesh.config.files import read_file, read_text
from fastapi_mesh.config.later import is_off
from fastapi_mesh.config.layers import SettingsLayer, merged, origin_in, plain
from fastapi_mesh.config.mesh import MeshConfig
from fastapi_mesh.config.problems import explain, line
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from os import PathLike

    from fastapi_mesh.config.gateway import GatewayConfig
    from fastapi_mesh.config.servers import ServerSettings

    File = str | PathLike[str]

logger = logging.getLogger("fastapi_mesh.config")


class Entry(Protocol):
    """A document in a config store; `configstore.base.Entry` is one."""

    @property
    def key(self) -> str: ...

    @property
    def text(self) -> str: ...


Model = TypeVar("Model", bound=BaseModel)

GATEWAY_TABLE = "gateway"
"""A file's table with a gateway's settings, beside a node's at the top level."""


def load_mesh_config(
    settings: Mapping[str, object] | None = None,
    /,
    *,
    file: File | None = None,
    env: Mapping[str, str] | None = None,
    strict: bool = False,
    stored: SettingsLayer | None = None,
    **code: object,
) -> MeshConfig:
    """The settings of a node: keyword arguments over MESH_* over SERVICE_NAME and the like over `file`.

    `settings` are keyword arguments as a mapping. `file` is a TOML, YAML or JSON file, else the one MESH_CONFIG_FILE
    names; `env` is os.environ unless given. A keyword that is None counts as not given; besides the fields of
    MeshConfig there are `discovery_backend` and `discovery_config`, the description's names for parts of `discovery`.
    Unknown MESH_* names are logged; with `strict` they are problems. `stored` is what a config store says
    (`stored_mesh_layer`); it counts over the file. Raises ConfigurationError with all problems.
    """
    env = os.environ if env is None else env
    in_file, source = _file_layer(file, env, _mesh_part)
    in_code = SettingsLayer(_with_discovery({**(settings or {}), **code}))
    in_store = [] if stored is None else [stored.copy()]
    variables, unknown = environment.mesh_variables(env, merged([in_file, *in_store, in_code]))
    layers = [in_file, *in_store, environment.described(env, environment.MESH_NAMES), variables, in_code]
    layers.insert(0, _default_backend(merged(layers), env))
    _drop_other_backends(layers, {"discovery": DiscoveryConfig, "config_store": MeshStoreConfig})
    return _validated(MeshConfig, layers, source, _reported(unknown, strict=strict))


def load_gateway_config(
    settings: Mapping[str, object] | None = None,
    /,
    *,
    file: File | None = None,
    env: Mapping[str, str] | None = None,
    strict: bool = False,
    known_services: Iterable[str] = (),
    discoverable: bool = True,
    stored: SettingsLayer | None = None,
    **code: object,
) -> GatewayConfig:
    """The settings of a gateway: keyword arguments over MESH_GATEWAY__* over GATEWAY_HOST and the like over `file`.

    `stored` is what a config store says (`stored_gateway_layer`); it counts over the file.
    With `discoverable=False` a route to a service that neither `services` nor `known_services` names is a problem.
    Everything else is as in `load_mesh_config`.
    """
    # Imported late: a node without a gateway needs none of it.
    from fastapi_mesh.config.edge.listener import ConfigStoreConfig
    from fastapi_mesh.config.gateway import GatewayConfig

    env = os.environ if env is None else env
    in_file, source = _file_layer(file, env, _gateway_part)
    in_code = SettingsLayer(_given({**(settings or {}), **code}))
    in_store = [] if stored is None else [stored.copy()]
    variables, unknown = environment.gateway_variables(env, merged([in_file, *in_store, in_code]))
    layers = [in_file, *in_store, environment.described(env, environment.GATEWAY_NAMES), variables, in_code]
    for layer in layers:
        _spread_urls(layer)
    _drop_other_backends(layers, {"config_store": ConfigStoreConfig})
    problems = _reported(unknown, strict=strict)
    if not discoverable:
        problems += _unknown_services(layers, known_services)
    return _validated(GatewayConfig, layers, source, problems)


def stored_mesh_layer(entry: Entry, allowed: Iterable[str]) -> SettingsLayer:
    """What an entry of a config store says to a node, whose settings `allowed` may come from there.

    Raises ConfigurationError when it is no table of settings, and for any other setting.
    """
    layer = _mesh_part(read_text(entry.text, entry.key, f"config store, {entry.key!r}"), True)
    names = sorted(allowed)
    wrong = [
        line((name,), f"can't be set in a config store, which has {', '.join(names)}", layer.origin((name,)))
        for name in layer.data
        if name not in names
    ]
    if wrong:
        raise ConfigurationError(problems=wrong, source=f"config store, {entry.key!r}")
    return layer


def stored_gateway_layer(entry: Entry) -> SettingsLayer:
    """What an entry of a config store says to a gateway: its table `gateway`, else all of it.

    Raises ConfigurationError when it is no table of settings.
    """
    return _gateway_part(read_text(entry.text, entry.key, f"config store, {entry.key!r}"), True)


def _validated(model: type[Model], layers: Sequence[SettingsLayer], source: str | None, problems: list[str]) -> Model:
    found = [problem for layer in layers for problem in layer.problems]
    try:
        config = model.model_validate(merged(layers))
    except ValidationError as error:
        found += explain(error, model, origin=lambda location: origin_in(layers, location))
    if found or problems:
        raise ConfigurationError(problems=[*found, *problems], source=source)
    return config


def _reported(unknown: list[str], *, strict: bool) -> list[str]:
    """Lines about unknown variables: problems if `strict`, else logged."""
    if strict:
        return unknown
    for each in unknown:
        logger.warning("%s", each)
    return []


def _given(code: Mapping[str, object]) -> dict[str, object]:
    return {name: plain(value) for name, value in code.items() if value is not None}


def _with_discovery(code: Mapping[str, object]) -> dict[str, object]:
    """Keyword arguments, with the description's `discovery_backend` and `discovery_config` put where they belong.

    Lists of both make a chain.
    """
    given = _given(code)
    layer = SettingsLayer(given)
    settings, chain = _first(given.pop("discovery_config", None))
    backend, names = _first(given.pop("discovery_backend", None))
    if settings is not None:
        layer.put(("discovery",), settings, "")
    if backend is not None:
        layer.put(("discovery", "backend"), backend, "")
    if names or chain:
        tables = itertools.zip_longest(names, chain)
        further = [{**(table or {}), **({} if name is None else {"backend": name})} for name, table in tables]
        layer.put(("discovery", "chain"), further, "")
    return given


def _first(given: object) -> tuple[object, list[Any]]:
    """One value, or the first of a list, and the others."""
    if not isinstance(given, list | tuple):
        return given, []
    return (given[0], list(given[1:])) if given else (None, [])


def _drop_other_backends(layers: Sequence[SettingsLayer], tables: Mapping[str, type[ServerSettings]]) -> None:
    """Where a source names a backend, what sources below it say for another one does not count.

    A program may choose "static" while the machine's variables say where the local registry is. What the source itself
    says beside the backend stays, and is an error where that backend does not have it; so is a name that means nothing.
    """
    for table, model in tables.items():
        named = [index for index, layer in enumerate(layers) if _backend_in(layer.data.get(table))]
        if not named:
            continue
        used = model.settings_of(_backend_in(layers[named[-1]].data[table]))
        for layer in layers[: named[-1]]:
            below = layer.data.get(table)
            if used is not None and isinstance(below, dict):
                of_others = _backend_in(below) not in ("", *model.OWN)  # what is unknown here is an option there
                layer.data[table] = {
                    name: value
                    for name, value in below.items()
                    if name in used or not (of_others or name in model.model_fields)
                }


def _backend_in(settings: object) -> str:
    """The backend that a table names, "" for none."""
    return str(settings.get("backend") or "") if isinstance(settings, dict) else ""


def _default_backend(data: Mapping[str, object], env: Mapping[str, str]) -> SettingsLayer:
    """The backend where nobody names one: Kubernetes inside a pod, if this node has to find or tell anything there."""
    layer = SettingsLayer()
    discovery = data.get("discovery")
    named = isinstance(discovery, dict) and discovery.get("backend") is not None
    if named or "KUBERNETES_SERVICE_HOST" not in env or is_off(data.get("enabled", True)):
        return layer
    alone = bool(data.get("services")) or is_off(data.get("enable_service_discovery", True))
    layer.put(("discovery", "backend"), "static" if alone else "kubernetes", "the default inside a Kubernetes pod")
    return layer


def _file_layer(
    file: File | None, env: Mapping[str, str], part: Callable[[SettingsLayer, bool], SettingsLayer]
) -> tuple[SettingsLayer, str | None]:
    """What `file`, else the file that MESH_CONFIG_FILE names, says to one side, and its name."""
    if file:
        return part(read_file(file), True), str(file)
    if named := env.get(environment.FILE_VARIABLE):
        source = f"{named} ({environment.FILE_VARIABLE})"
        return part(read_file(named, source), False), source
    return SettingsLayer(), None


def _mesh_part(layer: SettingsLayer, explicit: bool) -> SettingsLayer:
    """The node's side of a file: all but the table `gateway`, and not the rest of a gateway's file that env names."""
    if GATEWAY_TABLE in layer.data:
        layer.data.pop(GATEWAY_TABLE)
    elif "routes" in layer.data and not explicit:
        layer.data = {name: table for name, table in layer.data.items() if name == CONFIG_MAP_TABLE}
    return from_config_map(layer)


def _gateway_part(layer: SettingsLayer, explicit: bool) -> SettingsLayer:
    """The gateway's side of a file: its table `gateway`, or all of a file that is a gateway's."""
    table = layer.data.get(GATEWAY_TABLE)
    if table is None:
        layer.data.pop(CONFIG_MAP_TABLE, None)
        return layer if explicit or "routes" in layer.data else SettingsLayer()
    if not isinstance(table, dict):
        return SettingsLayer(problems=[f"{GATEWAY_TABLE}: is not a table of settings"])
    origins = {place[1:]: text for place, text in layer.origins.items() if place[:1] == (GATEWAY_TABLE,)}
    return SettingsLayer(table, origins)


def _spread_urls(layer: SettingsLayer) -> None:
    """A service's plain URLs become a table, so that other sources can add to it."""
    services = layer.data.get("services")
    if not isinstance(services, dict):
        return
    for name, value in services.items():
        if isinstance(value, (str, list)):
            services[name] = {"instances": value}
            for index in range(len(value)):
                if origin := layer.origins.get(("services", name, index)):
                    layer.origins["services", name, "instances", index] = origin


def _unknown_services(layers: Sequence[SettingsLayer], known_services: Iterable[str]) -> list[str]:
    """Looks at the raw settings, so that these problems are told together with all others."""
    from fastapi_mesh.config.routes import unknown_service

    data = merged(layers)
    services, routes = data.get("services"), data.get("routes")
    known = {*known_services, *(services if isinstance(services, dict) else ())}
    problems = []
    for index, route in enumerate(routes if isinstance(routes, list) else ()):
        name = route.get("service") if isinstance(route, dict) else None
        if isinstance(name, str) and name not in known:
            place = ("routes", index, "service")
            problems.append(line(place, unknown_service(name, known), origin_in(layers, place)))
    return problems
