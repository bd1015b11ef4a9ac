"""The policies in force: one per service, compiled when they change, read by one look-up per call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.config.overlay import with_section
from fastapi_mesh.config.policies import CallPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import BaseModel

    from fastapi_mesh.config.mesh import MeshConfig
    from fastapi_mesh.config.policies import ServicePolicy


class PolicyTable:
    """The policies of a configuration, and what was changed in code since. Listeners hear of each change."""

    def __init__(self, config: MeshConfig) -> None:
        self._policies = {service: config.policy_of(service) for service in config.policies}
        self._enabled = config.enabled
        self._default = config.defaults if config.enabled else _pass_through(config.defaults)
        if not config.enabled:
            self._policies = {service: _pass_through(policy) for service, policy in self._policies.items()}
        self._default_compiled = CallPolicy.compile(self._default)
        self._compiled = {service: CallPolicy.compile(policy) for service, policy in self._policies.items()}
        self._listeners: list[Callable[[str, ServicePolicy, ServicePolicy], object]] = []

    def policy_of(self, service: str) -> ServicePolicy:
        """The policy of `service`, or the default."""
        return self._policies.get(service, self._default)

    def compiled(self, service: str) -> CallPolicy:
        """The compiled policy of `service`."""
        return self._compiled.get(service, self._default_compiled)

    def change(self, service: str, **sections: BaseModel | Mapping[str, object] | None) -> None:
        """Replace sections of the policy of `service` (a dict changes one); calls under way keep what they began with.

        Raises ConfigurationError when the result does not fit together.
        """
        self.put(service, with_section(self.policy_of(service), **sections))

    def put(self, service: str, policy: ServicePolicy) -> None:
        """Replace the whole policy of `service`; the default one is what it had before anything was changed."""
        before = self.policy_of(service)
        after = policy if self._enabled else _pass_through(policy)
        compiled = CallPolicy.compile(after)
        if policy is self._default:  # names that come and go must leave nothing
            self._policies.pop(service, None)
            self._compiled.pop(service, None)
        else:
            self._policies[service], self._compiled[service] = after, compiled
        for listener in self._listeners:
            listener(service, before, after)

    def on_change(self, listener: Callable[[str, ServicePolicy, ServicePolicy], object]) -> Callable[[], None]:
        """Call `listener(service, before, after)` after each change; the returned function ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)


def _pass_through(policy: ServicePolicy) -> ServicePolicy:
    """What is left of a policy when the mesh is switched off: its time limits."""
    return policy.model_copy(update={"retry": None, "circuit_breaker": None, "bulkhead": None, "outlier": None})
