"""`call_service`: fills the path, sends JSON, reads the answer, and turns it into a value or an error."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import pydantic
import pydantic_core

from fastapi_mesh.core.message import Request
from fastapi_mesh.exceptions import (
    DeadlineExceededError,
    InvalidRequestError,
    ServiceResponseError,
    ServiceUnavailableError,
    UpstreamProtocolError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.message import Header, Response

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)?\}")
PATH_SAFE = "/%:@!$&'()*+,;=~-._"
JSON_CONTENT: Header = (b"content-type", b"application/json")
JSON_ACCEPT: Header = (b"accept", b"application/json")


def fill_path(path: str, values: Sequence[object], named: Mapping[str, object] | None) -> tuple[str, object | None]:
    """Fill `{}` from `values` and `{name}` from `named`; return the path and a leftover JSON body, or None.

    Values are percent-encoded, so a value can't add a segment. Raises TypeError for missing or surplus values and for
    what is no single value (None, a mapping, a model, a list), InvalidRequestError for a value that would change the
    path (`""`, `.`, `..`).

    >>> fill_path("/users/{}", (7,), None)
    ('/users/7', None)
    >>> fill_path("/payments", ({"amount": 1},), None)
    ('/payments', {'amount': 1})
    """
    rest = list(values)
    left = dict(named or {})

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            if not rest:
                raise TypeError(f"{path!r} has more {{}} than values were given")
            return _segment(rest.pop(0), path)
        if name in left:
            return _segment(left.pop(name), path)
        if rest and name not in (named or {}) and not _is_body(rest[0]):
            return _segment(rest.pop(0), path)
        raise TypeError(f"{path!r} needs a value for {{{name}}}: pass path_params={{{name!r}: ...}}")

    filled = PLACEHOLDER.sub(replace, path)
    if left:
        raise TypeError(f"{path!r} has no place for {', '.join(sorted(map(repr, left)))}")
    if not rest:
        return filled, None
    if len(rest) == 1 and _is_body(rest[0]):
        return filled, rest[0]
    raise TypeError(f"{path!r} has no place for the value {rest[0]!r}; only a mapping or a model can be a JSON body")


def _segment(value: object, path: str) -> str:
    if value is None or _is_body(value) or isinstance(value, list | tuple | set | frozenset):
        raise TypeError(f"{path!r} can't be filled with a {type(value).__name__}, only with a str, an int or the like")
    text = str(value)
    if text in ("", ".", ".."):
        raise InvalidRequestError(f"the value {text!r} would change the path {path!r} instead of filling it")
    return quote(text, safe="")


def _is_body(value: object) -> bool:
    return isinstance(value, Mapping | pydantic.BaseModel) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    )


def build_target(path: str, params: Mapping[str, object] | Sequence[tuple[str, object]] | None) -> bytes:
    """The origin-form target: path and query, percent-encoded where it must be."""
    if not path.startswith("/"):
        raise InvalidRequestError(f"the path {path!r} must begin with '/'")
    bare, mark, query = path.partition("?")
    target = quote(bare, safe=PATH_SAFE)
    if mark:
        query = quote(query, safe=PATH_SAFE + "?[]")
    if params:
        pairs = params.items() if isinstance(params, Mapping) else params
        more = urlencode([(key, _plain(value)) for key, value in pairs if value is not None], doseq=True)
        query = f"{query}&{more}" if query else more
    return f"{target}?{query}".encode("ascii") if query else target.encode("ascii")


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


class Caller:
    """Makes buffered calls through a stack. One per mesh."""

    def __init__(self, send: Callable[[Request], Awaitable[Response]], *, clock: Clock) -> None:
        self._send = send
        self._clock = clock

    async def exchange(
        self, context: CallContext, method: str, target: bytes, headers: list[Header], body: bytes
    ) -> tuple[Response, bytes]:
        """Send, and read all of the answer within the deadline."""
        service = context.state.name
        context.buffered = True
        request = Request(method.upper().encode("ascii"), service, target, headers, body, context)
        response = await self._send(request)
        try:
            return response, await self._read(response, context)
        finally:
            await response.aclose()

    async def _read(self, response: Response, context: CallContext) -> bytes:
        content = await response.read() if not response.at_end else b""
        if response.at_end:
            return content
        if context.deadline is None:
            return content + await response.read_all()
        try:
            async with asyncio.timeout(max(0.0, context.deadline - self._clock.now())):
                return content + await response.read_all()
        except TimeoutError as error:
            if isinstance(error, ServiceUnavailableError):
                raise
            service = context.state.name
            raise DeadlineExceededError(
                f"the deadline passed within the answer of {service}", service=service
            ) from None


def value_of(response: Response, content: bytes, model: type[object] | None, context: CallContext) -> object:
    """The decoded answer (B27). Raises ServiceResponseError below 500, ServiceUnavailableError from there on."""
    if 200 <= response.status < 300:
        return decode(response, content, model, context.state.name)
    raise _refused(response, content, context)


def _refused(
    response: Response, content: bytes, context: CallContext
) -> ServiceResponseError | ServiceUnavailableError:
    service = context.state.name
    error: ServiceResponseError | ServiceUnavailableError
    if response.status >= 500:
        error = ServiceUnavailableError(
            f"{service} answered {response.status}", service=service, status_code=response.status, body=content
        )
    else:
        error = ServiceResponseError(
            f"{service} answered {response.status}",
            service=service,
            status_code=response.status,
            headers=response.headers,
            body=content,
        )
    error.attempts = context.attempt
    error.counted_for = service
    return error


def decode(response: Response, content: bytes, model: type[object] | None, service: str) -> object:
    """The value of an answer: JSON by content type (or by absence of one), else text, else bytes; None for no body."""
    if model is not None:
        try:
            return pydantic.TypeAdapter(model).validate_json(content)
        except pydantic.ValidationError as error:
            raise _unusable(service, f"does not fit {getattr(model, '__name__', model)}") from error
    if not content:
        return None
    kind = (response.header(b"content-type") or b"application/json").partition(b";")[0].strip().lower()
    if kind == b"application/json" or kind.endswith(b"+json"):
        try:
            return pydantic_core.from_json(content)
        except ValueError as error:
            raise _unusable(service, "is not valid JSON") from error
    if kind.startswith(b"text/"):
        return content.decode("utf-8", errors="replace")
    return content


def _unusable(service: str, why: str) -> UpstreamProtocolError:
    error = UpstreamProtocolError(
        f"the answer of {service} {why}", service=service, request_sent=True, response_started=True
    )
    error.counted_for = service
    error.attempts = 1
    return error


def encode_json(value: object) -> bytes:
    """JSON of plain data, pydantic models, dataclasses, dates, UUIDs and decimals."""
    try:
        return pydantic_core.to_json(value)
    except pydantic_core.PydanticSerializationError as error:
        raise TypeError(f"the JSON body can't be serialised: {error}") from error
