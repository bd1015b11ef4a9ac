"""What many services in Consul cost a node that uses some of them."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.consul import ConsulServer
from tests.support.process import Processes

pytestmark = [pytest.mark.server("consul")]

READY = re.compile(r"^ready$", re.MULTILINE)


def fill(consul: ConsulServer, services: int, instances: int) -> None:
    """Put them into the catalog as nodes of other machines, over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", consul.port, timeout=30)
    for node in range(instances):
        for number in range(services):
            service = {
                "ID": f"service-{number}-{node}",
                "Service": f"service-{number}",
                "Port": 8000 + number,
                "Tags": ["v1", "canary"],
                "Meta": {"version": "1.2.3", "zone": f"zone-{node % 3}"},
            }
            check = {"CheckID": f"lease-{number}-{node}", "Name": "lease", "Status": "passing"}
            check["ServiceID"] = str(service["ID"])
            body = {"Node": f"node-{node}", "Address": f"10.0.0.{node}", "Service": service, "Check": check}
            body["SkipNodeUpdate"] = number > 0
            connection.request("PUT", "/v1/catalog/register", json.dumps(body))
            answer = connection.getresponse()
            assert answer.read() == b"true\n" or answer.status == 200
    connection.close()


def empty(consul: ConsulServer, instances: int) -> None:
    for node in range(instances):
        consul.call("PUT", "/v1/catalog/deregister", {"Node": f"node-{node}"})


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """MiB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024  # type: ignore[index]


@pytest.mark.anyio
@pytest.mark.soak
async def test_500_services_of_20_instances_of_which_50_are_used_cost_an_idle_node_little(
    processes: Processes, consul_server: ConsulServer
) -> None:
    await asyncio.to_thread(fill, consul_server, 500, 20)
    try:
        child = processes.start(
            [sys.executable, "-m", "tests.scenarios.consul_watcher", str(consul_server.port), "50"], name="watcher"
        )
        await child.ready(READY, timeout=120)
        assert "service-49 20" in child.log
        await asyncio.sleep(5.0)
        before, seconds = cpu_seconds(child.pid), 60.0
        await asyncio.sleep(seconds)
        share, memory = (cpu_seconds(child.pid) - before) / seconds, resident(child.pid)
    finally:
        await asyncio.to_thread(empty, consul_server, 20)
    print(f"\nidle with 50 of 500 services of 20 instances: {share:.2%} of a core, {memory:.0f} MiB")
    assert share < 0.02
    assert memory < 150
