"""Settings that only etcd has."""

from __future__ import annotations

from pydantic import Field

from fastapi_mesh.config.fields import Frozen


class EtcdConfig(Frozen):
    """What etcd needs to know beyond where it is."""

    prefix: str = Field(default="fastapi-mesh", description="What all keys begin with, before '/'.")
