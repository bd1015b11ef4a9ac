"""The port to Kubernetes: what a registry and a config store need of its API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

Kind = Literal["endpointslices", "configmaps"]
Object = Mapping[str, Any]
"""An object as its JSON is, `metadata` and all."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Objects by name, None for one that is gone. `complete`: these are all there are."""

    changes: Mapping[str, Object | None] = field(default_factory=dict)
    complete: bool = False


class Objects(Protocol):
    """A client of the API; `wire.kubernetes.KubernetesApi` is one.

    Raises ServiceUnavailableError with `status_code` for an answer that is an error, and UpstreamConnectionError,
    UpstreamProtocolError and UpstreamTimeoutError.
    """

    @property
    def namespace(self) -> str:
        """The namespace of this pod, or of the kubeconfig's context."""
        ...

    def follow(self, kind: Kind, namespace: str, name: str | None = None) -> AsyncGenerator[Batch, None]:
        """Yield all objects (or the one called `name`), then each change. Never ends by itself."""
        ...

    async def first(self, kind: Kind, namespace: str) -> None:
        """Ask for one object, to learn whether that is allowed."""
        ...

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """The object called `name`; None where there is none."""
        ...

    async def put_data(self, namespace: str, name: str, data: Mapping[str, str | None]) -> None:
        """Set keys of a ConfigMap, which is made where there is none; None removes a key."""
        ...

    async def aclose(self) -> None:
        """Close every connection. Safe to call twice."""
        ...
