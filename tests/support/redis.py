"""Real Redis servers for tests: a single one, one with Sentinels and a replica, and a Cluster of six.

    @pytest.mark.server("redis")
    async def test_...(redis_server: RedisServer) -> None:
        ... redis_server.url ...
        redis_server.kill()
        redis_server.restart()

Each kind is started once per test session, on its first use, and is empty and complete at the beginning of each test.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.process import free_port, listening_ports
from tests.support.server_process import ServerProcess
from tests.support.servers import find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

SLOTS = 16384
PRIMARY_NAME = "limits"
"""What the Sentinels call the primary that they watch."""

Reply = str | int | list["Reply"] | None


class RedisError(Exception):
    """What a server answered with a minus."""


def command(port: int, *words: str, timeout: float = 5.0) -> Reply:
    """Send one command on a connection of its own, and return the answer (RESP2). Raises OSError, RedisError."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection, connection.makefile("rwb") as stream:
        encoded = [word.encode() for word in words]
        stream.write(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(each), each) for each in encoded))
        stream.flush()
        return _reply(stream.readline, stream.read)


def _reply(readline: Callable[[], bytes], read: Callable[[int], bytes]) -> Reply:
    line = readline()
    if not line:
        raise ConnectionResetError("the server closed the connection")
    kind, rest = line[:1], line[1:-2].decode()
    if kind == b"-":
        raise RedisError(rest)
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == "-1" else read(int(rest) + 2)[:-2].decode("latin-1")
    if kind == b"*":
        return None if rest == "-1" else [_reply(readline, read) for _ in range(int(rest))]
    return rest


def _wait(condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    end = time.monotonic() + timeout
    while True:
        with suppress(OSError, RedisError):
            if condition():
                return
        if time.monotonic() > end:
            raise RuntimeError(f"it never came true that {what}")
        time.sleep(0.02)


class RedisServer(ServerProcess):
    """One server process, on a port below 32768 and on a Unix socket. `url` and `unix_url` are for clients."""

    kind = "redis"

    def __init__(self, folder: Path, *options: str, sentinel: str = "") -> None:
        """`options` as on its command line; `sentinel` is the content of a configuration file that makes it one."""
        super().__init__(folder)
        self.url = f"redis://127.0.0.1:{self.port}"
        self._socket = self._folder / "s"
        self.unix_url = f"redis+unix://{self._socket}"
        program = find("redis")
        assert program is not None, "tests that use it are marked server('redis')"
        self._command = [program]
        if sentinel:
            configuration = self._folder / "sentinel.conf"
            configuration.write_text(sentinel)
            self._command += [str(configuration), "--sentinel"]
        else:
            self._command += ["--save", "", "--appendonly", "no", "--unixsocket", str(self._socket)]
        self._command += ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), *options]

    def _command_line(self) -> Sequence[str]:
        return self._command

    def _is_ready(self) -> bool:
        with suppress(OSError, RedisError):
            return self.port in listening_ports(self.pid) and self.command("PING") == "PONG"
        return False

    def command(self, *words: str) -> Reply:
        """`redis_server.command("GET", "key")`."""
        return command(self.port, *words)

    def keys(self) -> list[str]:
        """The names of all keys."""
        found = self.command("KEYS", "*")
        assert isinstance(found, list)
        return sorted(str(each) for each in found)

    def reset(self) -> None:
        """Make it run, and empty."""
        if self.runs:
            self.resume()
        self.start()
        self.command("FLUSHALL")
        self.command("CONFIG", "RESETSTAT")


class RedisSentinel:
    """A primary with a replica, and three Sentinels that let the replica take over when the primary is gone.

    `url` is `redis+sentinel://host:port,host:port,host:port/name`.
    """

    def __init__(self, folder: Path) -> None:
        self.servers = [RedisServer(folder, "--repl-diskless-sync-delay", "0") for _ in range(2)]
        for server in self.servers:
            server.start()
        self.servers[1].command("REPLICAOF", "127.0.0.1", str(self.servers[0].port))
        _wait(lambda: self._is_replica(self.servers[1]), "the replica follows")
        watched = (
            f"sentinel monitor {PRIMARY_NAME} 127.0.0.1 {self.servers[0].port} 2\n"
            f"sentinel down-after-milliseconds {PRIMARY_NAME} 400\nsentinel failover-timeout {PRIMARY_NAME} 3000\n"
        )
        self.sentinels = [RedisServer(folder, sentinel=watched) for _ in range(3)]
        for sentinel in self.sentinels:
            sentinel.start()
        _wait(lambda: all(map(self._knows_all, self.sentinels)), "the sentinels know the replica and each other")
        self.url = "redis+sentinel://" + ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        self.url += f"/{PRIMARY_NAME}"

    @property
    def primary(self) -> RedisServer:
        """The server that the Sentinels call the primary now."""
        address = self.sentinels[0].command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY_NAME)
        assert isinstance(address, list)
        return next(server for server in self.servers if str(server.port) == address[1])

    def kill_primary(self) -> RedisServer:
        """Kill the primary; does not wait for the failover. Returns the one that was killed."""
        killed = self.primary
        killed.kill()
        return killed

    def wait_failover(self, killed: RedisServer) -> None:
        """Wait until the other server is the primary and takes writes."""
        other = next(server for server in self.servers if server is not killed)
        _wait(lambda: self.primary is other and _role(other) == "master", "the replica took over")

    def reset(self) -> None:
        """Make all of it run, the killed one as a replica, and empty it."""
        for server in (*self.sentinels, *self.servers):
            server.start()
        primary = self.primary
        replica = next(server for server in self.servers if server is not primary)
        if _role(replica) == "master":  # it was killed, and the Sentinels would tell it within ten seconds only
            replica.command("REPLICAOF", "127.0.0.1", str(primary.port))
        _wait(lambda: self._is_replica(replica) and self.primary is primary, "the replica follows")
        primary.command("FLUSHALL")

    def kill(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.kill()

    @staticmethod
    def _is_replica(server: RedisServer) -> bool:
        return "master_link_status:up" in str(server.command("INFO", "replication"))

    @staticmethod
    def _knows_all(sentinel: RedisServer) -> bool:
        fields = sentinel.command("SENTINEL", "MASTER", PRIMARY_NAME)
        assert isinstance(fields, list)
        known = dict(zip(fields[::2], fields[1::2], strict=True))
        return known["num-slaves"] == "1" and known["num-other-sentinels"] == "2"


def _role(server: RedisServer) -> str:
    role = server.command("ROLE")
    assert isinstance(role, list)
    return str(role[0])


class RedisCluster:
    """A Cluster of three primaries with a replica each. `url` is `redis+cluster://host:port,...` with the primaries."""

    def __init__(self, folder: Path) -> None:
        self.servers = []
        self._bus: dict[RedisServer, int] = {}
        for number in range(6):
            bus = free_port()
            server = RedisServer(
                folder,
                *("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "1000"),
                *("--repl-diskless-sync-delay", "0", "--cluster-config-file", f"nodes-{number}.conf"),
                *("--repl-ping-replica-period", "1"),
            )
            self._bus[server] = bus
            self.servers.append(server)
            server.start(wait=False)
        for server in self.servers:
            server.wait_ready()
        self._form()
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{each.port}" for each in self.servers[:3])

    def _form(self) -> None:
        first = self.servers[0]
        for server in self.servers[1:]:
            first.command("CLUSTER", "MEET", "127.0.0.1", str(server.port), str(self._bus[server]))
        bounds = [SLOTS * number // 3 for number in range(4)]
        for number, server in enumerate(self.servers[:3]):
            server.command("CLUSTER", "ADDSLOTSRANGE", str(bounds[number]), str(bounds[number + 1] - 1))
        names = [str(server.command("CLUSTER", "MYID")) for server in self.servers]
        for number, replica in enumerate(self.servers[3:]):

            def replicates(replica: RedisServer = replica, primary: str = names[number]) -> bool:
                return replica.command("CLUSTER", "REPLICATE", primary) == "OK"

            _wait(replicates, "a node of the cluster knows its primary")
        self.wait_ready()

    def wait_ready(self) -> None:
        _wait(lambda: all(map(self._is_ready, self.servers)), "the cluster is whole")

    @staticmethod
    def _is_ready(server: RedisServer) -> bool:
        info = str(server.command("CLUSTER", "INFO"))
        slots = server.command("CLUSTER", "SLOTS")
        complete = isinstance(slots, list) and all(isinstance(part, list) and len(part) == 4 for part in slots)
        return "cluster_state:ok" in info and f"cluster_slots_ok:{SLOTS}" in info and complete

    @property
    def primaries(self) -> Sequence[RedisServer]:
        return [server for server in self.servers if server.runs and _role(server) == "master"]

    def reset(self) -> None:
        """Make all of it run, and empty it."""
        for server in self.servers:
            server.start()
        self.wait_ready()
        for server in self.primaries:
            server.command("FLUSHALL")

    def kill(self) -> None:
        for server in self.servers:
            server.kill()


@pytest.fixture(scope="session")
def _redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_server(_redis_server: RedisServer) -> RedisServer:
    """A running, empty Redis. The test is marked `server("redis")`."""
    _redis_server.reset()
    return _redis_server


@pytest.fixture(scope="session")
def _redis_sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSentinel]:
    servers = RedisSentinel(tmp_path_factory.mktemp("sentinel"))
    yield servers
    servers.kill()


@pytest.fixture
def redis_sentinel(_redis_sentinel: RedisSentinel) -> RedisSentinel:
    """A running, empty Redis under Sentinels. The test is marked `server("redis")`."""
    _redis_sentinel.reset()
    return _redis_sentinel


@pytest.fixture(scope="session")
def _redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    servers = RedisCluster(tmp_path_factory.mktemp("cluster"))
    yield servers
    servers.kill()


@pytest.fixture
def redis_cluster(_redis_cluster: RedisCluster) -> RedisCluster:
    """A running, empty Redis Cluster. The test is marked `server("redis")`."""
    _redis_cluster.reset()
    return _redis_cluster
