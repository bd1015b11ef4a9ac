"""Counting in memory: each strategy, several windows, waits that are true, and a bounded size."""

from __future__ import annotations

import math
import random
import time

import limits.storage.memory
import limits.strategies
import pytest
from limits import parse

from fastapi_mesh.api_gateway.ratelimit.memory import MemoryCounters
from tests.api_gateway.ratelimit.ratelimit_support import STRATEGIES, Clock, charges


@pytest.mark.spec("X-25")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_as_many_requests_pass_as_the_limit_says(strategy: str) -> None:
    counters = MemoryCounters(1000, now=Clock())

    passed = [counters.charge(charges("10/minute", strategy)).allowed for _ in range(50)]

    assert passed == [True] * 10 + [False] * 40


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_clients_are_counted_apart(strategy: str) -> None:
    counters = MemoryCounters(1000, now=Clock())

    assert counters.charge(charges("1/minute", strategy, key="a")).allowed
    assert counters.charge(charges("1/minute", strategy, key="b")).allowed
    assert not counters.charge(charges("1/minute", strategy, key="a")).allowed


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_left_and_when_there_is_more_is_told(strategy: str) -> None:
    clock = Clock(1_200_000.0)  # a whole minute, so that windows begin here
    counters = MemoryCounters(1000, now=clock)

    first = counters.charge(charges("3/minute", strategy))
    clock.now += 10
    second = counters.charge(charges("3/minute", strategy))

    assert (first.remaining, second.remaining) == (2, 1)
    assert first.soon == pytest.approx(60, abs=0.01)
    assert second.soon == pytest.approx(50, abs=0.01)
    assert first.wait == second.wait == 0


def test_a_moving_window_holds_in_any_interval() -> None:
    clock = Clock()
    counters = MemoryCounters(1000, now=clock)
    passed: list[float] = []

    for _ in range(3000):
        clock.now += random.random()
        if counters.charge(charges("20/minute", "moving")).allowed:
            passed.append(clock.now)

    assert len(passed) > 400
    assert all(later - earlier >= 60 for earlier, later in zip(passed, passed[20:], strict=False))


def test_a_sliding_window_lets_no_double_burst_through_at_its_boundary() -> None:
    clock = Clock(1_200_000.0 + 59)
    counters = MemoryCounters(1000, now=clock)

    before = sum(counters.charge(charges("100/minute", "sliding")).allowed for _ in range(200))
    clock.now += 2
    after = sum(counters.charge(charges("100/minute", "sliding")).allowed for _ in range(200))

    assert before == 100
    assert after <= 2


def test_a_fixed_window_starts_anew() -> None:
    clock = Clock()
    counters = MemoryCounters(1000, now=clock)

    before = sum(counters.charge(charges("100/minute", "fixed")).allowed for _ in range(200))
    clock.now += 60
    after = sum(counters.charge(charges("100/minute", "fixed")).allowed for _ in range(200))

    assert (before, after) == (100, 100)


@pytest.mark.spec("X-25")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_request_that_one_window_refuses_is_counted_in_none(strategy: str) -> None:
    clock = Clock(1_200_000.0)
    counters = MemoryCounters(1000, now=clock)

    passed = [counters.charge(charges("2/second;5/minute", strategy)).allowed for _ in range(10)]
    clock.now += 2
    later = [counters.charge(charges("2/second;5/minute", strategy)).allowed for _ in range(10)]
    clock.now += 2
    last = [counters.charge(charges("2/second;5/minute", strategy)).allowed for _ in range(10)]

    assert sum(passed) == sum(later) == 2
    assert sum(last) == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_tightest_window_is_told(strategy: str) -> None:
    counters = MemoryCounters(1000, now=Clock(1_200_000.0))

    first = counters.charge(charges("10/second;12/minute", strategy))
    for _ in range(9):
        counters.charge(charges("10/second;12/minute", strategy))
    refused = counters.charge(charges("10/second;12/minute", strategy))

    assert (first.window.amount, first.remaining) == (10, 9)
    assert (refused.window.amount, refused.remaining) == (10, 0)
    assert [window.amount for window in refused.broken] == [10]


@pytest.mark.spec("X-25")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_cost_counts_as_much_and_a_refused_one_leaves_room_for_cheaper_requests(strategy: str) -> None:
    counters = MemoryCounters(1000, now=Clock(1_200_000.0))

    assert counters.charge(charges("10/minute", strategy, cost=7)).remaining == 3
    refused = counters.charge(charges("10/minute", strategy, cost=4))
    assert not refused.allowed
    assert refused.remaining == 3
    assert counters.charge(charges("10/minute", strategy, cost=3)).allowed
    assert counters.charge(charges("10/minute", strategy, cost=11)).wait == math.inf


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_after_the_wait_that_was_told_the_request_passes_and_hardly_before(strategy: str) -> None:
    """Retry-After is true, whatever came before."""
    for seed in range(120):
        rand = random.Random(seed)
        clock = Clock(1_000_000 + rand.random() * 1000)
        counters = MemoryCounters(1000, now=clock)
        limit = f"{rand.randint(1, 30)}/{rand.choice(['second', 'minute', '7 second'])};{rand.randint(20, 60)}/hour"
        smallest = min(int(part.partition("/")[0]) for part in limit.split(";"))
        for _ in range(rand.randint(1, 80)):
            clock.now += rand.choice([0, 0, 0.3, 1, 5, 40])
            refused = counters.charge(charges(limit, strategy, cost=rand.randint(1, smallest)))
        cost = rand.randint(1, smallest)
        verdict = counters.charge(charges(limit, strategy, cost=cost))
        if verdict.allowed:
            continue
        assert refused is not None
        start = clock.now
        clock.now = start + verdict.wait * 0.9 - 0.01
        early = counters.charge(charges(limit, strategy, cost=cost)).allowed
        clock.now = start + verdict.wait
        if not early:
            assert counters.charge(charges(limit, strategy, cost=cost)).allowed, (seed, limit, cost, verdict)
        else:
            pytest.fail(f"passed before its time: {(seed, limit, cost, verdict)}")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_when_more_is_promised_there_is_more(strategy: str) -> None:
    for seed in range(80):
        rand = random.Random(seed)
        clock = Clock(1_000_000 + rand.random() * 1000)
        counters = MemoryCounters(1000, now=clock)
        verdict = None
        for _ in range(rand.randint(1, 40)):
            clock.now += rand.choice([0, 0, 0.3, 1, 5, 40])
            verdict = counters.charge(charges("30/minute", strategy))
        assert verdict is not None
        clock.now += verdict.soon
        probe = counters.charge(charges("30/minute", strategy, cost=0))
        assert probe.remaining > verdict.remaining


@pytest.mark.spec("X-25")
@pytest.mark.parametrize(
    ("strategy", "reference"),
    [
        ("fixed", limits.strategies.FixedWindowRateLimiter),
        ("moving", limits.strategies.MovingWindowRateLimiter),
        ("sliding", limits.strategies.SlidingWindowCounterRateLimiter),
    ],
)
def test_the_library_limits_decides_the_same(
    strategy: str, reference: type[limits.strategies.RateLimiter], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(1_600_000_000.0)
    monkeypatch.setattr(time, "time", clock)
    storage = limits.storage.memory.MemoryStorage()
    storage.timer.cancel()
    monkeypatch.setattr(storage, "_MemoryStorage__schedule_expiry", lambda: None)
    theirs, item = reference(storage), parse("20/minute")
    ours = MemoryCounters(1000, now=clock)
    rand = random.Random(7)

    for _ in range(3000):
        clock.now += rand.choice([0, 0, 0.25, 0.5, 2, 9, 70]) * rand.random()  # no round numbers: floats differ there
        cost = rand.choice([1, 1, 1, 2, 5])
        # A fixed window of limits counts refused requests too, so only what can pass is asked of it.
        expected = theirs.test(item, "k", cost=cost) if strategy == "fixed" else True
        expected = expected and theirs.hit(item, "k", cost=cost)
        assert ours.charge(charges("20/minute", strategy, cost=cost)).allowed == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_flood_of_clients_needs_no_more_room_than_allowed_and_spares_the_busy_one(strategy: str) -> None:
    counters = MemoryCounters(500, now=Clock())

    for number in range(6_000):
        counters.charge(charges("1000/hour", strategy, key=f"flood-{number}"))
        if number % 100 == 0:
            verdict = counters.charge(charges("1000/hour", strategy, key="busy"))

    statistics = counters.statistics()
    assert statistics["keys"] == 500
    assert statistics["evicted"] > 5_000
    assert verdict.remaining == 940


def test_counts_that_have_run_out_make_room_before_others_do() -> None:
    clock = Clock()
    counters = MemoryCounters(500, now=clock)
    for number in range(400):
        counters.charge(charges("10/second", key=f"old-{number}"))
    clock.now += 10

    for number in range(400):
        counters.charge(charges("10/second", key=f"new-{number}"))

    assert counters.statistics() == {"keys": 400, "times": 0, "evicted": 0}


def test_the_times_of_moving_windows_are_bounded_too() -> None:
    counters = MemoryCounters(100, now=Clock())

    for number in range(60):
        counters.charge(charges("10000/hour", "moving", key=f"client-{number}", cost=100))

    statistics = counters.statistics()
    assert statistics["times"] <= 1000
    assert statistics["evicted"] >= 50
    assert counters.charge(charges("10000/hour", "moving", key="client-59")).remaining == 9899


def test_the_times_are_counted_right_through_everything() -> None:
    clock = Clock()
    counters = MemoryCounters(100, now=clock)
    rand = random.Random(3)

    for _ in range(8_000):
        clock.now += rand.random() * 0.2
        key = f"client-{rand.randint(0, 300)}"
        counters.charge(charges("8/second;30/minute", "moving", key=key, cost=rand.randint(1, 3)))

    held = sum(len(entry.times) for entry in counters._entries.values() if hasattr(entry, "times"))
    assert counters.statistics()["times"] == held
