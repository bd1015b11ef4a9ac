"""A gateway's routes as the data path wants them: everything that can be worked out beforehand, worked out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.choice import Conditions
from fastapi_mesh.api_gateway.table import Entry, RouteTable
from fastapi_mesh.api_gateway.target import Rewriting, Stripping, check_sendable, positions_of, target_of, values_at
from fastapi_mesh.config.edge.websocket import WebSocketPolicy
from fastapi_mesh.config.routes import answering

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.api_gateway.exchange import GatewayService
    from fastapi_mesh.config.gateway import GatewayConfig, RouteConfig
    from fastapi_mesh.config.policies import CallPolicy
    from fastapi_mesh.core.state import ServiceState

    Policies = tuple[CallPolicy, CallPolicy]


class Route:
    """One route. `strip` is how many leading segments are not sent on; `chain` its layers, `upgrade` those
    of a WebSocket's handshake; both are None until it is in use.

    `policy` is None until the mesh is known; `streaming` is the same without a deadline for the whole call, for bodies
    that come at the client's pace: an upload takes as long as it takes, while no pause is longer than `idle_timeout`
    and the answer comes within the attempt's timeout after its end. `services` are all that may answer, `service`
    first; `policies` has both policies of each. `parameters` says which segment of a path each name is; `max_body`,
    `https_port` (None where HTTP will do) and `host` (True: the client's, False: the instance's) are what counts here
    after the gateway's own settings. `state` is None, but where the gateway answers itself. `sticky` says that clients
    of one of its services get a cookie for sticky sessions.
    """

    __slots__ = (
        "_changed",
        "chain",
        "config",
        "host",
        "https_port",
        "max_body",
        "parameters",
        "path",
        "policies",
        "policy",
        "service",
        "services",
        "state",
        "sticky",
        "streaming",
        "strip",
        "upgrade",
        "websocket",
    )

    def __init__(self, config: RouteConfig, defaults: GatewayConfig | None = None) -> None:
        """`defaults` are the settings of the gateway, which count where the route has none of its own."""
        self.config: RouteConfig = config
        self.path = config.path
        self.service = config.service
        self.strip = config.path.count("/") - 1 if config.strip_prefix and config.path.endswith("/*") else 0
        self.parameters = positions_of(config.path)
        self._changed: Stripping | Rewriting | None = None
        if config.rewrite is not None:
            self._changed = Rewriting(config.rewrite, config.path)
        elif self.strip:
            self._changed = Stripping(self.strip)
        self._take_defaults(config, defaults)
        self.services = answering(config)
        self.policies: dict[str, Policies] = {}
        self.chain: GatewayService | None = None
        self.upgrade: GatewayService | None = None
        self.websocket = config.websocket or WebSocketPolicy()
        self.state: ServiceState | None = None
        self.sticky = False
        self.policy: CallPolicy | None = None
        self.streaming: CallPolicy | None = None

    def _take_defaults(self, config: RouteConfig, defaults: GatewayConfig | None) -> None:
        own = config.model_fields_set
        self.max_body = config.max_body if "max_body" in own or defaults is None else defaults.max_body
        wants_https = (
            config.require_https if defaults is None or config.require_https is not None else (defaults.require_https)
        )
        self.https_port = (443 if defaults is None else defaults.https_port) if wants_https else None
        host = config.preserve_host if defaults is None or config.preserve_host is not None else defaults.preserve_host
        self.host: bool | bytes = host.encode() if isinstance(host, str) else host is not False

    def target(self, path: bytes, query: bytes) -> bytes:
        """What is asked of the service for the raw `path` below the gateway and the raw `query`: the request target.

        Raises InvalidRequestError for a path whose `..` or encoded slash would lead out of what the route may reach.
        """
        if self._changed is not None:
            check_sendable(path)
            path = self._changed(path)
        return target_of(path, query)

    def values(self, path: bytes) -> dict[str, bytes]:
        """The parameters of the route's path in the raw `path`, as they were sent."""
        return values_at(self.parameters, path)

    def set_policy(self, service: str, policies: Policies) -> None:
        """Give this route its policies for one of its `services`, from the next request on."""
        self.policies[service] = policies
        self.sticky = any(
            policy.balancing.sticky_sessions and policy.balancing.session_affinity_cookie is not None
            for policy, _ in self.policies.values()
        )
        if service == self.service:
            self.policy, self.streaming = policies

    def __repr__(self) -> str:
        methods = ", ".join(self.config.methods) if self.config.methods else "any method"
        return f"<Route {self.path} ({methods}) to {self.service}>"


def with_streaming(policy: CallPolicy) -> Policies:
    """A policy, and the same for bodies that come at the client's pace."""
    return policy, replace(policy, timeout=None)


def new_table(routes: Iterable[RouteConfig], defaults: GatewayConfig | None = None) -> RouteTable[Route]:
    """The table for `routes`. Raises ConfigurationError when two can't be told apart."""
    return RouteTable(
        Entry(
            config.path,
            config.methods,
            Route(config, defaults),
            Conditions(config.host, config.headers, config.query, config.priority),
        )
        for config in routes
    )
