"""What EndpointSlices say of the instances of Services (discovery.k8s.io/v1)."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.discovery.base import KnownService
from fastapi_mesh.discovery.lists import check, ordered
from fastapi_mesh.discovery.rows import instance_of
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fastapi_mesh.core.instance import Health, Scheme
    from fastapi_mesh.core.objects import Batch, Object

logger = logging.getLogger("fastapi_mesh.discovery")

SERVICE_LABEL = "kubernetes.io/service-name"
TAG_LABEL = "tag.fastapi-mesh/"
"""The beginning of labels that are tags of a Service: `tag.fastapi-mesh/canary: "true"`. Kubernetes copies a Service's
labels to its slices.
"""
ANNOTATION = "fastapi-mesh/endpoints"
"""On slices that somebody else than Kubernetes' own controller writes: what else is known of endpoints, by name."""

_PROTOCOLS: dict[str, Scheme] = {"http": "http", "https": "https", "kubernetes.io/h2c": "h2c"}
_UNKNOWN: dict[str, Any] = {}


class Slices:
    """The slices of a namespace, and the instances of each service that they make together."""

    def __init__(self, port_name: str | None) -> None:
        self._port_name = port_name
        self._services: dict[str, dict[str, tuple[Instance, ...]]] = {}
        self._service_of: dict[str, str] = {}
        self._lists: dict[str, tuple[Instance, ...]] = {}
        self._tags: dict[str, frozenset[str]] = {}

    def __len__(self) -> int:
        return len(self._service_of)

    def take(self, batch: Batch) -> set[str]:
        """Take over changes; the services whose lists may be others now."""
        changes = dict(batch.changes)
        if batch.complete:
            changes |= dict.fromkeys(self._service_of.keys() - changes.keys())
        affected = set()
        for name, found in changes.items():
            affected |= self._put(name, found)
        for service in affected:
            self._lists.pop(service, None)
        return affected

    def list_of(self, service: str) -> tuple[Instance, ...]:
        """The instances of `service`. Of one pod with an IPv4 and an IPv6 address the first is used."""
        known = self._lists.get(service)
        if known is None:
            slices = self._services.get(service, {})
            found = [each for name in sorted(slices) for each in slices[name]]
            known = ordered(sorted(found, key=lambda each: ":" not in each.address))
            if slices:
                self._lists[service] = known
        return known

    def known(self) -> tuple[KnownService, ...]:
        """All services with an instance, and their tags."""
        services = ((name, self.list_of(name)) for name in sorted(self._services))
        return tuple(
            KnownService(name, frozenset(tag for each in instances for tag in each.tags))
            for name, instances in services
            if instances
        )

    def _put(self, name: str, found: Object | None) -> set[str]:
        affected = set()
        before = self._service_of.pop(name, None)
        if before is not None:
            affected.add(before)
            self._services[before].pop(name)
            if not self._services[before]:
                del self._services[before]
        service = found and (found["metadata"].get("labels") or _UNKNOWN).get(SERVICE_LABEL)
        if found and service:
            affected.add(service)
            self._service_of[name] = service
            self._services.setdefault(service, {})[name] = tuple(self._instances(service, found))
        return affected

    def _instances(self, service: str, found: Object) -> Iterable[Instance]:
        port = _port(found.get("ports") or (), self._port_name)
        if port is None:
            return
        labels = found["metadata"].get("labels") or _UNKNOWN
        tags = tuple(sorted(label.removeprefix(TAG_LABEL) for label in labels if label.startswith(TAG_LABEL)))
        more = _more((found["metadata"].get("annotations") or _UNKNOWN).get(ANNOTATION))
        for endpoint in found.get("endpoints") or ():
            try:
                instance = _instance(service, endpoint, port, tags, more)
                if instance is not None:
                    yield check(instance)
            except (ConfigurationError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                logger.warning("an endpoint of %s in %s can't be used: %s", service, found["metadata"]["name"], error)


def _instance(
    service: str, endpoint: Mapping[str, Any], port: Mapping[str, Any], tags: tuple[str, ...], more: Mapping[str, Any]
) -> Instance | None:
    """The instance that an endpoint is, None for one that has ended.

    A missing condition means true (`ready`, `serving`) and false (`terminating`). A pod that is going is used as those
    that are not ready are: only where there is no other (kube-proxy does likewise with ProxyTerminatingEndpoints).
    """
    conditions = endpoint.get("conditions") or _UNKNOWN
    ready = conditions.get("ready") is not False
    if conditions.get("terminating") and conditions.get("serving") is False:
        return None
    health: Health = "healthy" if ready else "unhealthy"
    address = endpoint["addresses"][0]
    id = (endpoint.get("targetRef") or _UNKNOWN).get("name") or f"{address}:{port['port']}"
    metadata = {
        name: value for name, value in (("node", endpoint.get("nodeName")), ("zones", _zones(endpoint))) if value
    }
    plain = more.get(id)
    if plain is not None:
        told = instance_of(service, id, address, port["port"], plain)
        return told if ready else replace(told, health="unhealthy")
    return Instance(
        service,
        id,
        address,
        port["port"],
        scheme=_scheme(port),
        health=health,
        tags=tags,
        metadata=MappingProxyType(metadata),
        zone=endpoint.get("zone"),
    )


def _zones(endpoint: Mapping[str, Any]) -> str:
    """The zones that a hint of topology-aware routing names."""
    hints = (endpoint.get("hints") or _UNKNOWN).get("forZones") or ()
    return ",".join(each["name"] for each in hints)


def _port(ports: Sequence[Mapping[str, Any]], name: str | None) -> Mapping[str, Any] | None:
    """The port to call: the one called `name`; without a name the one that looks most like HTTP."""
    open_ones = [each for each in ports if each.get("port") and each.get("protocol", "TCP") == "TCP"]
    if name is not None:
        return next((each for each in open_ones if each.get("name") == name), None)
    for likely in (
        lambda port: port.get("name") in ("http", "https"),
        lambda port: port.get("appProtocol") in _PROTOCOLS,
        lambda port: str(port.get("name", "")).startswith("http"),
    ):
        if found := next(filter(likely, open_ones), None):
            return found
    return open_ones[0] if open_ones else None


def _scheme(port: Mapping[str, Any]) -> Scheme:
    protocol = port.get("appProtocol")
    if protocol in _PROTOCOLS:
        return _PROTOCOLS[protocol]
    return "https" if str(port.get("name", "")).startswith("https") or port["port"] == 443 else "http"


def _more(annotation: object) -> Mapping[str, Any]:
    if not annotation:
        return _UNKNOWN
    try:
        found = json.loads(cast("str", annotation))
    except (ValueError, TypeError):
        found = None
    if not isinstance(found, dict):
        logger.warning("the annotation %s is no JSON object", ANNOTATION)
        return _UNKNOWN
    return found
