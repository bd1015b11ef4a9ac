"""What the literature says of such layers, found again with ours: each with its source and its tolerance."""

from __future__ import annotations

import asyncio
import time

import pytest

from fastapi_mesh.config.policies import BreakerPolicy, RetryPolicy, ServicePolicy, TimeoutPolicy
from fastapi_mesh.exceptions import ServiceUnavailableError
from fastapi_mesh.testing.simulation import Results, Server, Simulation, constant, exponential, simulate

SEEDS = [1, 2]


def failing(status: int = 503) -> Server:
    return Server(f"s{status}", constant(0.01), status=lambda random, now: status)


# Retries


@pytest.mark.spec("X-04")
@pytest.mark.parametrize("seed", SEEDS)
def test_when_everything_fails_retries_add_at_most_a_fifth(seed: int) -> None:
    """A retry budget of 20 % (Finagle, RetryBudget). Its floor of 10 a second per client is paid apart."""

    async def scenario(sim: Simulation) -> tuple[int, int]:
        (server,) = sim.service("users", [failing()])
        policy = ServicePolicy(circuit_breaker=None, outlier=None, retry=RetryPolicy(max_attempts=4, base_delay=0.01))
        client = await sim.client(policy=policy)
        results = await sim.load([client], "users", rate=100, seconds=20)
        return server.accepted, len(results)

    attempts, calls = simulate(scenario, seed=seed)

    floor = 10 * 20
    assert calls < attempts <= 1.2 * calls + floor + 100  # 10 s of the floor may be saved up


@pytest.mark.spec("X-04", "A6")
@pytest.mark.parametrize("seed", SEEDS)
def test_two_hops_do_not_multiply_their_retries(seed: int) -> None:
    """Retries at each of two layers would be (1.2)^2 of the calls, and 9 without budgets (Google SRE Book, 22): an
    answer that says it was refused by the mesh further in is not repeated.
    """

    async def scenario(sim: Simulation) -> tuple[int, int, int]:
        (database,) = sim.service("database", [failing()])
        policy = ServicePolicy(circuit_breaker=None, outlier=None, retry=RetryPolicy(max_attempts=3, base_delay=0.01))
        middle = await sim.client("middle", policy=policy)
        servers = sim.service("orders", [Server(f"o{n}", calls=(middle, "database")) for n in range(2)])
        front = await sim.client("front", policy=policy)
        results = await sim.load([front], "orders", rate=100, seconds=20)
        return len(results), sum(each.accepted for each in servers), database.accepted

    calls, first_hop, second_hop = simulate(scenario, seed=seed)

    assert first_hop == calls
    assert second_hop <= 1.2 * calls + 10 * 20 + 100


@pytest.mark.spec("X-04", "A6")
def test_a_retry_around_a_retry_adds_nothing() -> None:
    """A decorator's retries around those of the calls in it: nested, three attempts each would be nine."""

    async def scenario(sim: Simulation) -> tuple[int, int]:
        (server,) = sim.service("users", [failing()])
        policy = ServicePolicy(circuit_breaker=None, outlier=None, retry=RetryPolicy(max_attempts=3, base_delay=0.01))
        client = await sim.client(policy=policy)

        @client.retry_policy("users")
        async def fetch() -> None:
            await client.call_service("users", "/")

        for _ in range(1000):
            with pytest.raises(ServiceUnavailableError):
                await fetch()
            await asyncio.sleep(0.01)
        return server.accepted, 1000

    attempts, calls = simulate(scenario)

    assert calls < attempts <= 1.2 * calls + 10 * 30  # the calls and their waits take less than 30 s


# Metastable failure


def overloaded(policy: ServicePolicy, *, seed: int, count: int = 5) -> Results:
    """`count` servers at 90 % of what they can do; for 30 s each request takes 3 s instead of 50 ms."""

    async def scenario(sim: Simulation) -> Results:
        servers = [Server(f"s{n}", exponential(0.05), capacity=1, queue=100) for n in range(count)]
        sim.service("users", servers)
        clients = [await sim.client(f"c{n}", policy=policy) for n in range(3)]
        results = Results()
        load = sim.load(clients, "users", rate=18 * count, seconds=60, into=results)
        running = sim.supervisor.start(load, name="load")
        await asyncio.sleep(10)
        for each in servers:
            each.latency = constant(3)
        await asyncio.sleep(30)
        for each in servers:
            each.latency = exponential(0.05)
        await running
        return results

    return simulate(scenario, seed=seed)


@pytest.mark.spec("X-04", "X-08")
@pytest.mark.parametrize("seed", SEEDS)
def test_after_an_outage_at_90_percent_load_all_is_well_within_ten_seconds(seed: int) -> None:
    """Retries keep down what has lost the cause of its outage: metastable failures, Bronson et al., HotOS 2021."""
    timeouts = TimeoutPolicy(attempt_timeout=2.0, timeout=4.0)
    breaker = BreakerPolicy(recovery_timeout=5.0)  # of the default, 60 s, all would have to be waited for

    ours = overloaded(ServicePolicy(timeouts=timeouts, circuit_breaker=breaker), seed=seed)

    assert ours.between(0, 10).success_rate > 0.99
    assert ours.between(15, 40).success_rate < 0.5
    assert ours.between(50, 60).success_rate > 0.95


@pytest.mark.parametrize("seed", SEEDS[:1])
def test_three_naive_retries_keep_it_down(seed: int) -> None:
    timeouts = TimeoutPolicy(attempt_timeout=2.0, timeout=30.0)
    retry = RetryPolicy(max_attempts=4, base_delay=0.01, max_delay=0.01, budget_ratio=10.0)
    naive = ServicePolicy(timeouts=timeouts, circuit_breaker=None, outlier=None, retry=retry)

    results = overloaded(naive, seed=seed, count=3)

    assert results.between(0, 10).success_rate > 0.99
    assert results.between(50, 60).success_rate < 0.6


# How quick it is


@pytest.mark.soak
def test_a_million_calls_take_minutes_and_not_hours() -> None:
    async def scenario(sim: Simulation) -> Results:
        sim.service("users", [Server(f"s{n}", exponential(0.01)) for n in range(10)])
        clients = [await sim.client(f"c{n}") for n in range(5)]
        return await sim.load(clients, "users", rate=2000, seconds=500)

    started = time.process_time()
    results = simulate(scenario, seed=1)
    seconds = time.process_time() - started

    print(f"{len(results)} calls in {seconds:.0f} s of CPU, {seconds / len(results) * 1e6:.0f} us each")
    assert len(results) > 990_000
    assert results.success_rate == 1.0
    assert seconds < 600
