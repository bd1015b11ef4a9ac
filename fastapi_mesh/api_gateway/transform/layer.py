"""A layer that lets transformers change requests and answers, and reads no body that none of them reads."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.transform.body import codings, narrowed
from fastapi_mesh.api_gateway.transform.incoming import Incoming
from fastapi_mesh.api_gateway.transform.limits import UnsendableError
from fastapi_mesh.api_gateway.transform.messages import GatewayResponse
from fastapi_mesh.api_gateway.transform.outgoing import Outgoing, check_status, made
from fastapi_mesh.api_gateway.transform.steps import TransformFailedError
from fastapi_mesh.api_gateway.transform.timing import Elapsed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.api_gateway.transform.steps import Step, TransformerPair
    from fastapi_mesh.config.edge.transform import TransformConfig
    from fastapi_mesh.core.message import Response

logger = logging.getLogger("fastapi_mesh.gateway")

_PARTS_OF_BODIES = frozenset({b"range", b"if-range"})


class Transform:
    """Runs a route's transformers: those of requests in order, those of answers in reverse.

    A request transformer that returns a GatewayResponse answers itself: no service is called, and only the answer
    transformers of the pairs outside of its own see it.

    Where answers are read whole, the service is asked for one that can be: without Range, in a coding that can be taken
    off again, and for GET where the client sent HEAD, so that both get the same headers (RFC 9110 section 9.3.2).

    A WebSocket's handshake is a request like others; what answers it is no answer for transformers.
    """

    __slots__ = ("_codings", "_dropped", "_limit", "_pairs", "_reads_responses", "inner")

    def __init__(
        self,
        inner: GatewayService,
        pairs: Sequence[TransformerPair],
        config: TransformConfig,
        *,
        dropped: frozenset[bytes] = frozenset(),
    ) -> None:
        self.inner = inner
        self._pairs = tuple(pairs)
        self._limit = config.max_body
        self._dropped = dropped
        self._reads_responses = any(pair.reads_response for pair in pairs)
        self._codings = codings() if self._reads_responses else frozenset()

    async def __call__(self, request: Exchange) -> Response:
        incoming = Incoming(request, self._limit)
        upgrade = incoming.asked.is_websocket
        for index, pair in enumerate(self._pairs):
            if pair.request is not None:
                answer = await self._ask(pair.request, incoming, request)
                if answer is not None:
                    if upgrade:
                        return answer
                    return await self._answered(answer, self._pairs[:index], incoming, 0.0)
        try:
            incoming.apply()
        except UnsendableError as error:
            raise self._unsendable("request", request, error) from error
        if upgrade:
            return await self.inner(request)
        if self._reads_responses:
            self._want_whole(request)
        started = time.monotonic()
        response = await self.inner(request)
        return await self._answered(response, self._pairs, incoming, time.monotonic() - started)

    async def _ask(self, step: Step, incoming: Incoming, request: Exchange) -> Response | None:
        """Run a request transformer; an answer where it gives one."""
        if step.reads_body:
            await incoming.load()
        result = await step.run(incoming.asked, request.context.request_id)
        if result is incoming.asked:
            return None
        if isinstance(result, GatewayResponse):
            try:
                return made(check_status(result.status), list(result.headers.raw), result.body)
            except UnsendableError as error:
                raise self._unsendable("answer", request, error) from error
        _wrong(step, "the request that it was given, or a GatewayResponse", result)
        raise TransformFailedError

    async def _answered(
        self, response: Response, pairs: Sequence[TransformerPair], incoming: Incoming, seconds: float
    ) -> Response:
        """The answer after the answer transformers of `pairs`."""
        steps = [pair.response for pair in reversed(pairs) if pair.response is not None]
        if not steps:
            return response
        try:
            outgoing = Outgoing(response, incoming.asked, Elapsed(seconds=seconds), self._limit, self._dropped)
            for step in steps:
                if step.reads_body:
                    await outgoing.load()
                result = await step.run(outgoing.answered, incoming.exchange.context.request_id)
                if not isinstance(result, GatewayResponse):
                    _wrong(step, "a GatewayResponse", result)
                    raise TransformFailedError
                outgoing.answered = result
            return await outgoing.finished()
        except UnsendableError as error:
            await response.aclose()
            raise self._unsendable("answer", incoming.exchange, error) from error
        except BaseException:
            await response.aclose()
            raise

    def _want_whole(self, request: Exchange) -> None:
        if request.method == b"HEAD":
            request.method = b"GET"
        headers = []
        for header in request.headers:
            if header[0] == b"accept-encoding":
                headers.append((header[0], narrowed(header[1].decode("latin-1"), self._codings).encode("latin-1")))
            elif header[0] not in _PARTS_OF_BODIES:
                headers.append(header)
        request.headers = headers

    def _unsendable(self, what: str, request: Exchange, error: UnsendableError) -> TransformFailedError:
        logger.error("the transformers of %s made a(n) %s that can't be sent: %s", request.route.path, what, error)
        return TransformFailedError()


def _wrong(step: Step, wanted: str, got: object) -> None:
    hint = " (is its `return` missing?)" if got is None else ""
    logger.error("the transformer %s must return %s; it returned %s%s", step.name, wanted, type(got).__name__, hint)
