"""Settings of a node: who it is, where it finds the others, and how it calls them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from fastapi_mesh.config.backends import DiscoveryConfig, MeshStoreConfig
from fastapi_mesh.config.bulkhead import BulkheadPolicy
from fastapi_mesh.config.fields import (
    CountOrZero,
    Delay,
    Frozen,
    Host,
    HttpPath,
    InstanceUrls,
    Label,
    Port,
    Problems,
    ServiceName,
)
from fastapi_mesh.config.later import LaterOption, later
from fastapi_mesh.config.overlay import misfits, overlay
from fastapi_mesh.config.policies import ServicePolicy


class MeshConfig(Frozen):
    """Everything a node of the mesh can be told.

    `policies` need only name what differs: `policy_of(service)` puts them over `defaults`.
    """

    service_name: ServiceName | None = Field(default=None, description="The name other services call this one by.")
    service_version: str = Field(default="1.0.0", description="The version of this service, shown to others.")
    namespace: ServiceName = Field(default="default", description="Services see those of their own namespace.")
    address: Host | None = Field(
        default=None, description="The address others reach this node at; None: found out when it serves."
    )
    port: Port | None = Field(
        default=None, description="The port others reach this node at; None: found out when it serves."
    )
    zone: Label | None = Field(
        default=None,
        description="Where this node runs, like 'eu-1a': it is registered with it, and calls instances there first.",
    )
    client_number: CountOrZero | None = Field(
        default=None,
        description="The number of this node among all that call the same services, from 0, for `subset_size`; None: "
        "one is made up, so that subsets are even on average only.",
    )
    worker_instances: bool = Field(
        default=False,
        description="Each worker process of a server is an instance of its own, which gets its own share of calls; "
        "False: those that share a port are one.",
    )
    environment: str = Field(default="development", description="Where this runs; 'production' refuses shortcuts.")
    enabled: bool = Field(
        default=True, description="False: nothing is registered, balanced or refused, calls pass straight through."
    )
    services: dict[ServiceName, InstanceUrls] = Field(
        default={}, description="Service to its addresses, looked up before discovery: one URL or a list."
    )
    discovery: DiscoveryConfig = Field(
        default=DiscoveryConfig(), description="Where instances are found and registered."
    )
    config_store: MeshStoreConfig = Field(
        default=MeshStoreConfig(), description="Where configuration is kept that changes while programs run."
    )
    defaults: ServicePolicy = Field(default=ServicePolicy(), description="Policies of every service.")
    policies: dict[ServiceName, ServicePolicy] = Field(
        default={}, description="Service to what differs from `defaults` for it."
    )
    inbound_limit: BulkheadPolicy | None = Field(
        default=None, description="Requests that this node answers at the same time; more get 503. None: no limit."
    )
    drain_delay: Delay = Field(
        default=2.0, description="Seconds between leaving the registry and stopping, for others to notice."
    )
    start_policy: Literal["degraded", "fail"] = Field(
        default="degraded", description="What to do when the registry can't be reached at start: serve unready, or end."
    )
    metrics_path: HttpPath = Field(default="/metrics", description="Where metrics are answered.")
    health_path: HttpPath = Field(
        default="/health", description="Where health is answered; also /live and /ready below it."
    )
    enable_metrics: bool = Field(default=True, description="Count calls and answer `metrics_path`.")
    enable_tracing: bool = Field(default=True, description="Make spans and pass trace headers on.")
    enable_service_discovery: bool = Field(
        default=True, description="False: this node isn't registered and knows only `services`."
    )
    enable_mtls: LaterOption = later("enable_mtls")
    cert_path: LaterOption = later("cert_path")
    key_path: LaterOption = later("key_path")
    ca_path: LaterOption = later("ca_path")
    auto_cert_renewal: LaterOption = later("auto_cert_renewal")
    cert_authority: LaterOption = later("cert_authority")
    security_policies: LaterOption = later("security_policies")

    @field_validator("address")
    @classmethod
    def _can_be_reached(cls, address: str | None) -> str | None:
        if address in ("0.0.0.0", "::"):
            raise ValueError(f"{address!r} is where a server listens; name the address that others can reach")
        return address

    @field_validator("defaults")
    @classmethod
    def _defaults_fit(cls, defaults: ServicePolicy) -> ServicePolicy:
        if problems := misfits(ServicePolicy(), defaults):
            raise Problems(problems)
        return defaults

    @field_validator("policies")
    @classmethod
    def _policies_fit(cls, policies: dict[str, ServicePolicy], info: ValidationInfo) -> dict[str, ServicePolicy]:
        """Each alone is right; here they meet the defaults."""
        defaults = info.data.get("defaults")
        if defaults is not None and (
            problems := [
                ((service, *place), text)
                for service, policy in policies.items()
                for place, text in misfits(defaults, policy)
            ]
        ):
            raise Problems(problems)
        return policies

    def policy_of(self, service: str) -> ServicePolicy:
        """The effective policy of `service`: its own values over the defaults."""
        own = self.policies.get(service)
        return self.defaults if own is None else overlay(self.defaults, own)
