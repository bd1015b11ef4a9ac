"""How an instance is registered in Consul, and how one is read that we or somebody else have registered.

Consul's own fields (address, port, tags, meta, weights, checks) are used both ways, so that its catalog, its DNS and
other programs see our instances as they see any. What they have no place for is in the meta `fastapi-mesh`.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.discovery.lists import SCHEMES, check
from fastapi_mesh.discovery.rows import Owner, Row, lists_of
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi_mesh.core.instance import Health, Scheme

logger = logging.getLogger("fastapi_mesh.discovery.consul")

OWN = "fastapi-mesh"
"""Key of the meta with what Consul has no place for: JSON, gone on with in OWN-1, OWN-2... where it is long."""
NAMESPACE_TAG = "mesh-namespace="
LEASE = ":lease"
"""Ending of the id of the check that is the lease."""

MAX_PAIRS = 64
MAX_VALUE = 512
SHOWN_PAIRS = 40
"""Of the 64 pairs of Consul's meta, those that are used for metadata as it is."""
_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_NO_ID = re.compile(r"[^A-Za-z0-9_.:-]")

_STATUS: Mapping[str, Health] = MappingProxyType({"passing": "healthy", "warning": "degraded", "critical": "unhealthy"})
_WORSE = ("unknown", "healthy", "degraded", "unhealthy")


def consul_id(instance: Instance, owner: Owner, born: int) -> str:
    """An id that no other registration has: Consul's are those of an agent, not of a service."""
    return f"{_NO_ID.sub('_', f'{instance.service}:{instance.id}')[:128]}-{owner.token}-{born}"


def registration(
    instance: Instance, owner: Owner, born: int, *, namespace: str, lease: float, deregister_after: float
) -> dict[str, object]:
    """The body of PUT /v1/agent/service/register. Raises ConfigurationError for what Consul can't keep."""
    id = consul_id(instance, owner, born)
    passing = min(65535, max(1, round(instance.weight)))
    return {
        "ID": id,
        "Name": instance.service,
        "Address": instance.address,
        "Port": instance.port,
        "Tags": [*instance.tags, f"{NAMESPACE_TAG}{namespace}"],
        "Meta": _meta(instance, owner, born, namespace),
        "Weights": {"Passing": passing, "Warning": 1},
        "Check": {
            "CheckID": f"{id}{LEASE}",
            "Name": "lease of fastapi_mesh",
            "TTL": f"{int(lease * 1000)}ms",
            "Status": "passing" if passes(instance) else "warning",
            "DeregisterCriticalServiceAfter": f"{int(max(60.0, deregister_after))}s",
        },
    }


def passes(instance: Instance) -> bool:
    """Whether the lease's check is `passing`; it is `warning` for an instance that is not well, but there."""
    return instance.health in ("healthy", "unknown")


def _meta(instance: Instance, owner: Owner, born: int, namespace: str) -> dict[str, str]:
    """The metadata as it is where Consul takes it, also the version and the zone; the rest as JSON."""
    fits = [key for key, value in instance.metadata.items() if _fits(key, value)][:SHOWN_PAIRS]
    shown = {key: instance.metadata[key] for key in fits}
    added = {
        key: value
        for key, value in (("version", instance.version), ("zone", instance.zone), ("scheme", instance.scheme))
        if value is not None and key not in instance.metadata and _fits(key, value)
    }
    own: dict[str, object] = {
        "id": instance.id,
        "ns": namespace,
        "of": owner.token,
        "at": round(owner.epoch, 3),
        "n": born,
        "added": list(added),
        "scheme": instance.scheme,
    }
    others = {
        "health": (instance.health, "healthy"),
        "weight": (instance.weight, 1.0),
        "version": (instance.version, None),
        "zone": (instance.zone, None),
        "base_path": (instance.base_path.decode("latin-1"), ""),
        "health_check": (instance.health_check, None),
        "more": ({key: value for key, value in instance.metadata.items() if key not in shown}, {}),
    }
    own.update({name: value for name, (value, usual) in others.items() if value != usual})
    document = json.dumps(own, separators=(",", ":"))
    parts = [document[start : start + MAX_VALUE] for start in range(0, len(document), MAX_VALUE)]
    meta = {**shown, **added, **{f"{OWN}-{number}" if number else OWN: part for number, part in enumerate(parts)}}
    if len(meta) > MAX_PAIRS:
        raise ConfigurationError(
            f"instance {instance.id!r} of {instance.service!r}: its metadata is too large for Consul, which keeps "
            f"{MAX_PAIRS} pairs of {MAX_VALUE} bytes"
        )
    return meta


def _fits(key: str, value: str) -> bool:
    reserved = key.startswith((OWN, "consul-"))
    return bool(_KEY.fullmatch(key)) and not reserved and len(value.encode()) <= MAX_VALUE


class UnreadableError(ValueError):
    """What Consul has for an instance is none that could be called."""


@dataclass(slots=True)
class Reader:
    """Makes the list of a service from an answer of /v1/health/service: what it leaves out it logs once."""

    service: str
    namespace: str
    zone_key: str
    _told: set[str] = field(default_factory=set)

    def read(self, answer: object) -> dict[str, Instance]:
        """The instances by id. Raises ValueError, TypeError, KeyError or AttributeError for what isn't such a list.

        Those that can't be called (no port, as Consul allows) and those of other namespaces of the mesh are left out,
        and those of ours whose lease is over.
        """
        if not isinstance(answer, list):
            raise TypeError("a list was expected")
        rows: list[Row] = []
        others: list[tuple[str, Instance]] = []
        for entry in answer:
            service: dict[str, Any] = entry["Service"]
            node: dict[str, Any] = entry["Node"]
            checks: list[dict[str, Any]] = entry["Checks"]
            name = f"{node['Node']}/{service['ID']}"
            try:
                own = _own(service.get("Meta") or {})
                if own is None:
                    others.append((str(node["Node"]), self._foreign(service, node, checks)))
                elif own["ns"] == self.namespace and not _is_over(service["ID"], checks):
                    rows.append(self._ours(own, service, node, checks))
            except (UnreadableError, ConfigurationError) as error:
                if name not in self._told and len(self._told) < 1000:
                    self._told.add(name)
                    logger.warning("%s of %r in Consul is left out: %s", name, self.service, error)
        ours = lists_of(rows).get(self.service, ())
        return {each.id: each for each in (*_told_apart(others), *ours)}

    def _ours(
        self, own: dict[str, Any], service: dict[str, Any], node: dict[str, Any], checks: list[dict[str, Any]]
    ) -> Row:
        meta: dict[str, str] = service["Meta"]
        try:
            added, more = set(own["added"]), own.get("more", {})
            shown = {key: value for key, value in meta.items() if key not in added and not key.startswith(OWN)}
            instance = Instance(
                self.service,
                str(own["id"]),
                service["Address"] or node["Address"],
                int(service["Port"]),
                scheme=cast("Scheme", own["scheme"]),
                health=_worst(_health(checks), str(own.get("health", "healthy"))),
                weight=float(own.get("weight", 1.0)),
                tags=tuple(tag for tag in service["Tags"] or () if not tag.startswith(NAMESPACE_TAG)),
                metadata=MappingProxyType({**shown, **{str(key): str(more[key]) for key in more}}),
                version=_text(own.get("version")),
                zone=_text(own.get("zone")) or (node.get("Meta") or {}).get(self.zone_key),
                base_path=str(own.get("base_path", "")).encode("latin-1"),
                health_check=_text(own.get("health_check")),
            )
            owner = Owner(str(own["of"]), float(own["at"]))
            return Row(check(instance), owner, int(own["n"]), 0.0, 0.0)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ConfigurationError):
                raise
            raise UnreadableError(f"its meta {OWN!r} is unreadable: {type(error).__name__}: {error}") from error

    def _foreign(self, service: dict[str, Any], node: dict[str, Any], checks: list[dict[str, Any]]) -> Instance:
        meta: dict[str, str] = service.get("Meta") or {}
        health = _health(checks)
        weights = service.get("Weights") or {}
        weight = int(weights.get("Warning" if health == "degraded" else "Passing", 1))
        base_path = meta.get("base_path", "")
        scheme = meta.get("scheme", "http")
        return check(
            Instance(
                self.service,
                str(service["ID"]),
                service.get("Address") or node["Address"],
                int(service["Port"]),
                scheme=cast("Scheme", scheme if scheme in SCHEMES - {"asgi"} else "http"),
                # Consul's weight 0 means that it gets no requests.
                health=health if weight > 0 else "unhealthy",
                weight=float(max(1, weight)),
                tags=tuple(service.get("Tags") or ()),
                metadata=MappingProxyType(dict(meta)),
                version=meta.get("version"),
                zone=meta.get(self.zone_key) or (node.get("Meta") or {}).get(self.zone_key),
                base_path=base_path.encode() if base_path.startswith("/") else b"",
                health_check=meta.get("health_check"),
            )
        )


def _own(meta: Mapping[str, str]) -> dict[str, Any] | None:
    """What we wrote into the meta; None for an instance that somebody else has registered."""
    if OWN not in meta:
        return None
    parts = [meta[OWN]]
    while (more := meta.get(f"{OWN}-{len(parts)}")) is not None:
        parts.append(more)
    try:
        own = json.loads("".join(parts))
    except (ValueError, RecursionError) as error:  # anybody who may register can write there
        raise UnreadableError(f"its meta {OWN!r} is no JSON: {error}") from error
    if not isinstance(own, dict) or "ns" not in own:
        raise UnreadableError(f"its meta {OWN!r} is none of ours")
    return own


def _is_over(id: str, checks: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the lease of a registration of ours is over: Consul turns its check to critical then."""
    return any(each["CheckID"] == f"{id}{LEASE}" and each["Status"] == "critical" for each in checks)


def _health(checks: Iterable[Mapping[str, Any]]) -> Health:
    """The worst of all checks, also those of the node and of Consul's maintenance mode."""
    return _worst(*(_STATUS.get(each["Status"], "unknown") for each in checks))


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _worst(*healths: str) -> Health:
    """`healthy` where there is none; `unknown` counts where nothing else is said but that all checks pass."""
    said = [each for each in healths if each != "healthy"]
    return cast("Health", max(said, key=_WORSE.index) if said else "healthy")


def _told_apart(found: list[tuple[str, Instance]]) -> Iterable[Instance]:
    """Instances with ids that differ: Consul's are unique on a node only."""
    count: dict[str, int] = {}
    for _, each in found:
        count[each.id] = count.get(each.id, 0) + 1
    for node, each in found:
        yield each if count[each.id] == 1 else replace(each, id=f"{node}/{each.id}")
