"""The product description's shapes of settings, turned into ours: this and compat_gateway are the only places that read
dicts by their keys.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from fastapi_mesh.config.fields import Seconds, ServiceName
from fastapi_mesh.config.layers import SettingsLayer, plain
from fastapi_mesh.config.overlay import with_section
from fastapi_mesh.config.policies import BalancingPolicy, BreakerPolicy, RetryPolicy
from fastapi_mesh.config.problems import explain, line, path_of, suggestion
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.config.problems import Location

__all__ = [
    "balancing_policies",
    "breaker_policies",
    "from_config_map",
    "get_protocol_config",
    "read",
    "retry_policies",
    "with_section",
]

T = TypeVar("T")

Section = BreakerPolicy | dict[str, object]


class _Breaker(BreakerPolicy, defer_build=True):
    """A breaker as the description writes it: with the limit of each attempt beside it."""

    timeout: Seconds | None = Field(default=None, description="Seconds for one attempt.")


def breaker_policies(
    given: Mapping[str, object], source: str = "configure_circuit_breakers"
) -> dict[str, dict[str, Section]]:
    """Service to changed sections, for `with_section`: `circuit_breaker`, and `timeouts` where `timeout` was given.

    `{"payment-gateway": {"failure_threshold": 3, "recovery_timeout": 120, "half_open_max_calls": 3, "timeout": 10.0}}`;
    `timeout` is the limit of each attempt, in seconds.
    """
    sections: dict[str, dict[str, Section]] = {}
    for service, breaker in read(dict[ServiceName, _Breaker], given, source).items():
        own = breaker.model_dump(exclude={"timeout"}, exclude_unset=True)
        sections[service] = {"circuit_breaker": BreakerPolicy.model_validate(own)}
        if breaker.timeout is not None:
            sections[service]["timeouts"] = {"attempt_timeout": breaker.timeout}
    return sections


def retry_policies(given: Mapping[str, object], source: str = "configure_retry_policies") -> dict[str, RetryPolicy]:
    """`{"user-service": {"max_attempts": 3, "backoff_strategy": "linear", "base_delay": 1.0, "max_delay": 10.0}}`.

    A `max_delay` that isn't given is ten times `base_delay`, at least the default.
    """
    policies = read(dict[ServiceName, RetryPolicy], given, source)
    for service, policy in policies.items():
        if "base_delay" in policy.model_fields_set and "max_delay" not in policy.model_fields_set:
            longest = max(policy.max_delay, 10 * policy.base_delay)
            policies[service] = policy.model_copy(update={"max_delay": longest})
    return policies


def balancing_policies(
    given: Mapping[str, object], source: str = "configure_load_balancing"
) -> dict[str, BalancingPolicy]:
    """`{"order-service": {"strategy": "least_response_time", "weights": {"order-service-2": 2.0}}}`, or
    `{"payment-service": {"sticky_sessions": True, "session_affinity_header": "X-User-ID"}}`.
    """
    return read(dict[ServiceName, BalancingPolicy], given, source)


def read(kind: type[T], given: object, source: str) -> T:
    """`given`, told as `source`, as settings of `kind`. Raises ConfigurationError."""
    try:
        return TypeAdapter(kind).validate_python(plain(given))
    except ValidationError as error:
        raise ConfigurationError(problems=explain(error, kind), source=source) from error


CONFIG_MAP_TABLE = "service_mesh"

_CONFIG_MAP: dict[str, dict[str, Location]] = {
    "discovery": {
        "backend": ("discovery", "backend"),
        "namespace": ("namespace",),
        "host": ("discovery", "host"),
        "port": ("discovery", "port"),
        "path": ("discovery", "path"),
    },
    "security": {"enable_mtls": ("enable_mtls",), "auto_cert_renewal": ("auto_cert_renewal",)},
    "load_balancing": {"default_strategy": ("defaults", "load_balancing", "strategy")},
    "circuit_breaker": {
        "default_failure_threshold": ("defaults", "circuit_breaker", "failure_threshold"),
        "default_recovery_timeout": ("defaults", "circuit_breaker", "recovery_timeout"),
    },
}
"""The description's ConfigMap: sections and keys below `service_mesh`, and their place in our settings."""


def from_config_map(layer: SettingsLayer) -> SettingsLayer:
    """A file's settings with the table `service_mesh` (the description's ConfigMap) put where ours are."""
    given = layer.data.pop(CONFIG_MAP_TABLE, None)
    if given is None:
        return layer
    translated = SettingsLayer()
    for section, table in _known_entries(given, _CONFIG_MAP, (CONFIG_MAP_TABLE,), layer, translated):
        places = _CONFIG_MAP[section]
        for key, value in _known_entries(table, places, (CONFIG_MAP_TABLE, section), layer, translated):
            here: Location = (CONFIG_MAP_TABLE, section, key)
            translated.put(places[key], value, ", ".join(filter(None, (path_of(here), layer.origin(here)))))
    for name, value in layer.data.items():
        translated.put((name,), value, layer.origin((name,)))
    translated.origins.update(layer.origins)
    return translated


def _known_entries(
    table: object, known: Iterable[str], place: Location, layer: SettingsLayer, translated: SettingsLayer
) -> list[tuple[str, object]]:
    """Entries of the table at `place` whose keys are `known`; problems with the others go to `translated`."""
    if not isinstance(table, Mapping):
        translated.problems.append(line(place, "is not a table of settings", layer.origin(place)))
        return []
    for key in table:
        if key not in known:
            here = (*place, key)
            text = f"unknown key{suggestion(str(key), known)}"
            translated.problems.append(line(here, text, layer.origin(here)))
    return [(key, value) for key, value in table.items() if key in known]


def get_protocol_config(env: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """The description's own reading of its environment variables, with its defaults (`env` is os.environ if None).

    Nothing here reads it back: `load_mesh_config` and `load_gateway_config` have rules of their own.
    """
    env = os.environ if env is None else env
    port = env.get("GATEWAY_PORT", "8080")
    try:
        number = int(port)
    except ValueError as error:
        raise ConfigurationError(f"GATEWAY_PORT: {port!r} is not a port number") from error
    return {
        "api_gateway": {
            "host": env.get("GATEWAY_HOST", "0.0.0.0"),
            "port": number,
            "enable_auth": env.get("GATEWAY_AUTH_ENABLED", "true").lower() == "true",
            "rate_limit": env.get("GATEWAY_RATE_LIMIT", "1000/hour"),
        },
        "service_mesh": {
            "service_name": env.get("SERVICE_NAME"),
            "discovery_backend": env.get("DISCOVERY_BACKEND", "kubernetes"),
            "enable_mtls": env.get("MTLS_ENABLED", "true").lower() == "true",
            "namespace": env.get("SERVICE_NAMESPACE", "default"),
        },
    }
