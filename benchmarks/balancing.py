"""What picking an instance costs with each strategy, in CPU nanoseconds per pick, with 3, 10 and 100 instances.

The best of several rounds, since whatever else the machine does only adds. Hashing is measured with 500 keys that come
again and again, and with keys that never do; sticky sessions go by a header, the tenth of a request. Run it with
`nox -s bench`.
"""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING

from fastapi_mesh.balancing import new_picker
from fastapi_mesh.config.balancing import BalancingPolicy
from fastapi_mesh.config.policies import CallPolicy, ServicePolicy
from fastapi_mesh.core.context import CallContext
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.message import Request
from fastapi_mesh.core.state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Sequence

PICKS = 20_000
ROUNDS = 5
SIZES = (3, 10, 100)
KEYS = 500

CASES: dict[str, dict[str, object]] = {
    "round_robin": {"strategy": "round_robin"},
    "round_robin, weights": {"strategy": "round_robin"},
    "random": {"strategy": "random"},
    "random, weights": {"strategy": "random"},
    "least_connections": {"strategy": "least_connections"},
    "least_response_time": {"strategy": "least_response_time"},
    "consistent_hash": {"strategy": "consistent_hash"},
    "consistent_hash, new keys": {"strategy": "consistent_hash"},
    "sticky header": {"sticky_sessions": True},
}


def new_instances(count: int, *, weighted: bool) -> tuple[InstanceState, ...]:
    return tuple(
        InstanceState(Instance("s", f"s-{n}", "127.0.0.1", 9000 + n), 1.0 + n % 3 if weighted else 1.0)
        for n in range(count)
    )


def new_requests(*, fresh: bool) -> list[Request]:
    policy = ServicePolicy()
    state = ServiceState("s", instances=Live(), picker=new_picker(policy.load_balancing))
    context = CallContext(CallPolicy.compile(policy), state)
    other = [(b"x-header-%d" % n, b"value") for n in range(9)]
    return [
        Request(b"GET", "s", b"/items/%d" % n, [*other, (b"x-user-id", b"%d" % (n % KEYS))], b"", context)
        for n in range(PICKS if fresh else KEYS)
    ]


def measure(policy: dict[str, object], instances: Sequence[InstanceState], requests: list[Request]) -> float:
    """Nanoseconds per pick, the loop around it taken off."""
    pick = new_picker(BalancingPolicy.model_validate(policy)).pick
    work = requests * (PICKS // len(requests))
    best = floor = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for _request in work:
            pass
        floor = min(floor, time.process_time() - started)
        started = time.process_time()
        for request in work:
            pick(instances, request)
        best = min(best, time.process_time() - started)
    return (best - floor) / PICKS * 1e9


def main() -> None:
    print(f"Python {platform.python_version()}; CPU ns per pick, best of {ROUNDS} rounds of {PICKS} picks")
    print(f"{'':<28}" + "".join(f"{size:>8}" for size in SIZES) + "  instances")
    known, fresh = new_requests(fresh=False), new_requests(fresh=True)
    for name, policy in CASES.items():
        requests = fresh if "new keys" in name else known
        figures = [measure(policy, new_instances(size, weighted="weights" in name), requests) for size in SIZES]
        print(f"{name:<28}" + "".join(f"{figure:8.0f}" for figure in figures))


if __name__ == "__main__":
    main()
