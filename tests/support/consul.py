"""Real Consul servers for tests: a plain one, and one with ACLs. Each is a development agent, with its state in memory.

    @pytest.mark.server("consul")
    async def test_...(consul_server: ConsulServer) -> None:
        ... consul_server.url ...
        consul_server.kill()
        consul_server.restart()  # empty

Each kind is started once per test session, on its first use, and runs at the beginning of each test. What tests put
into it stays: they use names of their own, or a namespace of their own.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.process import free_port, listening_ports
from tests.support.server_process import ServerProcess
from tests.support.servers import find

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

MANAGEMENT = "management-token-of-the-tests"
"""The token that may do everything, of the server with ACLs."""


ANOTHER_NODE = "another"
"""A node that tests put into the catalog, with services that no agent has."""


class ConsulServer(ServerProcess):
    """One agent in development mode, on ports below 32768. `url` is its HTTP API."""

    kind = "consul"

    def __init__(self, folder: Path, *, options: Sequence[str] = (), configuration: object = None) -> None:
        """`options` as on its command line, `configuration` as in a file of it."""
        program = find("consul")
        assert program is not None, "tests that use it are marked server('consul')"
        super().__init__(folder)
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [program, "agent", "-dev", "-bind=127.0.0.1", "-client=127.0.0.1", "-node=tests"]
        self._command += [f"-http-port={self.port}", "-grpc-port=-1", "-dns-port=-1", "-serf-wan-port=-1"]
        self._command += [f"-server-port={free_port()}", f"-serf-lan-port={free_port()}", "-log-level=warn", *options]
        self.token = ""
        """The token of `call`."""
        if configuration is not None:
            path = self._folder / "consul.json"
            path.write_text(json.dumps(configuration))
            self._command.append(f"-config-file={path}")

    def _command_line(self) -> Sequence[str]:
        return self._command

    def _is_ready(self) -> bool:
        """Whether it has a leader and has listed itself."""
        with suppress(OSError):
            return self.port in listening_ports(self.pid) and bool(self.call("GET", "/v1/health/service/consul"))
        return False

    def call(self, method: str, path: str, body: object = None) -> object:
        """`server.call("PUT", "/v1/agent/service/register", {...})`. Raises urllib.error.HTTPError."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"X-Consul-Token": self.token}, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            content = answer.read()
        try:
            return json.loads(content) if content else None
        except ValueError:
            return content.decode()

    def write_all(self, calls: Iterable[tuple[str, object]]) -> None:
        """Many PUTs, each a path and a JSON body, over one connection."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            for path, body in calls:
                connection.request("PUT", path, json.dumps(body), {"X-Consul-Token": self.token})
                answer = connection.getresponse()
                content = answer.read()
                assert answer.status == 200, content

    def forget(self, service: str | None = None) -> None:
        """Deregister all services (those of one name), and wait until its catalog has heard of it."""
        registered = self.call("GET", "/v1/agent/services")
        assert isinstance(registered, dict)
        if service is None:
            self.call("PUT", "/v1/catalog/deregister", {"Node": ANOTHER_NODE})
        gone = [row for row in registered.values() if service in (None, row["Service"])]
        self.write_all(
            (f"/v1/agent/service/deregister/{urllib.request.quote(row['ID'], safe='')}", None) for row in gone
        )
        for name in {row["Service"] for row in gone}:
            path = f"/v1/catalog/service/{urllib.request.quote(name, safe='')}"
            for _ in range(500):
                if not self.call("GET", path):
                    break
                time.sleep(0.01)

    def token_for(self, rules: str) -> tuple[str, str]:
        """A new token that may do what `rules` say, and its accessor: `call("DELETE", f"/v1/acl/token/{accessor}")`."""
        name = f"policy-{time.monotonic_ns()}"
        self.call("PUT", "/v1/acl/policy", {"Name": name, "Rules": rules})
        made = self.call("PUT", "/v1/acl/token", {"Policies": [{"Name": name}]})
        assert isinstance(made, dict)
        return made["SecretID"], made["AccessorID"]

    def reset(self) -> None:
        """Make it run, and forget all services and keys."""
        if self.runs:
            self.resume()
        self.start()
        self.forget()
        self.call("DELETE", "/v1/kv/?recurse")


@pytest.fixture(scope="session")
def _consul_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    server = ConsulServer(tmp_path_factory.mktemp("consul"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def consul_server(_consul_server: ConsulServer) -> ConsulServer:
    """A running Consul without services of others. The test is marked `server("consul")`."""
    _consul_server.reset()
    return _consul_server


@pytest.fixture(scope="session")
def _consul_acl_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": MANAGEMENT}, "token_ttl": "0s"}
    server = ConsulServer(tmp_path_factory.mktemp("consul-acl"), configuration={"acl": acl})
    server.token = MANAGEMENT
    server.start()
    yield server
    server.kill()


@pytest.fixture
def consul_acl_server(_consul_acl_server: ConsulServer) -> ConsulServer:
    """A running Consul that denies what no token allows. The test is marked `server("consul")`."""
    _consul_acl_server.reset()
    return _consul_acl_server
