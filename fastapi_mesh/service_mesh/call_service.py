"""`mesh.call_service`: one call with all it can be told, from a path and values to a typed value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, overload

from fastapi_mesh.service_mesh.calls import (
    JSON_ACCEPT,
    JSON_CONTENT,
    Caller,
    build_target,
    encode_json,
    fill_path,
    value_of,
)
from fastapi_mesh.service_mesh.fallback import (
    FAILURES,
    NO_FALLBACK,
    LastAnswers,
    NoFallback,
    OtherService,
    key_of,
    note,
    outcome_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    import httpx2

    from fastapi_mesh.config.policies import CallPolicy
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.message import Header, Response

T = TypeVar("T")
F = TypeVar("F")


class CallOptions(TypedDict, total=False):
    """What every form of `call_service` takes."""

    method: str | None
    path_params: Mapping[str, object] | None
    json: object
    params: Mapping[str, object] | None
    headers: Mapping[str, str] | None
    content: bytes | None
    timeout: float | None
    stale_if_error: float | None


class CallsServices:
    """The part of a mesh that makes buffered calls."""

    clock: Clock
    _caller: Caller
    _last_answers: LastAnswers

    if TYPE_CHECKING:  # what the mesh has

        @property
        def started(self) -> bool: ...
        async def start(self) -> None: ...
        def new_context(
            self, service: str, *, template: str = ..., policy: CallPolicy | None = ..., deadline: float | None = ...
        ) -> CallContext: ...

    @overload
    async def call_service(
        self,
        service: str,
        path: str,
        *values: object,
        response_model: type[T],
        raw: Literal[False] = ...,
        fallback: OtherService | NoFallback = ...,
        **options: Unpack[CallOptions],
    ) -> T: ...
    @overload
    async def call_service(
        self,
        service: str,
        path: str,
        *values: object,
        response_model: type[T],
        raw: Literal[False] = ...,
        fallback: Callable[[Exception], Coroutine[Any, Any, F]],
        **options: Unpack[CallOptions],
    ) -> T | F: ...
    @overload
    async def call_service(
        self,
        service: str,
        path: str,
        *values: object,
        response_model: type[T],
        raw: Literal[False] = ...,
        fallback: Callable[[Exception], F],
        **options: Unpack[CallOptions],
    ) -> T | F: ...
    @overload
    async def call_service(
        self,
        service: str,
        path: str,
        *values: object,
        response_model: type[T],
        raw: Literal[False] = ...,
        fallback: F,
        **options: Unpack[CallOptions],
    ) -> T | F: ...
    @overload
    async def call_service(
        self,
        service: str,
        path: str,
        *values: object,
        raw: Literal[True],
        response_model: None = ...,
        fallback: OtherService | NoFallback = ...,
        **options: Unpack[CallOptions],
    ) -> httpx2.Response: ...
    @overload
    async def call_service(
        self,
        service: str,
        path: str,
        *values: object,
        raw: bool = ...,
        response_model: None = ...,
        fallback: object = ...,
        **options: Unpack[CallOptions],
    ) -> Any: ...
    async def call_service(
        self,
        service: str,
        path: str,
        *values: object,
        method: str | None = None,
        path_params: Mapping[str, object] | None = None,
        json: object = None,
        params: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        timeout: float | None = None,
        raw: bool = False,
        response_model: type[Any] | None = None,
        fallback: object = NO_FALLBACK,
        stale_if_error: float | None = None,
    ) -> Any:
        """Call `service` and return the decoded JSON of its answer.

            await mesh.call_service("user-service", "/users/{}", 7)
            await mesh.call_service("payment-service", "/payments", {"amount": 3})
            await mesh.call_service("user-service", "/users/{id}", path_params={"id": 7}, response_model=User)

        Positional values fill `{}`, percent-encoded; a leftover mapping or model becomes the JSON body and the method
        POST. Surplus or missing values raise TypeError. `timeout` is seconds for the whole call, 30 by default.
        `raw=True` gives an httpx2.Response of any status instead.

        Where there is no usable answer, `stale_if_error=60` gives the last good one to the same GET if it is at most
        60 s old, and then `fallback` is what the call gives: a value, a function of the error (async or not), or the
        same call to `OtherService("name")`. The call's decision record says so.

        Raises ServiceResponseError for 4xx, ServiceUnavailableError (and its subclasses) for 5xx after retries, for
        connection failures and for timeouts, ServiceDiscoveryError when no instance is known.
        """
        filled, leftover = fill_path(path, values, path_params)
        body = leftover if json is None else json
        if leftover is not None and json is not None:
            raise TypeError("a JSON body was given twice: as a positional value and as json=")
        if content is not None and body is not None:
            raise TypeError("json= and content= exclude each other")
        if method is None:
            method = "GET" if body is None and content is None else "POST"
        raw_headers: list[Header] = [
            (n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in (headers or {}).items()
        ]
        names = {name for name, _ in raw_headers}
        if b"accept" not in names:
            raw_headers.append(JSON_ACCEPT)
        data = content or b""
        if body is not None:
            data = encode_json(body)
            if b"content-type" not in names:
                raw_headers.append(JSON_CONTENT)
        target = build_target(filled, params)
        if not self.started:
            await self.start()
        deadline = None if timeout is None else self.clock.now() + timeout
        context = self.new_context(service, template=path, deadline=deadline)
        key = None
        if stale_if_error is not None and method.upper() in ("GET", "HEAD"):
            key = key_of(service, method, target, raw_headers)
        try:
            response, answer = await self._caller.exchange(context, method, target, raw_headers, data)
            value = _as_asked(response, answer, response_model, context, raw)
        except FAILURES as error:
            stale = None if key is None else self._last_answers.find(key, stale_if_error or 0.0)
            if stale is not None:
                note(context, f"{error}: the last good answer was given, {stale[2]:.1f} s old")
                return _as_asked(stale[0], stale[1], response_model, context, raw)
            if fallback is NO_FALLBACK:
                raise
            if not isinstance(fallback, OtherService):
                note(context, f"{error}: the fallback was given")
                return await outcome_of(fallback, error)
            note(context, f"{error}: {fallback.name} was called instead")
            other = self.new_context(fallback.name, template=fallback.path or path, deadline=deadline)
            if fallback.path is not None:
                target = build_target(fill_path(fallback.path, values, path_params)[0], params)
            response, answer = await self._caller.exchange(other, method, target, raw_headers, data)
            return _as_asked(response, answer, response_model, other, raw)
        if key is not None:
            self._last_answers.keep(key, response, answer)
        return value


def _as_asked(
    response: Response, content: bytes, model: type[object] | None, context: CallContext, raw: bool
) -> object:
    if raw:
        from fastapi_mesh.service_mesh.client import as_httpx  # imported late, as in get_client

        return as_httpx(response, content, context)
    return value_of(response, content, model, context)
