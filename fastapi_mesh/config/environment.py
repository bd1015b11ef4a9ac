"""Settings from environment variables: MESH_* with `__` for nesting, and the names of the product description.

The merge is our own and not pydantic-settings': that one silently drops a mistyped name (`MESH_DISCOVRY__BACKEND`, also
below a table), can't address `user-service` in a variable's name, and stops at the first value that isn't JSON.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from fastapi_mesh.config.later import is_off
from fastapi_mesh.config.layers import SettingsLayer
from fastapi_mesh.config.mesh import MeshConfig
from fastapi_mesh.config.probes import is_on
from fastapi_mesh.config.problems import free_keys_at, is_known, keys_at, kinds_at, suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from fastapi_mesh.config.problems import Location

PREFIX = "MESH_"
GATEWAY_PREFIX = "MESH_GATEWAY__"
FILE_VARIABLE = "MESH_CONFIG_FILE"

MESH_NAMES: dict[str, Location] = {
    "PORT": ("port",),
    "SERVICE_NAME": ("service_name",),
    "SERVICE_NAMESPACE": ("namespace",),
    "DISCOVERY_BACKEND": ("discovery", "backend"),
    "MTLS_ENABLED": ("enable_mtls",),
    "SERVICE_MESH_ENABLED": ("enabled",),
}
"""The description's variables for a node, and PORT, which many platforms set."""

GATEWAY_NAMES: dict[str, Location] = {
    "GATEWAY_HOST": ("host",),
    "GATEWAY_PORT": ("port",),
    "GATEWAY_RATE_LIMIT": ("rate_limit",),
    "GATEWAY_AUTH_ENABLED": ("auth", "enabled"),
}
"""The description's variables for a gateway. GATEWAY_AUTH_ENABLED=true, like leaving it out, adds nothing to routes."""

_SERVICE_LINK = re.compile(r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)")
_LINK_VALUE = re.compile(r"(?:tcp|udp|sctp)://")


def described(env: Mapping[str, str], names: Mapping[str, Location]) -> SettingsLayer:
    """What the description's variables say."""
    layer = SettingsLayer()
    for name, location in names.items():
        if value := _given(env, name):
            layer.put(location, value, name)
    return layer


def mesh_variables(env: Mapping[str, str], known: Mapping[str, object]) -> tuple[SettingsLayer, list[str]]:
    """What MESH_* say for a node, and a line for each name that means nothing.

    `known` are the settings of other sources: their services' names are recognised in variable names.
    """
    names = [name for name in env if name.startswith(PREFIX) and not name.startswith(GATEWAY_PREFIX)]
    return _variables(env, [name for name in names if name != FILE_VARIABLE], PREFIX, MeshConfig, known)


def gateway_variables(env: Mapping[str, str], known: Mapping[str, object]) -> tuple[SettingsLayer, list[str]]:
    """What MESH_GATEWAY__* say for a gateway, and a line for each name that means nothing."""
    from fastapi_mesh.config.gateway import GatewayConfig  # imported late: a node without a gateway needs none of it

    names = [name for name in env if name.startswith(GATEWAY_PREFIX)]
    return _variables(env, names, GATEWAY_PREFIX, GatewayConfig, known)


def _given(env: Mapping[str, str], name: str) -> str:
    """The value of a variable; "" also for what Kubernetes writes for a Service of that name (enableServiceLinks)."""
    value = env.get(name, "").strip()
    return "" if name.endswith("PORT") and _LINK_VALUE.match(value) else value


def _variables(
    env: Mapping[str, str], names: list[str], prefix: str, model: type[BaseModel], known: Mapping[str, object]
) -> tuple[SettingsLayer, list[str]]:
    layer = SettingsLayer()
    unknown = []
    in_pod = "KUBERNETES_SERVICE_HOST" in env
    for name in sorted(names, key=lambda each: (each.count("__"), each)):
        if in_pod and (_SERVICE_LINK.fullmatch(name.removeprefix(PREFIX)) or _LINK_VALUE.match(env[name])):
            continue
        location, wrong = _resolve(name, prefix, model, known)
        if wrong:
            unknown.append(wrong)
        elif value := _given(env, name):
            if prefix == GATEWAY_PREFIX and len(location) == 2 and location[0] == "services" and value[0] != "{":
                location = (*location, "instances")  # a service's URLs stand for its table
            elif location[-1:] in (("rate_limit",), ("ip_rate_limit",)) and value[0] != "{" and not is_off(value):
                location = (*location, "limit")  # a limit's text likewise
            elif location[-1:] == ("health_check",) and value[0] == "/":
                location = (*location, "path")
            elif location[-1:] == ("health_check",) and is_on(value):
                value = "{}"  # a table, so that others of its variables are not lost
            try:
                layer.put(location, _parsed(value, model, location), name)
            except ValueError as error:
                layer.problems.append(f"{name}: is not valid JSON: {error}")
    return layer, unknown


def _resolve(name: str, prefix: str, model: type[BaseModel], known: Mapping[str, object]) -> tuple[Location, str]:
    """The place a variable's name means, or a line that says that it means none."""
    location: Location = ()
    steps = name.removeprefix(prefix).split("__")
    here: object = known
    for index, step in enumerate(steps):
        choices = keys_at(model, location)
        word = step.lower()
        if word and free_keys_at(model, location):
            word = _service_key(word, here)
        elif not word or not is_known(model, (*location, word)):
            if name.upper() == "MESH_GATEWAY":
                return location, f"{name}: unknown variable; a gateway's begin with {GATEWAY_PREFIX}"
            guesses = [*choices, "gateway"] if model is MeshConfig and not location else choices
            return location, f"{name}: unknown variable{_guess(prefix, steps, index, guesses)}"
        location = (*location, word)
        here = here.get(word, {}) if isinstance(here, dict) else {}
    return location, ""


def _guess(prefix: str, steps: list[str], index: int, choices: list[str]) -> str:
    hint = suggestion(steps[index].lower(), choices)
    if not hint:
        return ""
    word = hint.split("'")[1].upper()
    whole = "__".join([*steps[:index], word, *steps[index + 1 :]])
    return f" - did you mean '{prefix}{whole}'?"


def _service_key(word: str, table: object) -> str:
    """The key that a variable's name means: one that is known, else with `-` for `_`, as services are named."""
    names = table if isinstance(table, dict) else {}
    for name in names:
        if isinstance(name, str) and re.sub(r"\W", "_", name.lower()) == word:
            return name
    return word.replace("_", "-")


def _parsed(value: str, model: type[BaseModel], location: Location) -> object:
    """The value as its place wants it: a table or list from JSON, a list also from commas, None from "null"."""
    kinds = kinds_at(model, location)
    if value[0] in "[{" and kinds & {"table", "list"}:
        return json.loads(value)
    if value.lower() in ("null", "none") and "nothing" in kinds:
        return None
    if "list" in kinds and "," in value:
        return [part.strip() for part in value.split(",") if part.strip()]
    return value
