"""Settings that only Kubernetes has."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fastapi_mesh.config.fields import Frozen, Seconds, ServiceName


class KubernetesConfig(Frozen):
    """What Kubernetes needs to know. Inside a pod nothing: its ServiceAccount says all."""

    kubeconfig: Path | None = Field(
        default=None,
        description="The kubeconfig file; None: the pod's ServiceAccount, else $KUBECONFIG, else ~/.kube/config.",
    )
    context: str | None = Field(default=None, description="The context of the kubeconfig; None: its current one.")
    namespace: ServiceName | None = Field(
        default=None,
        description="The namespace whose Services are found; None: the node's `namespace` unless that is 'default', "
        "else the pod's own.",
    )
    port_name: str | None = Field(
        default=None,
        description="The port of a Service that is called, by name; None: the one called http or https, else the first "
        "that says it speaks HTTP, else the first.",
    )
    config_map: ServiceName = Field(
        default="fastapi-mesh-config", description="The ConfigMap that is the config store; a key is one of its data."
    )
    watch_timeout: Seconds = Field(
        default=60.0,
        description="Seconds after which a watch is begun anew, where it left off; a dead one is noticed then.",
    )
