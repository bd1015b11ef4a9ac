"""A wire that answers from a script, for tests of layers and of applications: no sockets, no time but the clock's."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi_mesh.core.message import Response
from fastapi_mesh.exceptions import UpstreamConnectionError, UpstreamTimeoutError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.message import Header, Request


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt as the wire saw it."""

    service: str
    instance: str
    method: str
    target: str
    headers: tuple[Header, ...]
    body: bytes
    at: float

    def json(self) -> object:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass(slots=True)
class Answer:
    """What one attempt gets: a status and body after `delay` seconds of the clock, or an error."""

    status: int = 200
    body: bytes = b""
    headers: list[Header] = field(default_factory=list)
    delay: float = 0.0
    error: BaseException | None = None

    @classmethod
    def json(cls, value: object, status: int = 200) -> Answer:
        return cls(status, json.dumps(value).encode(), [(b"content-type", b"application/json")])


Reply = Answer | int | BaseException


class ScriptedWire:
    """Implements `wire.base.Wire`: `script(request)` gives each attempt's answer.

    A plain sequence of replies is used up in order and its last one repeats. An int is a status, an exception is
    raised. `attempt_deadline` is honoured against the clock, so time-outs happen as they would on a socket.
    """

    def __init__(
        self, script: Callable[[Request], Reply | Awaitable[Reply]] | Iterable[Reply], *, clock: Clock
    ) -> None:
        self._script = script if callable(script) else _in_order(script)
        self._clock = clock
        self.calls: list[Call] = []
        self.in_flight = 0

    async def __call__(self, request: Request) -> Response:
        instance = request.context.instance
        body = request.body if isinstance(request.body, bytes) else b"".join([part async for part in request.body])
        self.calls.append(
            Call(
                request.service,
                "" if instance is None else instance.instance.id,
                request.method.decode("latin-1"),
                request.target.decode("latin-1"),
                tuple(request.headers),
                body,
                self._clock.now(),
            )
        )
        self.in_flight += 1
        try:
            reply = self._script(request)
            if not isinstance(reply, Answer | int | BaseException):
                reply = await reply
            return await self._answer(request, reply)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: Request, reply: Reply) -> Response:
        if isinstance(reply, int):
            reply = Answer(reply)
        elif isinstance(reply, BaseException):
            reply = Answer(error=reply)
        deadline = request.context.attempt_deadline
        if deadline is not None and self._clock.now() + reply.delay >= deadline:
            await self._clock.sleep(deadline - self._clock.now())
            raise UpstreamTimeoutError("scripted time-out", service=request.service)
        if reply.delay:
            await self._clock.sleep(reply.delay)
        if reply.error is not None:
            raise reply.error
        headers = [*reply.headers, (b"content-length", str(len(reply.body)).encode())]
        return Response.of(reply.status, headers, b"" if request.method == b"HEAD" else reply.body)

    async def aclose(self) -> None:
        await asyncio.sleep(0)


def _in_order(replies: Iterable[Reply]) -> Callable[[Request], Reply]:
    waiting = list(replies)

    def script(request: Request) -> Reply:
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    return script


def refused() -> UpstreamConnectionError:
    """The error of a connection that was refused: nothing was sent."""
    return UpstreamConnectionError("scripted refusal", request_sent=False)


def broken() -> UpstreamConnectionError:
    """The error of a connection that broke after the request was sent."""
    return UpstreamConnectionError("scripted reset", request_sent=True)
