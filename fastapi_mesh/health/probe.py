"""Active probes: asks every instance of the services in use how it is, each at its own pace, few at the same time."""

from __future__ import annotations

import contextvars
import random
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING

from fastapi_mesh.config.policies import CallPolicy, ServicePolicy, TimeoutPolicy
from fastapi_mesh.core.context import CallContext
from fastapi_mesh.core.events import InstanceHealthChanged, InstanceProbed, InstancesProbed
from fastapi_mesh.core.message import Request
from fastapi_mesh.exceptions import MeshError
from fastapi_mesh.health.verdict import Finding, Row, read

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from fastapi_mesh.config.probes import ProbePolicy
    from fastapi_mesh.core.clock import Clock, Timer
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.instance import InstanceState
    from fastapi_mesh.core.message import Header, Response
    from fastapi_mesh.core.state import ServiceState
    from fastapi_mesh.core.tasks import Supervisor

JITTER = 0.2
"""Share of the interval by which a pause is longer or shorter, so that instances are not probed in step."""
FIRST_WITHIN = 1.0
"""Seconds within which a new instance is probed for the first time, at random."""
MOST_AT_ONCE = 64
"""Probes of one process that run at the same time; others wait for their turn, in order."""
READ_AT_MOST = 64 * 1024
"""Bytes of an answer that are read; a longer one is judged by its status alone, and its connection closed."""

TEMPLATE = "health check"
"""The template of a probe's context, by which it can be told from a call."""
HEADERS: tuple[Header, ...] = ((b"accept", b"application/json, */*"), (b"user-agent", b"fastapi-mesh-probe"))


class Probes:
    """Probes the instances of each service that it is told to `follow`, until it is told to `forget` it.

    `wire` sends a request to `request.context.instance`, as calls do, but nothing of a probe counts for breakers,
    ejections or calls in flight. What came of it stands in `InstanceState.verdict`; the callback of `on_change` hears
    of each change as `(state, instance, health before)`, before the observer does. A probe that has no whole answer in
    time is cancelled and has failed. `source` is the randomness, given by tests.
    """

    def __init__(
        self,
        wire: Callable[[Request], Awaitable[Response]],
        supervisor: Supervisor,
        *,
        clock: Clock,
        observer: Observer,
        source: random.Random | None = None,
        at_once: int = MOST_AT_ONCE,
    ) -> None:
        self._wire = wire
        self._supervisor = supervisor
        self._clock = clock
        self._observer = observer
        self._uniform = (source or random.Random()).uniform
        self._at_once = at_once
        self._running = 0
        self._waiting: deque[_Target] = deque()
        self._services: dict[str, _Service] = {}
        self._changed: Callable[[ServiceState, InstanceState, str], object] = lambda state, instance, before: None

    def on_change(self, callback: Callable[[ServiceState, InstanceState, str], object]) -> None:
        """Call `callback` after each change of a verdict; one at most."""
        self._changed = callback

    def statistics(self) -> dict[str, int]:
        """Services and instances that are probed; probes under way, and those that wait for their turn."""
        instances = sum(len(service.targets) for service in self._services.values())
        waiting, running = len(self._waiting), self._running
        return {"services": len(self._services), "instances": instances, "running": running, "waiting": waiting}

    def follow(self, state: ServiceState, policy: ProbePolicy | None) -> None:
        """Probe the instances that `state` has now, by `policy`; call it again when either has changed.

        An instance that is probed already goes on at its pace, with what is known of it. One whose policy or path is
        different is probed anew within a second, and its row begins anew if the path is. One that is not probed any
        more has no verdict. None ends all of it.
        """
        # In a context of its own: else timers would keep alive the request in which the service was called first.
        contextvars.Context().run(self._follow, state, policy)

    def forget(self, service: str) -> None:
        """Probe the instances of `service` no more."""
        known = self._services.pop(service, None)
        if known is not None:
            for target in known.targets.values():
                self._end(target)
                target.instance.verdict = "unknown"
            self._drop_ended()
            self._observer(InstancesProbed(service, {}))

    def _follow(self, state: ServiceState, policy: ProbePolicy | None) -> None:
        known = self._services.get(state.name)
        if policy is None:
            self.forget(state.name)
            return
        following = _Service(state, known.plan if known is not None and known.plan.policy == policy else _Plan(policy))
        before = {} if known is None else known.targets
        fresh = []
        for instance in state.instances.value or ():
            path = policy.path_of(instance.instance.health_check)
            if path is None:
                continue
            target = before.get(instance)
            if target is None or target.service.plan is not following.plan or target.path != path:
                row = target.row if target is not None and target.path == path else Row()
                target = _Target(following, instance, path, row)
                fresh.append(target)
            target.service = following
            following.targets[instance] = target
        for instance, target in before.items():
            if following.targets.get(instance) is not target:
                self._end(target)
            if instance not in following.targets:
                instance.verdict = "unknown"
        self._drop_ended()
        if following.targets:
            self._services[state.name] = following
        else:
            self._services.pop(state.name, None)
        for target in fresh:
            self._schedule(target, self._uniform(0.0, min(FIRST_WITHIN, policy.interval)))
        if following.targets or before:
            self._tell(following)

    def _schedule(self, target: _Target, delay: float) -> None:
        target.timer = self._clock.call_later(delay, partial(self._due, target))

    def _due(self, target: _Target) -> None:
        target.timer = None
        if self._running < self._at_once:
            self._start(target)
        else:
            self._waiting.append(target)

    def _start(self, target: _Target) -> None:
        instance = target.instance.instance
        target.started = self._clock.now()
        target.expired = False
        probe = self._probe(target)
        try:
            target.task = self._supervisor.start(probe, name=f"probe {instance.service}/{instance.id}")
        except RuntimeError:  # the mesh is being closed, and with it all of this
            return
        self._running += 1
        target.timer = self._clock.call_later(target.service.plan.policy.limit, partial(_expire, target))
        target.task.add_done_callback(partial(self._done, target))

    async def _probe(self, target: _Target) -> Finding:
        plan = target.service.plan
        context = CallContext(plan.call_policy, target.service.state, template=TEMPLATE)
        context.instance = target.instance
        context.attempt = 1
        context.attempt_deadline = target.started + plan.policy.limit
        request = Request(b"GET", target.service.state.name, target.path.encode(), list(HEADERS), b"", context)
        try:
            response = await self._wire(request)
            try:
                body = await response.read_all(READ_AT_MOST)
            except ValueError:  # longer than that
                body = b""
            finally:
                await response.aclose()
        except MeshError as error:
            return Finding("failed", f"{error.reason}: {error}")
        return read(response.status, response.header(b"content-type"), body)

    def _done(self, target: _Target, task: asyncio.Task[Finding]) -> None:
        self._running -= 1
        target.task = None
        if target.timer is not None:
            target.timer.cancel()
            target.timer = None
        if task.cancelled() and not (target.expired or target.ended):
            return  # by the supervisor, or by an event loop that ends: nothing may start any more
        while self._waiting and self._running < self._at_once:
            self._start(self._waiting.popleft())
        if target.ended:
            return
        policy = target.service.plan.policy
        if task.cancelled():
            self._judge(target, Finding("failed", f"it gave no answer within {policy.limit:g} s"))
        else:
            error = task.exception()  # anything but a MeshError is a mistake, which the supervisor logs
            self._judge(target, task.result() if error is None else Finding("failed", type(error).__name__))
        if not target.ended:
            pause = policy.interval * self._uniform(1.0 - JITTER, 1.0 + JITTER)
            self._schedule(target, max(0.0, target.started + pause - self._clock.now()))

    def _judge(self, target: _Target, finding: Finding) -> None:
        service, instance = target.service, target.instance
        name, id = service.state.name, instance.instance.id
        health, before = instance.health, instance.verdict
        after = target.row.add(finding.result, before, service.plan.policy)
        if after != before:
            instance.verdict = after
            self._changed(service.state, instance, health)
        self._observer(InstanceProbed(name, id, finding.result, self._clock.now() - target.started))
        if after != before:
            self._observer(InstanceHealthChanged(name, id, before, after, f"GET {target.path}: {finding.why}"))
            self._tell(service)

    def _tell(self, service: _Service) -> None:
        counts = Counter[str](instance.verdict for instance in service.targets)
        self._observer(InstancesProbed(service.state.name, counts))

    def _end(self, target: _Target) -> None:
        target.ended = True
        if target.timer is not None:
            target.timer.cancel()
            target.timer = None
        if target.task is not None and not target.task.done():
            target.task.cancel()

    def _drop_ended(self) -> None:
        if any(each.ended for each in self._waiting):
            self._waiting = deque(each for each in self._waiting if not each.ended)


def _expire(target: _Target) -> None:
    target.timer = None
    if target.task is not None:
        target.expired = True
        target.task.cancel()


class _Plan:
    """A policy, and what the wire reads of one."""

    __slots__ = ("call_policy", "policy")

    def __init__(self, policy: ProbePolicy) -> None:
        limit = policy.limit
        times = TimeoutPolicy(timeout=limit, attempt_timeout=limit, connect_timeout=limit, idle_timeout=limit)
        self.policy = policy
        self.call_policy = CallPolicy.compile(
            ServicePolicy(timeouts=times, retry=None, circuit_breaker=None, outlier=None)
        )


class _Service:
    """What is probed of one service."""

    __slots__ = ("plan", "state", "targets")

    def __init__(self, state: ServiceState, plan: _Plan) -> None:
        self.state = state
        self.plan = plan
        self.targets: dict[InstanceState, _Target] = {}


class _Target:
    """One instance: its next probe, or the one under way. `timer` is for either."""

    __slots__ = ("ended", "expired", "instance", "path", "row", "service", "started", "task", "timer")

    def __init__(self, service: _Service, instance: InstanceState, path: str, row: Row) -> None:
        self.service = service
        self.instance = instance
        self.path = path
        self.row = row
        self.started = 0.0
        self.task: asyncio.Task[Finding] | None = None
        self.timer: Timer | None = None
        self.expired = False
        self.ended = False
