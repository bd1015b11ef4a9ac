"""`mesh.call_service`: one call with all it can be told, from a path and values to a typed value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from fastapi_mesh.service_mesh.calls import (
    JSON_ACCEPT,
    JSON_CONTENT,
    Caller,
    build_target,
    encode_json,
    fill_path,
    value_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx2

    from fastapi_mesh.config.policies import CallPolicy
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.message import Header

T = TypeVar("T")


class CallsServices:
    """The part of a mesh that makes buffered calls."""

    clock: Clock
    _caller: Caller

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
        method: str | None = ...,
        path_params: Mapping[str, object] | None = ...,
        json: object = ...,
        params: Mapping[str, object] | None = ...,
        headers: Mapping[str, str] | None = ...,
        content: bytes | None = ...,
        timeout: float | None = ...,
        raw: Literal[False] = ...,
        response_model: type[T],
    ) -> T: ...
    @overload
    async def call_service(
        self,
        service: str,
        path: str,
        *values: object,
        method: str | None = ...,
        path_params: Mapping[str, object] | None = ...,
        json: object = ...,
        params: Mapping[str, object] | None = ...,
        headers: Mapping[str, str] | None = ...,
        content: bytes | None = ...,
        timeout: float | None = ...,
        raw: Literal[True],
        response_model: None = ...,
    ) -> httpx2.Response: ...
    @overload
    async def call_service(
        self,
        service: str,
        path: str,
        *values: object,
        method: str | None = ...,
        path_params: Mapping[str, object] | None = ...,
        json: object = ...,
        params: Mapping[str, object] | None = ...,
        headers: Mapping[str, str] | None = ...,
        content: bytes | None = ...,
        timeout: float | None = ...,
        raw: bool = ...,
        response_model: None = ...,
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
    ) -> Any:
        """Call `service` and return the decoded JSON of its answer.

            await mesh.call_service("user-service", "/users/{}", 7)
            await mesh.call_service("payment-service", "/payments", {"amount": 3})
            await mesh.call_service("user-service", "/users/{id}", path_params={"id": 7}, response_model=User)

        Positional values fill `{}`, percent-encoded; a leftover mapping or model becomes the JSON body and the method
        POST. Surplus or missing values raise TypeError. `timeout` is seconds for the whole call, 30 by default.
        `raw=True` gives an httpx2.Response of any status instead.

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
        response, answer = await self._caller.exchange(context, method, target, raw_headers, data)
        if raw:
            from fastapi_mesh.service_mesh.client import as_httpx  # imported late, as in get_client

            return as_httpx(response, answer, context)
        return value_of(response, answer, response_model, context)
