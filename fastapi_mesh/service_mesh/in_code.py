"""The methods of a mesh that change policies in code, before it starts or while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.config.compat import balancing_policies, breaker_policies, retry_policies

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi_mesh.service_mesh.policy_table import PolicyTable


class SetUpInCode:
    """What is set here counts over every other source. Raises ConfigurationError for settings that are wrong."""

    policies: PolicyTable

    def configure_load_balancing(self, settings: Mapping[str, Mapping[str, object]]) -> None:
        """Per service, what BalancingPolicy has: `{"strategy": "least_response_time", "weights": {"orders-2": 2.0}}`
        or `{"sticky_sessions": True, "session_affinity_header": "X-User-ID"}`. What isn't given is as by default.
        """
        for service, section in balancing_policies(settings).items():
            self.policies.change(service, load_balancing=section)

    def configure_circuit_breakers(self, settings: Mapping[str, Mapping[str, object]]) -> None:
        """Per service: `{"failure_threshold": 5, "recovery_timeout": 60, "half_open_max_calls": 3, "timeout": 10}`."""
        for service, sections in breaker_policies(settings).items():
            self.policies.change(service, **sections)

    def configure_retry_policies(self, settings: Mapping[str, Mapping[str, object]]) -> None:
        """Per service: `{"max_attempts": 3, "backoff_strategy": "exponential", "base_delay": 1.0, ...}`."""
        for service, section in retry_policies(settings).items():
            self.policies.change(service, retry=section)
