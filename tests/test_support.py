"""The test helpers themselves: a check that never fires is worse than none."""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
import socket
import sys

import pytest

from tests.support import servers
from tests.support.leaks import leaked_sockets, leaked_tasks, open_sockets
from tests.support.process import Processes, free_port


@pytest.mark.anyio
async def test_a_task_that_goes_on_is_reported_and_one_that_ends_is_not():
    before = asyncio.all_tasks()
    ending = asyncio.get_running_loop().create_task(asyncio.sleep(0), name="ending")
    staying = asyncio.get_running_loop().create_task(asyncio.Event().wait(), name="staying")

    lines = await leaked_tasks(before)

    assert [line.split(":")[0] for line in lines] == ["task staying"]
    staying.cancel()
    await asyncio.gather(ending, staying, return_exceptions=True)


@pytest.mark.anyio
async def test_an_open_socket_is_reported_with_its_port():
    before = open_sockets()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        lines = await leaked_sockets(before)

        assert lines == [f"file descriptor {listener.fileno()}: TCP socket, local port {port}, remote port 0"]
    assert await leaked_sockets(before) == []


def test_ports_are_below_the_ephemeral_range_and_never_given_twice():
    ports = [free_port() for _ in range(50)]

    assert len(set(ports)) == 50
    assert max(ports) < 32768


def test_a_traceback_in_a_child_s_log_fails_the_test_that_started_it(tmp_path):
    with pytest.raises(AssertionError, match="broken logged a traceback"), Processes(tmp_path) as running:
        running.start([sys.executable, "-c", "raise SystemError('planted')"], name="broken").wait()


def test_a_child_that_dies_before_it_is_ready_is_an_error_with_its_log(processes):
    child = processes.start([sys.executable, "-c", "print('port taken'); raise SystemExit(3)"])

    with pytest.raises(RuntimeError, match=re.compile("ended with 3.*port taken", re.DOTALL)):
        child.wait_ready()


def test_a_missing_server_fails_only_where_servers_are_required(monkeypatch, tmp_path):
    monkeypatch.setattr(servers, "find", lambda name: None)
    monkeypatch.setattr(servers, "REFUSED", tmp_path / "refused")

    monkeypatch.delenv("MESH_REQUIRE_SERVERS", raising=False)
    monkeypatch.delenv("TESTS_REQUIRE_SERVERS", raising=False)
    relaxed = servers.explain_missing("redis")
    monkeypatch.setenv("MESH_REQUIRE_SERVERS", "1")
    required = servers.explain_missing("redis")
    servers.REFUSED.write_text("redis\n")
    refused = servers.explain_missing("redis")

    assert (relaxed.is_failure, required.is_failure, refused.is_failure) == (False, True, False)


def test_servers_that_are_here_can_be_left_out(monkeypatch, tmp_path):
    (tmp_path / "wrk").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    monkeypatch.delenv("TESTS_WITHOUT_SERVERS", raising=False)
    found = servers.find("wrk")
    monkeypatch.setenv("TESTS_WITHOUT_SERVERS", "1")

    assert (found, servers.find("wrk")) == (str(tmp_path / "wrk"), None)


def test_the_fixtures_of_the_package_are_found_by_any_project_s_pytest():
    (entry,) = importlib.metadata.entry_points(group="pytest11", name="fastapi_mesh")
    plugin = entry.load()
    assert {"fake_mesh", "fake_clock"} <= set(vars(plugin))
