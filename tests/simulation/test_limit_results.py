"""The adaptive limit finds what a service can do, and follows it down and up again."""

from __future__ import annotations

import asyncio

import pytest

from fastapi_mesh.config.policies import AdaptiveLimit, BulkheadPolicy, ServicePolicy
from fastapi_mesh.testing.simulation import Results, Server, Simulation, constant, lognormal, simulate

KNEE = 40
"""Requests at the same time from which on more wait and don't get more done."""


@pytest.mark.spec("X-07")
@pytest.mark.parametrize("seed", [1, 2])
def test_the_limit_converges_near_the_knee_and_comes_back(seed: int) -> None:
    """Under twice the load that a service can bear. Gradient2's fixed point is where calls take `tolerance` = 1.5 times
    as long as usual, plus its queue of 4: 1.5 to 2 times the knee (Netflix concurrency-limits, Gradient2Limit).
    """

    async def scenario(sim: Simulation) -> list[int]:
        (server,) = sim.service("users", [Server("a", lognormal(0.9, 0.3), capacity=KNEE)])
        bulkhead = BulkheadPolicy(max_concurrent=200, adaptive=AdaptiveLimit())
        policy = ServicePolicy(circuit_breaker=None, outlier=None, retry=None, bulkhead=bulkhead)
        client = await sim.client(policy=policy)
        load = sim.supervisor.start(sim.load([client], "users", rate=80, seconds=190), name="load")
        limits = []
        for seconds, capacity in ((100, KNEE), (30, KNEE // 2), (60, KNEE)):
            server.capacity = capacity
            await asyncio.sleep(seconds)
            limits.append(client.states.get("users").seats.limit)
        await load
        return limits

    full, halved, again = simulate(scenario, seed=seed)

    assert KNEE <= full <= 2 * KNEE
    assert halved < 0.75 * full
    assert halved >= KNEE // 2
    assert again > 1.3 * halved
    assert KNEE <= again <= 2.5 * KNEE


@pytest.mark.spec("X-07")
def test_under_overload_a_limit_keeps_those_calls_quick_that_it_lets_through() -> None:
    """Without, each call takes longer the longer the overload lasts; with the limit none waits long (Little's law)."""

    def run(bulkhead: BulkheadPolicy | None) -> Results:
        async def scenario(sim: Simulation) -> Results:
            sim.service("users", [Server("a", constant(1.0), capacity=KNEE)])
            policy = ServicePolicy(circuit_breaker=None, outlier=None, retry=None, bulkhead=bulkhead)
            client = await sim.client(policy=policy)
            return await sim.load([client], "users", rate=60, seconds=60)

        return simulate(scenario, seed=1)

    limited = run(BulkheadPolicy(max_concurrent=200, adaptive=AdaptiveLimit()))
    unlimited = run(None)

    assert limited.percentile(99) < 3.0
    assert unlimited.percentile(99, since=40) > 10.0
    assert limited.between(20, 60).succeeded > 0.9 * KNEE * 40
