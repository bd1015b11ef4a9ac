"""What many services in etcd cost a node that uses some of them."""

from __future__ import annotations

import asyncio
import json
import re
import sys

import pytest

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.discovery.etcd_rows import Space, document_of, key_of
from fastapi_mesh.discovery.rows import Owner, Row
from tests.scenarios.test_consul_scale import READY, cpu_seconds, resident
from tests.support.etcd import EtcdServer, new_namespace, text
from tests.support.process import ChildProcess, Processes

pytestmark = [pytest.mark.anyio, pytest.mark.server("etcd")]

PER_TRANSACTION = 100  # etcd takes 128


def row(number: int, node: int) -> Row:
    instance = Instance(
        f"service-{number}",
        f"service-{number}-10.0.0.{node}-{8000 + number}",
        f"10.0.0.{node}",
        8000 + number,
        tags=("v1", "canary"),
        metadata={"started": "1700000000.123", "team": "core"},
        version="1.2.3",
        zone=f"zone-{node % 3}",
        health_check="/health",
    )
    return Row(instance, Owner(f"{node:016}", 0.0), number, 15.0, 0.0)


def fill(etcd: EtcdServer, folder: bytes, services: int, instances: int) -> None:
    """Put them there without a lease, as nodes of other machines would."""
    rows = [row(number, node) for node in range(1, instances + 1) for number in range(services)]
    for start in range(0, len(rows), PER_TRANSACTION):
        puts = [
            {"request_put": {"key": text(folder + key_of(each)), "value": text(document_of(each))}}
            for each in rows[start : start + PER_TRANSACTION]
        ]
        etcd.call("kv/txn", {"success": puts})


async def watching(processes: Processes, etcd: EtcdServer, prefix: str, used: int) -> ChildProcess:
    command = [sys.executable, "-m", "tests.scenarios.etcd_watcher", str(etcd.port), prefix, str(used)]
    return await processes.start(command, name="watcher").ready(READY, timeout=120)


async def measured(child: ChildProcess, seconds: float) -> tuple[float, float]:
    """The share of a core that it uses, and its MiB."""
    before = cpu_seconds(child.pid)
    await asyncio.sleep(seconds)
    return (cpu_seconds(child.pid) - before) / seconds, resident(child.pid)


async def cost(
    processes: Processes, etcd: EtcdServer, *, services: int, used: int, seconds: float
) -> tuple[float, float]:
    prefix = new_namespace().replace(" ", "-")
    folder = Space(prefix).folder("instances")
    await asyncio.to_thread(fill, etcd, folder, services, 20)
    try:
        child = await watching(processes, etcd, prefix, used)
        assert f"service-{used - 1} 20" in child.log
        await asyncio.sleep(seconds / 10)
        share, memory = await measured(child, seconds)
    finally:
        await asyncio.to_thread(etcd.delete, f"{prefix}/")
    print(f"\nidle with {used} of {services} services of 20 instances: {share:.2%} of a core, {memory:.0f} MiB")
    return share, memory


@pytest.mark.soak
async def test_500_services_of_20_instances_of_which_50_are_used_cost_an_idle_node_little(
    processes: Processes, etcd_server: EtcdServer
) -> None:
    share, memory = await cost(processes, etcd_server, services=500, used=50, seconds=60.0)

    assert share < 0.02
    assert memory < 150


async def test_services_that_are_not_used_cost_an_idle_node_little(
    processes: Processes, etcd_server: EtcdServer
) -> None:
    share, memory = await cost(processes, etcd_server, services=100, used=10, seconds=3.0)

    assert share < 0.2  # on a busy machine; the long version measures
    assert memory < 150


def test_a_row_is_of_the_size_that_real_ones_have() -> None:
    assert 300 < len(json.dumps(document_of(row(1, 1)).decode())) < 800
    assert re.match(rb"service-1/", key_of(row(1, 1)))
