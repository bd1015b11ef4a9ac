"""Settings that only Consul has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fastapi_mesh.config.fields import Frozen, Seconds

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_-]+$")]


class ConsulConfig(Frozen):
    """What Consul needs to know beyond where it is."""

    datacenter: Name | None = Field(
        default=None, description="The datacenter whose services and keys are read; None: the agent's own."
    )
    namespace: Name | None = Field(
        default=None, description="Consul Enterprise: the namespace of services and keys; None: that of the token."
    )
    partition: Name | None = Field(
        default=None, description="Consul Enterprise: the admin partition; None: the agent's own."
    )
    tags: tuple[str, ...] = Field(
        default=(), description="Only instances with all of these tags are seen; () sees all of them."
    )
    consistency: Literal["default", "stale", "consistent"] = Field(
        default="default",
        description="How lists are read. default: from the leader. stale: from any server, also while there is no "
        "leader, a little behind. consistent: the leader first makes sure that it is.",
    )
    wait: Annotated[Seconds, Field(ge=0.1, le=600.0)] = Field(
        default=12.0,
        description="Seconds that a blocking query waits for a change. A connection that broke in silence is noticed "
        "a sixteenth and 5 s later at most.",
    )
    max_watches: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=100,
        description="Services watched by a blocking query of their own, of which Consul serves 200 to one client "
        "address; the others are polled in turn, ten a second.",
    )
    deregister_after: Annotated[Seconds, Field(ge=60.0)] = Field(
        default=60.0,
        description="Seconds after the end of its lease until Consul forgets an instance; it takes no less than 60.",
    )
    zone_key: str = Field(
        default="zone", description="Key of the metadata of a service, or else of its node, that says the zone."
    )
