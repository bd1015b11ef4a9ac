"""Requests for tests of a wire: a context with one instance, and nothing of a mesh around it."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from time import monotonic

from fastapi_mesh.config.policies import CallPolicy, ServicePolicy, TimeoutPolicy
from fastapi_mesh.core.context import CallContext
from fastapi_mesh.core.instance import Instance, InstanceState, Scheme
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.message import Header, Request
from fastapi_mesh.core.state import ServiceState


class FirstPicker:
    """Picks the first instance."""

    def pick(self, instances: Sequence[InstanceState], request: Request) -> InstanceState:
        return instances[0]


def make_instance(
    port: int,
    *,
    address: str = "127.0.0.1",
    scheme: Scheme = "http",
    base_path: bytes = b"",
    metadata: Mapping[str, str] | None = None,
) -> Instance:
    return Instance(
        "users", "users-1", address, port, scheme=scheme, base_path=base_path, metadata=dict(metadata or {})
    )


def make_context(
    instance: Instance,
    *,
    timeouts: TimeoutPolicy | None = None,
    timeout: float | None = 5.0,
    hold: bool = False,
    call_timeout: float | None = None,
) -> CallContext:
    """A context for one attempt at `instance`; `timeout` is seconds to its deadline, `call_timeout` to the call's."""
    policy = CallPolicy.compile(ServicePolicy(timeouts=timeouts or TimeoutPolicy()))
    state = InstanceState(instance)
    live: Live[tuple[InstanceState, ...]] = Live((state,))
    context = CallContext(policy, ServiceState("users", instances=live, picker=FirstPicker()))
    context.instance = state
    context.attempt = 1
    context.hold = hold
    if timeout is not None:
        context.attempt_deadline = monotonic() + timeout
    if call_timeout is not None:
        context.deadline = monotonic() + call_timeout
    return context


def make_request(
    context: CallContext,
    method: bytes = b"GET",
    target: bytes = b"/",
    *,
    headers: Sequence[Header] = (),
    body: bytes | AsyncIterable[bytes] = b"",
) -> Request:
    return Request(method, "users", target, list(headers), body, context)
