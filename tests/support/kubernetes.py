"""A Kubernetes API for tests: the stand-in of kubernetes_server.py in a process of its own, or a real one.

With FASTAPI_MESH_K8S_KUBECONFIG the contract tests run against the server that it names.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.process import ROOT
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REAL = "FASTAPI_MESH_K8S_KUBECONFIG"


class FakeKubernetes(ServerProcess):
    """The stand-in. `allow` says which tokens it takes; it starts out taking all."""

    kind = "kubernetes"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._cwd = ROOT
        self.url = f"http://127.0.0.1:{self.port}"
        self.tokens: set[str] = set()

    def _command_line(self) -> Sequence[str]:
        return [sys.executable, "-m", "tests.support.kubernetes_server", str(self.port)]

    def _is_ready(self) -> bool:
        with suppress(OSError):
            self.control()
            return self.runs
        return False

    def restart(self) -> None:
        """Kill it and start it again; it keeps its objects and forgets how they came about."""
        state = self.control()
        super().restart()
        self.control(objects=state["objects"], compact=True, version=state["version"], tokens=sorted(self.tokens))

    def compact(self) -> None:
        """Let it forget the history: watches and pages from before are expired."""
        self.control(compact=True)

    def allow(self, *tokens: str) -> None:
        """Take these tokens only; without any, all."""
        self.tokens = set(tokens)
        self.control(tokens=sorted(tokens))

    def forbid(self, *tokens: str) -> None:
        """Let who has one of these tokens do nothing."""
        self.control(forbidden=list(tokens))

    @property
    def requests(self) -> list[str]:
        """What it was asked since `clear`."""
        return list(self.control()["requests"])

    def clear(self) -> None:
        """Be as at the beginning, but for the version."""
        self.tokens = set()
        self.control(tokens=[], forbidden=[], objects=[], compact=True)

    def control(self, **given: object) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("POST" if given else "GET", "/control", json.dumps(given) if given else None)
            return dict(json.loads(connection.getresponse().read()))
        finally:
            connection.close()

    def kubeconfig(self, folder: Path, *, port: int | None = None, token: str = "t0ken") -> Path:
        """A kubeconfig for this server, or for a proxy on `port`."""
        return write_kubeconfig(folder, f"http://127.0.0.1:{port or self.port}", token)


def write_kubeconfig(folder: Path, server: str, token: str) -> Path:
    path = folder / f"kubeconfig-{secrets.token_hex(4)}"
    content = {
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
    }
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


class RealKubernetes:
    """The server that the variable FASTAPI_MESH_K8S_KUBECONFIG names."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def clear(self) -> None:
        """Each test has names of its own."""

    def kubeconfig(self, folder: Path) -> Path:
        assert folder.exists()
        return self._path


@pytest.fixture(scope="session")
def kubernetes_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeKubernetes | RealKubernetes]:
    if path := os.environ.get(REAL):
        yield RealKubernetes(path)
        return
    server = FakeKubernetes(tmp_path_factory.mktemp("kubernetes"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def kubernetes_api(kubernetes_process: FakeKubernetes | RealKubernetes) -> FakeKubernetes | RealKubernetes:
    """A Kubernetes API without objects that matter."""
    kubernetes_process.clear()
    return kubernetes_process


@pytest.fixture
def fake_kubernetes(kubernetes_process: FakeKubernetes | RealKubernetes) -> FakeKubernetes:
    """The stand-in, for what nobody does to a real cluster."""
    if not isinstance(kubernetes_process, FakeKubernetes):
        pytest.skip(f"{REAL} names a real server")
    kubernetes_process.clear()
    return kubernetes_process
