"""What travels with a call: its typed context, and the inbound request it was made in."""

from __future__ import annotations

import os
import random
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

from fastapi_mesh.core.priority import NORMAL

if TYPE_CHECKING:
    from fastapi_mesh.config.policies import CallPolicy
    from fastapi_mesh.core.events import CallRecord
    from fastapi_mesh.core.instance import InstanceState
    from fastapi_mesh.core.message import Header
    from fastapi_mesh.core.state import ServiceState


class Inbound:
    """The request that this process is answering, as far as calls made in it need to know.

    `mesh` is the ServiceMesh (typed as object, since it lives far above). `deadline` is monotonic seconds or None; with
    `head_only` it ends with the head of the answer. `propagate` are the raw trace headers to pass on. `gone` turns True
    when its client went away and nobody needs the answer.
    """

    __slots__ = ("deadline", "gone", "head_only", "mesh", "principal", "priority", "propagate", "request_id")

    def __init__(
        self,
        mesh: object,
        *,
        deadline: float | None = None,
        head_only: bool = False,
        request_id: str = "",
        propagate: tuple[Header, ...] = (),
        principal: str | None = None,
    ) -> None:
        self.mesh = mesh
        self.deadline = deadline
        self.head_only = head_only
        self.request_id = request_id
        self.propagate = propagate
        self.principal = principal
        self.priority = NORMAL
        self.gone = False


current_inbound: ContextVar[Inbound | None] = ContextVar("fastapi_mesh_inbound", default=None)


class CallContext:
    """Everything the layers know of one logical call.

    `deadline` and `attempt_deadline` are monotonic seconds or None; `attempt` counts from 1; `instance` is the one of
    the running attempt, `tried` those of the earlier ones, and `unreachable` those of them that could not be connected
    to. `hold` asks the wire to deliver a short answer only when it is complete. `buffered` says that the deadline
    covers the whole answer, not only its head. `template` is a name of low cardinality for metrics and spans (a path
    template or the gateway's route). `affinity` is the value of a cookie that a gateway is about to set for sticky
    sessions, else None.
    """

    __slots__ = (
        "affinity",
        "attempt",
        "attempt_deadline",
        "buffered",
        "deadline",
        "hold",
        "inbound",
        "instance",
        "policy",
        "principal",
        "priority",
        "record",
        "request_id",
        "started",
        "state",
        "template",
        "tried",
        "unreachable",
    )

    def __init__(
        self,
        policy: CallPolicy,
        state: ServiceState,
        *,
        template: str = "",
        inbound: Inbound | None = None,
        deadline: float | None = None,
    ) -> None:
        self.policy = policy
        self.state = state
        self.template = template
        self.inbound = inbound
        self.deadline = deadline
        self.attempt_deadline: float | None = None
        self.attempt = 0
        self.instance: InstanceState | None = None
        self.tried: list[InstanceState] = []
        self.unreachable: list[InstanceState] = []
        self.hold = False
        self.buffered = False
        self.principal: str | None = None
        self.priority = NORMAL if inbound is None else inbound.priority
        self.record: CallRecord | None = None
        self.request_id = ""
        self.affinity: bytes | None = None
        self.started = 0.0


_source = random.Random()  # ids tell requests apart, they are no secrets; a system call each costs 3 %
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_source.seed)  # else the workers of one server would draw the same ids


def new_request_id() -> str:
    """A new request id: a UUID version 7 (RFC 9562 section 5.7), so ids sort by time. Not for secrets.

    >>> len(new_request_id())
    36
    """
    drawn = _source.getrandbits(74)
    text = f"{int(time.time() * 1000):012x}7{drawn >> 62:03x}{0x8000000000000000 | (drawn & 0x3FFFFFFFFFFFFFFF):016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


current_request_id: ContextVar[str] = ContextVar("fastapi_mesh_request_id", default="")
"""The id of the request that code of the user's is called for in a gateway, where there is no `current_inbound`."""


def generate_request_id() -> str:
    """The id of the request that is being answered, in a handler or a transformer; elsewhere a new one, a UUIDv7.

    So `request.headers["X-Request-ID"] = generate_request_id()` keeps the id that the logs and traces have.
    """
    inbound = current_inbound.get()
    return current_request_id.get() or (inbound.request_id if inbound is not None else "") or new_request_id()
