"""Laying one policy over another: values that were set win, everything else shows through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import ValidationError

from fastapi_mesh.config.policies import ServicePolicy
from fastapi_mesh.config.problems import explain, texts_of
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from fastapi_mesh.config.problems import Location


def merge(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """`base` with everything of `over` in it, table by table; lists and values are replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def overlay(base: ServicePolicy, over: ServicePolicy) -> ServicePolicy:
    """`base` with every value that was set in `over`, down to single fields.

    An attempt timeout that `over` only inherits is clipped to its shorter `timeout`; raises pydantic's ValidationError
    for values that don't fit together.

    >>> from fastapi_mesh.config.policies import TimeoutPolicy
    >>> base = ServicePolicy(timeouts=TimeoutPolicy(timeout=9.0))
    >>> overlay(base, ServicePolicy(timeouts=TimeoutPolicy(connect_timeout=1.0))).timeouts.timeout
    9.0
    """
    return _joined(base, over.model_dump(exclude_unset=True))


def with_section(policy: ServicePolicy, **sections: BaseModel | Mapping[str, object] | None) -> ServicePolicy:
    """`policy` with sections replaced by a model or None, or changed by a dict. Raises ConfigurationError.

    >>> with_section(ServicePolicy(), timeouts={"timeout": 5.0}).timeouts.timeout
    5.0
    """
    changes = {name: section for name, section in sections.items() if isinstance(section, Mapping)}
    replaced = {name: section for name, section in sections.items() if name not in changes}
    unknown = [name for name in sections if name not in ServicePolicy.model_fields]
    try:
        base = policy.model_copy(update={name: replaced[name] for name in replaced if name not in unknown})
        return _joined(base, {**changes, **dict.fromkeys(unknown)})
    except ValidationError as error:
        raise ConfigurationError(problems=explain(error, ServicePolicy)) from error


def misfits(base: ServicePolicy, over: ServicePolicy) -> list[tuple[Location, str]]:
    """Places and texts of what doesn't fit together once `over` lies on `base`."""
    try:
        overlay(base, over)
    except ValidationError as error:
        return texts_of(error, ServicePolicy)
    return []


def _joined(base: ServicePolicy, changes: Mapping[str, object]) -> ServicePolicy:
    """`base` with `changes`, judged with every value there is, and holding as set only what was set in either."""
    whole, own = merge(base.model_dump(), changes), merge(base.model_dump(exclude_unset=True), changes)
    changed = changes.get("timeouts")
    if not (isinstance(changed, Mapping) and "attempt_timeout" in changed):
        _clip(whole.get("timeouts"))
        _clip(own.get("timeouts"))
    ServicePolicy.model_validate(whole)
    return ServicePolicy.model_validate(own)


def _clip(times: object) -> None:
    """Bring an inherited attempt timeout down to a shorter timeout that was set nearer to the call."""
    if isinstance(times, dict):
        attempt, total = times.get("attempt_timeout"), times.get("timeout")
        if isinstance(attempt, (int, float)) and isinstance(total, (int, float)) and 0 < total < attempt:
            times["attempt_timeout"] = total
