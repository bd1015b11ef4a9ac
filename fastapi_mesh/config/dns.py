"""Settings that only discovery by DNS has."""

from __future__ import annotations

from pydantic import Field

from fastapi_mesh.config.fields import Frozen


class DnsConfig(Frozen):
    """How services are asked for in DNS."""

    domain: str = Field(default="", description="What is put behind a service's name, such as 'svc.example.org'.")
