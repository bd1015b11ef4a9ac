"""The policies in force: one per service, compiled when they change, read by one look-up per call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastapi_mesh.config.overlay import with_section
from fastapi_mesh.config.policies import CallPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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
        self._in_code: dict[str, dict[str, BaseModel | Mapping[str, object] | None]] = {}
        self._put: set[str] = set()
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
        self._set(service, with_section(self.policy_of(service), **sections))
        for name, section in sections.items():
            own = self._in_code.setdefault(service, {})
            if isinstance(section, Mapping) and name in own:
                before = own[name]  # a dict changes one section further; what was replaced is replaced as it is now
                now = getattr(self.policy_of(service), name)
                own[name] = {**before, **section} if isinstance(before, Mapping) else now
            else:
                own[name] = section

    def put(self, service: str, policy: ServicePolicy) -> None:
        """Replace the whole policy of `service`; the default one is what it had before anything was changed."""
        self._set(service, policy)
        if policy is self._default:
            self._put.discard(service)
        else:
            self._put.add(service)

    def replace(self, config: MeshConfig, called: Iterable[str]) -> None:
        """Take over the policies of other settings; what was changed in code counts over them, as before.

        Listeners hear of each service that has a policy of its own, or that was `called`, and whose policy is another
        one. Raises ConfigurationError when the result does not fit together; nothing has changed then.
        """
        policies = {service: config.policy_of(service) for service in config.policies}
        for service, sections in self._in_code.items():
            policies[service] = with_section(policies.get(service, config.defaults), **sections)
        default = config.defaults
        if not self._enabled:
            default = _pass_through(default)
            policies = {service: _pass_through(policy) for service, policy in policies.items()}
        policies |= {service: self._policies[service] for service in self._put if service in self._policies}
        compiled = {service: CallPolicy.compile(policy) for service, policy in policies.items()}
        default_compiled = CallPolicy.compile(default)
        services = {*self._policies, *policies, *called}
        before = {service: self.policy_of(service) for service in services}
        self._policies, self._compiled = policies, compiled
        self._default, self._default_compiled = default, default_compiled
        for service in sorted(services):
            after = self.policy_of(service)
            if after != before[service]:
                for listener in self._listeners:
                    listener(service, before[service], after)

    def _set(self, service: str, policy: ServicePolicy) -> None:
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
    layers = ("retry", "circuit_breaker", "bulkhead", "outlier", "health_check")
    return policy.model_copy(update=dict.fromkeys(layers))
