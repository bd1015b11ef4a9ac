"""What a gateway tells its mesh of the services behind it: taken over whole, and undone when it leaves the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel

from fastapi_mesh.config.gateway import check_routes
from fastapi_mesh.config.overlay import with_section
from fastapi_mesh.discovery.static import StaticDiscovery
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi_mesh.config.gateway import GatewayConfig, GatewayServiceConfig
    from fastapi_mesh.config.policies import ServicePolicy
    from fastapi_mesh.core.instance import ASGIApp
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

_SECTIONS = ("circuit_breaker", "bulkhead", "outlier", "load_balancing", "health_check")
"""Parts of a policy that belong to the service and not to a call: their state is shared by all who call it."""

Sections = dict[str, BaseModel | None]


class Services:
    """The services of an open gateway, in its mesh.

    What the mesh was told itself wins over what the gateway is told (B2): those have their instances from there.
    `added` has the services that an earlier life of the same gateway told the mesh of.
    """

    def __init__(self, mesh: ServiceMesh, apps: Mapping[str, ASGIApp], added: set[str]) -> None:
        self._mesh = mesh
        self._apps = apps
        self._added = added
        self._fixed = frozenset(mesh.fixed_services) - added
        self._told: set[str] = set()
        self._taken: Mapping[str, GatewayServiceConfig] = {}
        self._before: dict[str, ServicePolicy] = {}
        """The policy of each service whose sections are ours at the moment, as it was before they were."""

    def check(self, config: GatewayConfig) -> None:
        """Find out everything that `take` would stumble over. Raises ConfigurationError."""
        given = {*self._fixed, *self._apps}
        problems = check_routes(config.routes, {*given, *config.services}, discoverable=self._mesh.finds_services)
        for name, service in config.services.items():
            if not service.instances and name not in given and not self._mesh.finds_services:
                problems.append(f"services.{name}.instances: is empty, and there is no discovery that could find any")
            if service == self._taken.get(name):
                continue
            for attempt in (
                lambda name=name, service=service: StaticDiscovery({name: service.instances}),
                lambda name=name, service=service: with_section(self._base(name), **_sections(service)),
            ):
                try:
                    attempt()
                except ConfigurationError as error:
                    problems += error.problems
        if problems:
            raise ConfigurationError(problems=problems)

    def take(self, config: GatewayConfig) -> None:
        """Tell the mesh what has changed since the last time, and take back what is gone."""
        for name, app in self._apps.items():
            if name not in self._fixed and name not in self._told:
                self._mesh.add_service(name, app)
                self._told.add(name)
                self._added.add(name)
        before, self._taken = self._taken, config.services
        for name in {*before, *config.services}:
            old, new = before.get(name), config.services.get(name)
            if old != new:
                self._take_instances(name, new)
                self._take_sections(name, {} if new is None else _sections(new))

    def _take_instances(self, name: str, service: GatewayServiceConfig | None) -> None:
        if name in self._fixed or name in self._apps:
            return
        if service is not None and service.instances:
            self._mesh.add_service(name, service.instances)
            self._added.add(name)
        elif name in self._added:
            self._mesh.add_service(name, ())
            self._added.discard(name)

    def _take_sections(self, name: str, sections: Sections) -> None:
        """Those that are set, over what the mesh has; those that were set before and are not any more, as it had."""
        base = self._base(name)
        if sections:
            self._before[name] = base
        elif self._before.pop(name, None) is None:
            return
        self._mesh.policies.put(name, with_section(base, **sections) if sections else base)

    def _base(self, name: str) -> ServicePolicy:
        return self._before.get(name) or self._mesh.policy_of(name)


def _sections(service: GatewayServiceConfig) -> Sections:
    own = service.policy()
    return {section: getattr(own, section) for section in _SECTIONS if section in own.model_fields_set}
