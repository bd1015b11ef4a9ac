"""The JSON schema of a settings file, for editors and for checks without this library."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from fastapi_mesh.config.gateway import GatewayConfig
from fastapi_mesh.config.mesh import MeshConfig


class SettingsFile(MeshConfig):
    """A settings file of fastapi_mesh: a node's settings at the top level, a gateway's in the table `gateway`."""

    gateway: GatewayConfig = Field(default=GatewayConfig(), description="Settings of a gateway.")


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a file that `load_mesh_config` and `load_gateway_config` both read."""
    schema = SettingsFile.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "fastapi_mesh settings"}
