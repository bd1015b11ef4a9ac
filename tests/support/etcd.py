"""Real etcd servers for tests: a plain one, one with users, and a cluster of three.

    @pytest.mark.server("etcd")
    async def test_...(etcd_server: EtcdServer) -> None:
        ... etcd_server.url ...
        etcd_server.kill()
        etcd_server.restart()             # with what it knew
        etcd_server.restart(empty=True)

Each kind is started once per test session, on its first use, and runs at the beginning of each test. What tests put
into it stays: they use a namespace of their own (`new_namespace`).
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import urllib.error
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.process import free_port, listening_ports
from tests.support.server_process import ServerProcess
from tests.support.servers import find

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

ROOT_PASSWORD = "root-password-of-the-tests"
_namespaces = itertools.count(1)
_users = itertools.count(1)


def new_namespace() -> str:
    """A namespace that no other test of this session uses."""
    return f"test {next(_namespaces)}"  # the space, since names are escaped


def text(value: str | bytes) -> str:
    """A key or value as the JSON gateway takes it."""
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


class EtcdRefusal(Exception):
    """What a server answered that is not 200."""


class EtcdServer(ServerProcess):
    """One member, on ports below 32768. `url` is its JSON gateway."""

    kind = "etcd"

    def __init__(self, folder: Path, *, name: str = "tests", options: Sequence[str] = (), scheme: str = "http") -> None:
        """`options` as on its command line."""
        program = find("etcd")
        assert program is not None, "tests that use it are marked server('etcd')"
        super().__init__(folder)
        self.name = name
        self.peer_port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.peer_url = f"http://127.0.0.1:{self.peer_port}"
        self.token = ""
        """The token of `call`."""
        self._data = self._folder / "data"
        # Short times make leases of one second possible; bcrypt's least cost makes logins quick.
        self._command = [program, "--name", name, "--data-dir", str(self._data), "--logger", "zap"]
        self._command += ["--log-level", "error", "--heartbeat-interval", "20", "--election-timeout", "200"]
        self._command += ["--bcrypt-cost", "4", "--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        self._command += ["--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url]
        self.members = f"{name}={self.peer_url}"
        self._options = list(options)

    def _command_line(self) -> Sequence[str]:
        return [*self._command, "--initial-cluster", self.members, *self._options]

    def _is_ready(self) -> bool:
        """Whether it has a leader."""
        if self.port not in listening_ports(self.pid):
            return False
        if not self.url.startswith("http:"):
            return True
        with suppress(OSError, EtcdRefusal):
            return bool(self.call("maintenance/status", {}).get("leader"))
        return False

    def call(self, path: str, body: Mapping[str, object]) -> dict[str, object]:
        """`server.call("kv/put", {"key": text("a"), "value": text("b")})`. Raises EtcdRefusal, OSError."""
        headers = {"Authorization": self.token} if self.token else {}
        request = urllib.request.Request(f"{self.url}/v3/{path}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise EtcdRefusal(f"{path}: {error.code} {error.read().decode(errors='replace')}") from None

    def put(self, key: str, value: str | bytes) -> None:
        self.call("kv/put", {"key": text(key), "value": text(value)})

    def keys(self, prefix: str) -> list[str]:
        """The names of all keys that begin with `prefix`."""
        body = {"key": text(prefix), "range_end": text(prefix[:-1] + chr(ord(prefix[-1]) + 1)), "keys_only": True}
        found = self.call("kv/range", body).get("kvs", [])
        assert isinstance(found, list)
        return [base64.b64decode(each["key"]).decode() for each in found]

    def delete(self, prefix: str) -> None:
        """Delete all keys that begin with `prefix`; their leases stay."""
        end = text(prefix[:-1] + chr(ord(prefix[-1]) + 1))
        self.call("kv/deleterange", {"key": text(prefix), "range_end": end})

    def revoke_leases(self) -> None:
        """End all leases, of all tests: those of others register anew."""
        for each in self.call("kv/lease/leases", {}).get("leases", []):  # type: ignore[attr-defined]  # JSON
            with suppress(EtcdRefusal):  # it has just ended by itself
                self.call("lease/revoke", {"ID": each["ID"]})

    def compact(self) -> None:
        """Forget all old revisions."""
        header = self.call("kv/range", {"key": text("x")})["header"]
        assert isinstance(header, dict)
        with suppress(EtcdRefusal):  # nothing has changed since the last time
            self.call("kv/compaction", {"revision": header["revision"], "physical": True})

    # Users

    def enable_users(self) -> None:
        """Ask for credentials from now on; `call` has those of root."""
        self.call("auth/user/add", {"name": "root", "password": ROOT_PASSWORD})
        self.call("auth/role/add", {"name": "root"})
        self.call("auth/user/grant", {"user": "root", "role": "root"})
        self.call("auth/enable", {})
        self.log_in()

    def log_in(self) -> None:
        """Get a token for `call`; a restart ends the one it has."""
        self.token = ""
        self.token = str(self.call("auth/authenticate", {"name": "root", "password": ROOT_PASSWORD})["token"])

    def user(self, prefix: str, *, rights: str = "READWRITE") -> tuple[str, str]:
        """A new user and its password, with `rights` (READ, WRITE, READWRITE) on keys that begin with `prefix`."""
        name = f"user{next(_users)}"
        password = f"password-of-{name}"
        self.call("auth/user/add", {"name": name, "password": password})
        self.call("auth/role/add", {"name": name})
        end = text(prefix[:-1] + chr(ord(prefix[-1]) + 1))
        permission = {"permType": rights, "key": text(prefix), "range_end": end}
        self.call("auth/role/grant", {"name": name, "perm": permission})
        self.call("auth/user/grant", {"user": name, "role": name})
        return name, password

    # Faults

    def restart(self, *, empty: bool = False) -> None:
        """Start it again on the same port; `empty`: it has lost what it knew."""
        self.kill()
        if empty:
            shutil.rmtree(self._data, ignore_errors=True)
        self.start()
        if self.token:
            self.log_in()

    def reset(self) -> None:
        """Make it run."""
        if self.runs:
            self.resume()
        self.start()


class EtcdCluster:
    """Three members."""

    def __init__(self, folder: Path) -> None:
        self.servers = [EtcdServer(folder, name=f"member{number}") for number in range(3)]
        members = ",".join(each.members for each in self.servers)
        for each in self.servers:
            each.members = members
        self.reset()

    def reset(self) -> None:
        """Make all of it run."""
        for each in self.servers:
            if each.runs:
                each.resume()
            each.start(wait=False)
        for each in self.servers:
            each.wait_ready()

    def kill(self) -> None:
        for each in self.servers:
            each.kill()


@pytest.fixture(scope="session")
def _etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def etcd_server(_etcd_server: EtcdServer) -> EtcdServer:
    """A running etcd. The test is marked `server("etcd")`."""
    _etcd_server.reset()
    return _etcd_server


@pytest.fixture(scope="session")
def _etcd_users_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path_factory.mktemp("etcd-users"))
    try:
        server.start()
        server.enable_users()
        yield server
    finally:
        server.kill()


@pytest.fixture
def etcd_users_server(_etcd_users_server: EtcdServer) -> EtcdServer:
    """A running etcd that asks for a user and a password. The test is marked `server("etcd")`."""
    _etcd_users_server.reset()
    _etcd_users_server.log_in()
    return _etcd_users_server


@pytest.fixture(scope="session")
def _etcd_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(tmp_path_factory.mktemp("etcd-cluster"))
    yield cluster
    cluster.kill()


@pytest.fixture
def etcd_cluster(_etcd_cluster: EtcdCluster) -> EtcdCluster:
    """A running cluster of three. The test is marked `server("etcd")`."""
    _etcd_cluster.reset()
    return _etcd_cluster
