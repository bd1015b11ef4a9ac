"""The simulator itself: virtual time, seeds, queues, and that the layers in it are the real ones."""

from __future__ import annotations

import asyncio
import time

import pytest

from fastapi_mesh.config.policies import RetryPolicy, ServicePolicy, TimeoutPolicy
from fastapi_mesh.testing.simulation import Results, Server, Simulation, constant, exponential, simulate


def test_an_hour_passes_in_no_time() -> None:
    async def scenario(sim: Simulation) -> float:
        await asyncio.sleep(3600)
        return sim.now

    started = time.monotonic()
    assert simulate(scenario) == pytest.approx(3600)
    assert time.monotonic() - started < 30


def test_a_seed_decides_everything() -> None:
    async def scenario(sim: Simulation) -> list[float]:
        sim.service("users", [Server("a", exponential(0.02), capacity=2), Server("b", exponential(0.05), capacity=2)])
        client = await sim.client()
        return list((await sim.load([client], "users", rate=50, seconds=20)).latencies)

    first = simulate(scenario, seed=7)

    assert len(first) > 500
    assert simulate(scenario, seed=7) == first
    assert simulate(scenario, seed=8) != first


def test_a_queue_is_as_long_as_queueing_theory_says() -> None:
    """M/M/1: the mean time in the system is 1 / (mu - lambda). Kleinrock, Queueing Systems I, 3.2."""

    async def scenario(sim: Simulation) -> Results:
        sim.service("users", [Server("a", exponential(0.01), capacity=1)])
        client = await sim.client()
        return await sim.load([client], "users", rate=70, seconds=600)

    results = simulate(scenario)

    assert results.success_rate == 1.0
    assert sum(results.latencies) / len(results) == pytest.approx(1 / (100 - 70), rel=0.1)


def test_the_layers_are_the_real_ones() -> None:
    async def scenario(sim: Simulation) -> tuple[Results, list[Server]]:
        servers = sim.service("users", [Server("dead", down=True), Server("slow", constant(3)), Server("well")])
        policy = ServicePolicy(timeouts=TimeoutPolicy(attempt_timeout=0.5), retry=RetryPolicy(max_attempts=3))
        clients = [await sim.client(f"client-{n}", policy=policy) for n in range(3)]
        return await sim.load(clients, "users", rate=100, seconds=30), servers

    results, servers = simulate(scenario)

    assert results.success_rate > 0.99
    assert servers[2].served > 0.95 * len(results)
    assert results.percentile(50, since=5) == pytest.approx(0.01)


def test_a_server_works_on_what_was_given_up_and_its_queue_has_an_end() -> None:
    async def scenario(sim: Simulation) -> tuple[Results, Server]:
        (server,) = sim.service("users", [Server("a", constant(1), capacity=1, queue=5)])
        policy = ServicePolicy(
            timeouts=TimeoutPolicy(attempt_timeout=0.5, timeout=0.5), retry=None, circuit_breaker=None, outlier=None
        )
        client = await sim.client(policy=policy)
        results = await sim.load([client], "users", rate=10, seconds=10)
        await asyncio.sleep(10)
        return results, server

    results, server = simulate(scenario)

    assert server.load == 0
    assert server.most == 6
    assert 10 <= server.served <= 16
    assert results.errors["upstream-timeout"] + results.errors["deadline-exceeded"] == server.served
    assert sum(status == 503 for status in results.statuses) == len(results) - server.served


def test_waiting_for_nothing_is_an_error_and_not_a_hang() -> None:
    async def scenario(sim: Simulation) -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="waits for something that will never happen"):
        simulate(scenario)
