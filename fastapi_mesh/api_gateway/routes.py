"""A gateway's routes as the data path wants them: everything that can be worked out beforehand, worked out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.table import RouteTable
from fastapi_mesh.config.routes import answering

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.api_gateway.exchange import GatewayService
    from fastapi_mesh.config.gateway import RouteConfig
    from fastapi_mesh.config.policies import CallPolicy


class Route:
    """One route. `strip` is how many leading segments are not sent on; `chain` its layers, None until it is in use.

    `policy` is None until the mesh is known; `streaming` is the same without a deadline for the whole call, for bodies
    that come at the client's pace: an upload takes as long as it takes, while no pause is longer than `idle_timeout`
    and the answer comes within the attempt's timeout after its end. `services` are all that may answer, `service`
    first; `policies` has both policies of each.
    """

    __slots__ = ("chain", "config", "path", "policies", "policy", "service", "services", "streaming", "strip")

    def __init__(self, config: RouteConfig) -> None:
        self.config: RouteConfig = config
        self.path = config.path
        self.service = config.service
        self.strip = config.path.count("/") - 1 if config.strip_prefix and config.path.endswith("/*") else 0
        self.services = answering(config)
        self.policies: dict[str, tuple[CallPolicy, CallPolicy]] = {}
        self.chain: GatewayService | None = None
        self.policy: CallPolicy | None = None
        self.streaming: CallPolicy | None = None

    def set_policy(self, service: str, policy: CallPolicy) -> None:
        """Give this route its policy for one of its `services`, from the next request on."""
        streaming = replace(policy, timeout=None)
        self.policies[service] = (policy, streaming)
        if service == self.service:
            self.policy, self.streaming = policy, streaming

    def __repr__(self) -> str:
        methods = ", ".join(self.config.methods) if self.config.methods else "any method"
        return f"<Route {self.path} ({methods}) to {self.service}>"


def new_table(routes: Iterable[RouteConfig]) -> RouteTable[Route]:
    """The table for `routes`. Raises ConfigurationError when two can't be told apart."""
    return RouteTable((config.path, config.methods, Route(config)) for config in routes)
