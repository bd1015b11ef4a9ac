"""What `gateway.configure_rate_limits` changes in a gateway's settings."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from fastapi_mesh.config.layers import plain
from fastapi_mesh.config.overlay import merge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi_mesh.api_gateway.extensions import Extensions
    from fastapi_mesh.api_gateway.ratelimit.keys import CostFunction, KeyFunction


def rate_limit_changes(
    code: Mapping[str, object],
    extensions: Extensions,
    default: object,
    by_ip: object,
    keys: Mapping[str, KeyFunction] | None,
    costs: Mapping[str, CostFunction] | None,
    rate_limiting: Mapping[str, object],
) -> tuple[dict[str, object], Extensions]:
    """The settings given in code and the extensions, with what was given now; what wasn't stays."""
    changed = dict(code)
    if default is not None:
        changed["rate_limit"] = plain(default)
    if by_ip is not None:
        changed["ip_rate_limit"] = plain(by_ip)
    if rate_limiting:
        before = plain(changed.get("rate_limiting") or {})
        changed["rate_limiting"] = merge(before, dict(rate_limiting)) if isinstance(before, dict) else rate_limiting
    return changed, replace(
        extensions,
        rate_limit_keys=MappingProxyType({**extensions.rate_limit_keys, **(keys or {})}),
        rate_limit_costs=MappingProxyType({**extensions.rate_limit_costs, **(costs or {})}),
    )
