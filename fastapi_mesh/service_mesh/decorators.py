"""Decorators for functions and methods around calls: `circuit_breaker`, `retry_policy`, `trace_calls`.

Each is a method of a ServiceMesh and a function of the module. The module's functions find their mesh when the
function is called: `self.mesh`, else the mesh of the request being answered, else the process's only open mesh.

The stack inside a mesh's own calls already retries and counts, because only it knows method, body and instance.
Errors that leave it say so (`attempts`, `counted_for`), and a decorator for the same service leaves those alone: three
attempts stay three, and one failure is counted once.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast, overload

import tenacity

from fastapi_mesh.core.context import current_inbound
from fastapi_mesh.exceptions import (
    ClientDisconnectedError,
    ConfigurationError,
    InvalidRequestError,
    MeshError,
    ServiceResponseError,
)
from fastapi_mesh.layers.retry import schedule

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi_mesh.core.state import Breaker
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

P = ParamSpec("P")
R = TypeVar("R")

open_meshes: weakref.WeakSet[ServiceMesh] = weakref.WeakSet()
"""The meshes of this process that are started and not stopped."""

CALLERS_FAULT = (ServiceResponseError, InvalidRequestError, ConfigurationError, ClientDisconnectedError)


def find_mesh(arguments: tuple[object, ...]) -> ServiceMesh:
    """The mesh for a decorated call. Raises ConfigurationError when it is not clear which one."""
    from fastapi_mesh.service_mesh.mesh import ServiceMesh  # imported late: mesh.py imports this module

    if arguments:
        own = getattr(arguments[0], "mesh", None)
        if isinstance(own, ServiceMesh):
            return own
    inbound = current_inbound.get()
    if inbound is not None and isinstance(inbound.mesh, ServiceMesh):
        return inbound.mesh
    candidates = [mesh for mesh in open_meshes if mesh.started]
    if len(candidates) == 1:
        return candidates[0]
    found = "no mesh is open" if not candidates else f"{len(candidates)} meshes are open"
    raise ConfigurationError(
        f"a decorator of fastapi_mesh doesn't know which mesh to use: {found}, no request is being answered, and the "
        "first argument has no attribute 'mesh'; decorate with @mesh.circuit_breaker(...) of the mesh you mean"
    )


def own_error(error: BaseException, service: str) -> bool:
    """Whether the mesh's own stack has already counted and retried `error` for `service`."""
    if isinstance(error, MeshError):
        return error.counted_for == service or (error.attempts > 0 and error.service == service)
    response = getattr(error, "response", None)  # an httpx2.HTTPStatusError of a response of ours
    mark = getattr(response, "extensions", {}).get("fastapi_mesh") if response is not None else None
    return isinstance(mark, dict) and mark.get("service") == service


class Decorators:
    """The decorators of one mesh, or (without one) those that find it at call time."""

    def __init__(self, mesh: ServiceMesh | None = None) -> None:
        self._mesh = mesh

    def _of(self, arguments: tuple[object, ...]) -> ServiceMesh:
        return find_mesh(arguments) if self._mesh is None else self._mesh

    def circuit_breaker(self, service: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Refuse the call while the circuit of `service` is open, and count other failures than the mesh's own.

        For `async def` and `def`, functions and methods. Raises CircuitBreakerOpenError. Errors of the caller (4xx,
        an invalid request, wrong settings) are neutral, and so are those that `expected_exception` doesn't name.
        """

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            if inspect.iscoroutinefunction(function):
                waiting = cast("Callable[P, Awaitable[object]]", function)

                @functools.wraps(function)
                async def guarded(*args: P.args, **kwargs: P.kwargs) -> object:
                    mesh = self._of(args)
                    breaker = mesh.breaker_of(service)
                    if breaker is None:
                        return await waiting(*args, **kwargs)
                    ticket = breaker.admit()
                    try:
                        result = await waiting(*args, **kwargs)
                    except BaseException as error:
                        _count(mesh, breaker, ticket, error, service)
                        raise
                    breaker.succeed(ticket)
                    return result

                return cast("Callable[P, R]", guarded)

            @functools.wraps(function)
            def guarded_sync(*args: P.args, **kwargs: P.kwargs) -> R:
                mesh = self._of(args)
                breaker = mesh.breaker_of(service)
                if breaker is None:
                    return function(*args, **kwargs)
                ticket = breaker.admit()
                try:
                    result = function(*args, **kwargs)
                except BaseException as error:
                    _count(mesh, breaker, ticket, error, service)
                    raise
                breaker.succeed(ticket)
                return result

            return guarded_sync

        return decorate

    def retry_policy(self, service: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Repeat the function by the retry policy of `service` when it fails with a ConnectionError or TimeoutError.

        Failures of the mesh's own calls to `service` are not repeated: the mesh has done that already. A `def`
        function waits in its thread, so it must not run on the event loop.
        """

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            if inspect.iscoroutinefunction(function):
                waiting = cast("Callable[P, Awaitable[object]]", function)

                @functools.wraps(function)
                async def repeated(*args: P.args, **kwargs: P.kwargs) -> object:
                    mesh = self._of(args)
                    policy = mesh.policy_of(service).retry
                    if policy is None:
                        return await waiting(*args, **kwargs)
                    retrying = tenacity.AsyncRetrying(
                        sleep=mesh.clock.sleep,
                        stop=tenacity.stop_after_attempt(policy.max_attempts),
                        wait=schedule(policy),
                        retry=_worth_repeating(service),
                        reraise=True,
                    )
                    return await retrying(waiting, *args, **kwargs)

                return cast("Callable[P, R]", repeated)

            @functools.wraps(function)
            def repeated_sync(*args: P.args, **kwargs: P.kwargs) -> R:
                policy = self._of(args).policy_of(service).retry
                if policy is None:
                    return function(*args, **kwargs)
                _refuse_on_loop(function)
                retrying = tenacity.Retrying(
                    stop=tenacity.stop_after_attempt(policy.max_attempts),
                    wait=schedule(policy),
                    retry=_worth_repeating(service),
                    reraise=True,
                )
                return retrying(function, *args, **kwargs)

            return repeated_sync

        return decorate

    @overload
    def trace_calls(self, function: Callable[P, R]) -> Callable[P, R]: ...
    @overload
    def trace_calls(self, function: None = None, *, name: str = ...) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
    def trace_calls(
        self, function: Callable[P, R] | None = None, *, name: str = ""
    ) -> Callable[P, R] | Callable[[Callable[P, R]], Callable[P, R]]:
        """Run the function in a span named after it (or `name`); the mesh calls in it become its children."""
        from fastapi_mesh.observability.tracing import Tracing  # imported late: costs what OpenTelemetry costs

        tracing = Tracing() if self._mesh is None else self._mesh.tracing

        def decorate(decorated: Callable[P, R]) -> Callable[P, R]:
            return decorated if tracing is None else tracing.traced(decorated, name)

        return decorate if function is None else decorate(function)


def _count(mesh: ServiceMesh, breaker: Breaker, ticket: int, error: BaseException, service: str) -> None:
    neutral = not isinstance(error, Exception) or isinstance(error, CALLERS_FAULT) or own_error(error, service)
    policy = mesh.policy_of(service).circuit_breaker
    if neutral or (policy is not None and not policy.counts(error)):
        breaker.forget(ticket)
    else:
        breaker.fail(ticket)


def _worth_repeating(service: str) -> tenacity.retry_if_exception:
    return tenacity.retry_if_exception(
        lambda error: isinstance(error, ConnectionError | TimeoutError) and not own_error(error, service)
    )


def _refuse_on_loop(function: object) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigurationError(
        f"{getattr(function, '__qualname__', function)} is a `def` function with @retry_policy and runs on the event "
        "loop, which its waits would block; make it `async def`, or call it in a thread"
    )


_module = Decorators()
circuit_breaker = _module.circuit_breaker
retry_policy = _module.retry_policy
trace_calls = _module.trace_calls
