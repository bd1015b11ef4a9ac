"""The JSON schema, and that every setting says what it is."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fastapi_mesh.config import backends, balancing, gateway, later, mesh, outlier, policies, probes, routes
from fastapi_mesh.config.fields import Frozen
from fastapi_mesh.config.gateway import GatewayConfig
from fastapi_mesh.config.later import LATER
from fastapi_mesh.config.mesh import MeshConfig
from fastapi_mesh.config.schema import json_schema

ROOT = Path(__file__).resolve().parents[2]
MODELS = [
    value
    for module in (policies, balancing, outlier, probes, backends, mesh, routes, gateway)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Frozen) and value.__module__ == module.__name__
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_setting_and_every_table_says_what_it_is(model: type[BaseModel]) -> None:
    assert model.__doc__
    assert [name for name, field in model.model_fields.items() if not field.description] == []
    assert model.model_config.get("frozen")
    assert model.model_config.get("extra") == "forbid"


def resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


@pytest.mark.spec("X-53")
def test_the_schema_describes_a_file_with_a_node_and_a_gateway() -> None:
    schema = json.loads(json.dumps(json_schema()))

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]) == {*MeshConfig.model_fields, "gateway"}
    assert schema["additionalProperties"] is False
    assert set(resolved(schema, schema["properties"]["gateway"])["properties"]) == set(GatewayConfig.model_fields)


@pytest.mark.spec("X-53")
def test_the_schema_knows_limits_short_forms_and_refused_options() -> None:
    schema = json_schema()
    service = schema["$defs"]["GatewayServiceConfig"]

    assert schema["properties"]["port"]["anyOf"][0] == {"maximum": 65535, "minimum": 1, "type": "integer"}
    assert schema["$defs"]["RetryPolicy"]["properties"]["max_attempts"]["maximum"] == 20
    assert schema["$defs"]["BalancingPolicy"]["properties"]["weights"]["additionalProperties"]["exclusiveMinimum"] == 0
    assert {each.get("type") for each in schema["properties"]["services"]["additionalProperties"]["anyOf"]} == {
        "string",
        "array",
    }
    assert {each.get("type") for each in service["anyOf"]} == {"string", "array", "object"}
    probes = schema["$defs"]["ProbePolicy"]["anyOf"]
    assert [each["type"] for each in probes] == ["string", "boolean", "object"]
    limit = schema["$defs"]["RateLimitPolicy"]["anyOf"]
    assert [each["type"] for each in limit] == ["string", "object"]
    assert limit[1]["required"] == ["limit"]


def test_refusals_name_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert version.startswith(f"{later.VERSION}.")


def test_every_refused_option_is_a_setting_somewhere() -> None:
    compat = importlib.import_module("fastapi_mesh.config.compat")
    models = [*MODELS, *(value for value in vars(compat).values() if isinstance(value, type))]
    known = {name for model in models if issubclass(model, Frozen) for name in model.model_fields}

    assert set(LATER) <= known


def test_configuration_needs_neither_yaml_nor_a_settings_library_until_it_is_asked_to() -> None:
    code = (
        "import sys, fastapi_mesh.config.load as load; load.load_mesh_config(env={}); "
        "print(sorted({'yaml', 'pydantic_settings', 'dotenv'} & set(sys.modules)))"
    )
    isolated = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert isolated.stdout.strip() == "[]"
