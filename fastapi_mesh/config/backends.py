"""Settings of the backends: where a node finds the others, and makes itself known."""

from __future__ import annotations

from pathlib import Path  # pydantic needs it at run time
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from fastapi_mesh.config.fields import Frozen, Seconds
from fastapi_mesh.config.later import LaterOption, later, not_yet

DiscoveryBackend = Literal["local", "static", "memory"]

LATER_BACKENDS = ("consul", "etcd", "kubernetes", "dns")


def _available(value: object) -> object:
    if isinstance(value, str) and value in LATER_BACKENDS:
        raise ValueError(f"{not_yet(f'{value!r} is')}; use 'local' (one machine), 'static' or services={{...}}")
    return value


class DiscoveryConfig(Frozen):
    """Where instances are found and registered."""

    backend: Annotated[DiscoveryBackend, BeforeValidator(_available)] = Field(
        default="local",
        description="local: one SQLite file for all processes of this machine. static: only what `services` lists. "
        "memory: only this process, for tests.",
    )
    path: Path | None = Field(
        default=None,
        description="Backend local: the registry's file; None is fastapi-mesh/registry.db in the user's state folder.",
    )
    lease: Seconds = Field(
        default=15.0, description="Seconds after its last heartbeat until an instance is taken for dead."
    )
    heartbeat: Seconds = Field(
        default=5.0, validate_default=True, description="Seconds between two heartbeats; shorter than `lease`."
    )
    poll_interval: Seconds = Field(
        default=0.2, description="Backend local: seconds between two looks at the registry for changes."
    )
    host: LaterOption = later("host")
    port: LaterOption = later("port")
    token: LaterOption = later("token")

    @field_validator("heartbeat")
    @classmethod
    def _beats_in_time(cls, heartbeat: float, info: ValidationInfo) -> float:
        lease = info.data.get("lease")
        if lease is not None and heartbeat >= lease:
            raise ValueError(
                f"heartbeat ({heartbeat:g} s) is not shorter than lease ({lease:g} s), "
                "so every instance would expire; lower heartbeat or raise lease"
            )
        return heartbeat
