"""Settings that only Kubernetes has."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fastapi_mesh.config.fields import Frozen


class KubernetesConfig(Frozen):
    """What Kubernetes needs to know. Inside a pod nothing: its ServiceAccount says all."""

    kubeconfig: Path | None = Field(
        default=None,
        description="The kubeconfig file; None: the pod's ServiceAccount, else $KUBECONFIG, else ~/.kube/config.",
    )
    context: str | None = Field(default=None, description="The context of the kubeconfig; None: its current one.")
