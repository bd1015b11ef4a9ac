"""The health checks of this process: registered functions, run together, answered as one report."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeVar

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.health.words import Said, judge

if TYPE_CHECKING:
    from fastapi_mesh.core.clock import Clock

logger = logging.getLogger("fastapi_mesh.health")

Check = Callable[[], object]
"""A function without parameters, sync (it runs in a thread) or async. See `HealthChecks.register` for what it returns.
"""
C = TypeVar("C", bound=Check)
Verdict = Literal["pass", "fail"]


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What all checks said: `checks` is one verdict per name, `details` what the functions returned (mappings only).

    `status` is `degraded` when none failed and one said so: callers that probe this node send it half as much.
    `timestamp` is RFC 3339 in UTC. A check that raised has its error's type name in `details`, never its text.
    """

    status: Literal["healthy", "degraded", "unhealthy"]
    checks: Mapping[str, Verdict]
    timestamp: str
    details: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        checks: Mapping[str, Verdict],
        *,
        healthy: bool = True,
        degraded: bool = False,
        details: Mapping[str, object],
    ) -> HealthReport:
        """A report of now."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        status: Literal["healthy", "degraded", "unhealthy"] = "degraded" if degraded else "healthy"
        return cls(status if healthy else "unhealthy", dict(checks), now, dict(details))

    def also_failing(self, name: str, why: object) -> HealthReport:
        """The report with one more thing that fails."""
        return HealthReport("unhealthy", {**self.checks, name: "fail"}, self.timestamp, {**self.details, name: why})

    def noting(self, notes: Mapping[str, object]) -> HealthReport:
        """The report with more details, which decide nothing."""
        if not notes:
            return self
        return HealthReport(self.status, self.checks, self.timestamp, {**self.details, **notes})

    @property
    def healthy(self) -> bool:
        """Whether it works, be it degraded."""
        return self.status != "unhealthy"

    @property
    def http_status(self) -> int:
        """200 or 503."""
        return 200 if self.healthy else 503

    def as_dict(self) -> dict[str, object]:
        """Plain data: `status`, `checks`, `timestamp`, and `details` when there are any."""
        plain: dict[str, object] = {
            "status": self.status,
            "checks": dict(self.checks),
            "timestamp": self.timestamp,
        }
        if self.details:
            plain["details"] = dict(self.details)
        return plain

    def as_json(self) -> bytes:
        """`as_dict` for an HTTP answer; what a check returned that JSON can't say is written as text."""
        return json.dumps(self.as_dict(), default=str).encode()


class _Registered:
    """One function, and its run if that hasn't ended."""

    __slots__ = ("function", "name", "running", "timeout", "was_healthy")

    def __init__(self, name: str, function: Check, timeout: float) -> None:
        self.name = name
        self.function = function
        self.timeout = timeout
        self.running: asyncio.Task[Said] | None = None
        self.was_healthy = True

    async def call(self) -> Said:
        try:
            if inspect.iscoroutinefunction(self.function):
                value = await self.function()
            else:
                value = await _in_thread(self.function)
                if isinstance(value, Awaitable):
                    value = await value
            return judge(value)
        except Exception as error:  # whatever a check raises is its finding
            return self.failed(error)

    def failed(self, error: Exception) -> Said:
        if self.was_healthy:
            logger.warning("health check %s failed: %s: %s", self.name, type(error).__name__, error)
        return Said(False, detail={"error": type(error).__name__})


class HealthChecks:
    """Runs every registered check at once, each with its own timeout, at most once per `cache` seconds.

    Callers that come while the checks run share that run. Durations are seconds. A check that is still running when
    the next run begins isn't started a second time: it fails until it has ended.
    """

    def __init__(self, *, timeout: float = 2.0, cache: float = 1.0, clock: Clock | None = None) -> None:
        self._timeout = timeout
        self._cache = cache
        self._clock: Clock = clock or SystemClock()
        self._checks: dict[str, _Registered] = {}
        self._tasks: Supervisor | None = None
        self._run: asyncio.Task[HealthReport] | None = None
        self._last: tuple[float, HealthReport] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The registered checks, in order."""
        return tuple(self._checks)

    def statistics(self) -> dict[str, int]:
        failing = sum(not each.was_healthy for each in self._checks.values())
        return {"checks": len(self._checks), "failing": failing}

    def register(self, check: C, *, name: str | None = None, timeout: float | None = None) -> C:
        """Add a check and return it, so this works as a decorator. `name` defaults to the function's.

        A check returns a bool, a word ("ok", "pass", "healthy", ...), None for "nothing to complain about", a mapping
        of names to those, or `{"status": "healthy" | "unhealthy", "checks": {...}}`, where the status decides if it is
        there; "degraded" and "warn" pass, and make the report degraded. Raising fails the check. Raises
        ConfigurationError when another function has the name.
        """
        if name is None:
            name = str(getattr(check, "__name__", type(check).__name__))
        known = self._checks.get(name)
        if known is not None and known.function is not check:
            raise ConfigurationError(f"two health checks are called {name!r}; give one of them another name with name=")
        self._checks[name] = _Registered(name, check, self._timeout if timeout is None else timeout)
        self._last = None
        return check

    def unregister(self, name: str) -> None:
        """Forget a check; one that is running ends by itself."""
        self._checks.pop(name, None)
        self._last = None

    def live(self) -> HealthReport:
        """The report for a liveness probe: this process answers. Runs no check."""
        return HealthReport.of({}, details={})

    async def report(self) -> HealthReport:
        """The report for readiness: every check, or the last report when it is younger than the cache time."""
        if not self._checks:
            return self.live()
        if self._last is not None and self._clock.now() - self._last[0] < self._cache:
            return self._last[1]
        run = self._run
        if run is None or run.done() or run.get_loop() is not asyncio.get_running_loop():
            if self._tasks is None:
                self._tasks = Supervisor(clock=self._clock)
            run = self._run = self._tasks.start(self._examine(self._tasks), name="health checks")
        await asyncio.wait((run,))
        return HealthReport.of({}, healthy=False, details={}) if run.cancelled() else run.result()

    async def aclose(self) -> None:
        """End the checks that are running."""
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            await tasks.aclose()

    async def _examine(self, tasks: Supervisor) -> HealthReport:
        started = [(check, self._begin(check, tasks)) for check in self._checks.values()]
        verdicts: dict[str, Verdict] = {}
        details: dict[str, object] = {}
        healthy, degraded = True, False
        for check, outcome in started:
            finding = await outcome
            check.was_healthy = finding.healthy
            healthy = healthy and finding.healthy
            degraded = degraded or finding.degraded
            for part, passed in (finding.parts or {check.name: finding.healthy}).items():
                verdicts[f"{check.name}.{part}" if part in verdicts else part] = "pass" if passed else "fail"
            if finding.detail is not None:
                details[check.name] = finding.detail
        report = HealthReport.of(verdicts, healthy=healthy, degraded=degraded, details=details)
        self._last = (self._clock.now(), report)
        return report

    def _begin(self, check: _Registered, tasks: Supervisor) -> asyncio.Future[Said]:
        """Start one check; the future gets its finding when it ends or its time is over, whichever is first."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Said] = loop.create_future()
        task = check.running
        if task is not None and not task.done() and task.get_loop() is loop:
            outcome.set_result(check.failed(TimeoutError("the run before has not ended yet")))
            return outcome
        task = check.running = tasks.start(check.call(), name=f"health check {check.name}")

        def ended(task: asyncio.Task[Said]) -> None:
            timer.cancel()
            if not outcome.done():
                outcome.set_result(Said(False) if task.cancelled() else task.result())

        def expired() -> None:
            if not outcome.done():
                outcome.set_result(check.failed(TimeoutError(f"no answer within {check.timeout:g} s")))
                if inspect.iscoroutinefunction(check.function):  # a thread can't be cancelled
                    task.cancel()

        timer = self._clock.call_later(check.timeout, expired)
        task.add_done_callback(ended)
        return outcome


async def _in_thread(function: Check) -> object:
    """Run `function` in a daemon thread of its own: one that hangs blocks neither the loop nor the process's end."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[tuple[object, Exception | None]] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: object, error: Exception | None) -> None:
        if not answer.done():
            answer.set_result((value, error))

    def work() -> None:
        value: object = None
        failure: Exception | None = None
        try:
            value = context.run(function)
        except Exception as error:  # handed to whoever waits for the answer
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile, so nobody waits
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=work, name="fastapi_mesh health check", daemon=True).start()
    value, error = await answer
    if error is not None:
        raise error
    return value
