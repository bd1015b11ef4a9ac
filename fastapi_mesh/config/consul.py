"""Settings that only Consul has."""

from __future__ import annotations

from pydantic import Field

from fastapi_mesh.config.fields import Frozen


class ConsulConfig(Frozen):
    """What Consul needs to know beyond where it is."""

    datacenter: str | None = Field(default=None, description="The datacenter to ask; None: the agent's own.")
