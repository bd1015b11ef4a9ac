"""A client of etcd's JSON gateway (`/v3`, etcd 3.4 and newer): several endpoints, tokens, and errors by what they mean.

Keys and values are base64 and all numbers are strings there (https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import ssl
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, cast

from fastapi_mesh.exceptions import ServiceUnavailableError, UpstreamTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from fastapi_mesh.core.control import Control

Table = Mapping[str, object]

_LEADER = {"Grpc-Metadata-Hasleader": "true"}
"""Makes a member that has lost the others end a watch, instead of staying silent (clientv3.WithRequireLeader)."""

# gRPC's codes, https://grpc.github.io/grpc/core/md_doc_statuscodes.html
_INVALID_ARGUMENT, _NOT_FOUND, _PERMISSION_DENIED, _PRECONDITION, _OUT_OF_RANGE, _UNAUTHENTICATED = 3, 5, 7, 9, 11, 16


class Kind(Enum):
    """What an error means for whoever asked."""

    AWAY = "away"
    """This member can't be reached or can't answer now, or answers nonsense: another one may, or this one later."""
    TOKEN = "token"
    """The token of this client is no longer valid."""
    COMPACTED = "compacted"
    """The revision asked for is no longer kept."""
    GONE = "gone"
    """There is no such lease."""
    REFUSED = "refused"
    """Waiting does not mend it: credentials, rights, TLS, or a server that is no etcd."""


class EtcdError(Exception):
    """etcd did not do what it was asked. Backends raise their own error from it."""

    def __init__(self, text: str, kind: Kind = Kind.AWAY) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as stored. `created` and `modified` are revisions of the whole store."""

    key: bytes
    value: bytes
    created: int
    modified: int


class EtcdClient:
    """Asks the endpoints of one cluster; the next one when one is away. Safe to share within an event loop.

    `endpoints` has a client for each URL. With a `username`, a token is fetched on first use and again when etcd no
    longer takes it; many calls that find that out at once fetch one. `timeout` is the seconds that a watch may take to
    begin; that of calls is the endpoints' own.

    Every call can be repeated without harm, so it is, on each endpoint at most once. Raises EtcdError.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Control],
        *,
        username: str | None = None,
        password: str = "",
        timeout: float = 10.0,
    ) -> None:
        self._endpoints = tuple(endpoints.items())
        self._username = username
        self._password = password
        self._timeout = timeout
        self._current = 0
        self._token: str | None = None if username else ""  # "" is none needed
        self._turn = asyncio.Lock()
        self._counts = {"calls": 0, "watches": 0, "failovers": 0, "logins": 0}

    def statistics(self) -> dict[str, int]:
        """Calls and watches made, changes to another endpoint, and tokens fetched."""
        return dict(self._counts)

    async def aclose(self) -> None:
        """Close every connection. Safe to call twice; a later call opens them again."""
        self._turn = asyncio.Lock()  # the next use may be in another event loop
        for _, control in self._endpoints:
            await control.aclose()

    async def call(self, path: str, body: Table, *, timeout: float | None = None) -> Table:
        """What the server answers to a POST of `body` to `/v3/PATH`; of a streamed answer, the first message."""
        self._counts["calls"] += 1
        failure: EtcdError | None = None
        for _ in self._endpoints:
            at = self._current
            try:
                return await self._authorized(at, path, body, timeout)
            except EtcdError as error:
                if error.kind is not Kind.AWAY:
                    raise
                failure = error
                self._leave(at)
        assert failure is not None, "there is an endpoint"
        raise failure

    async def watch(self, key: bytes, end: bytes, start: int, *, idle: float) -> AsyncGenerator[Table, None]:
        """Yield the messages of a watch from revision `start` on; the first one says that it was created.

        Each endpoint is tried until one creates it. Raises TimeoutError after `idle` seconds of silence.
        """
        self._counts["watches"] += 1
        create = {"key": encoded(key), "range_end": encoded(end), "start_revision": str(start), "progress_notify": True}
        for left in reversed(range(len(self._endpoints))):
            at, created = self._current, False
            try:
                async with aclosing(self._messages(at, {"create_request": create}, idle)) as messages:
                    async for message in messages:
                        created = True
                        yield message
            except EtcdError as error:
                if error.kind is Kind.AWAY:
                    self._leave(at)
                if created or not left or error.kind is not Kind.AWAY:
                    raise

    def _leave(self, at: int) -> None:
        """Ask another endpoint from now on, unless somebody else has moved on already."""
        if self._current == at and len(self._endpoints) > 1:
            self._current = (at + 1) % len(self._endpoints)
            self._counts["failovers"] += 1

    async def _authorized(self, at: int, path: str, body: Table, timeout: float | None) -> Table:
        token = await self._login(at)
        try:
            return await self._once(at, path, body, token, timeout)
        except EtcdError as error:
            if error.kind is not Kind.TOKEN:
                raise
        return await self._once(at, path, body, await self._login(at, stale=token), timeout)

    async def _login(self, at: int, *, stale: str | None = None) -> str:
        """A token that is not `stale`: the one that is there, or a new one; "" where none is needed."""
        if self._token is not None and self._token != stale:
            return self._token
        async with self._turn:
            if self._token is not None and self._token != stale:
                return self._token  # somebody else has fetched it
            self._counts["logins"] += 1
            credentials = {"name": self._username, "password": self._password}
            try:
                answer = await self._once(at, "auth/authenticate", credentials, "", None)
            except EtcdError as error:
                if "authentication is not enabled" not in str(error):
                    raise
                self._token = ""
            else:
                self._token = str(answer.get("token", ""))
            return self._token

    async def _once(self, at: int, path: str, body: Table, token: str, timeout: float | None) -> Table:
        name, control = self._endpoints[at]
        headers = {"Authorization": token} if token else None
        try:
            answer = await control.request("POST", f"/v3/{path}", json=body, headers=headers, timeout=timeout)
        except ServiceUnavailableError as error:
            raise _unreachable(name, error) from error
        table = _table(answer.content, name, answer.status)
        if answer.status != 200 or "error" in table:
            raise self._refusal(name, table, answer.status)
        return _checked(name, _inner(table))

    async def _messages(self, at: int, body: Table, idle: float) -> AsyncGenerator[Table, None]:
        token = await self._login(at)
        for again in (True, False):
            try:
                async with aclosing(self._stream(at, body, token, idle)) as messages:
                    async for message in messages:
                        yield message
                raise EtcdError(f"{self._endpoints[at][0]}: the watch was ended")
            except EtcdError as error:
                if error.kind is Kind.REFUSED and self._username:
                    self._token = None  # before 3.4.23 an invalid token was "permission denied" here
                if error.kind is not Kind.TOKEN or not again:
                    raise
                token = await self._login(at, stale=token)

    async def _stream(self, at: int, body: Table, token: str, idle: float) -> AsyncGenerator[Table, None]:
        name, control = self._endpoints[at]
        headers = {**_LEADER, "Authorization": token} if token else _LEADER
        lines = control.stream_lines("POST", "/v3/watch", json=body, headers=headers, idle_timeout=idle)
        created = False
        try:
            async with aclosing(cast("AsyncGenerator[str, None]", lines)) as texts:
                text = await self._first(name, texts)
                while text is not None:
                    yield self._message(name, text)
                    created = True
                    text = await anext(texts, None)
        except UpstreamTimeoutError as error:
            if created:
                raise TimeoutError(f"{name}: nothing came for {idle:g} s") from error
            raise _unreachable(name, error) from error
        except ServiceUnavailableError as error:
            if error.status_code is None:
                raise _unreachable(name, error) from error
            raise self._refusal(name, _table(error.body, name, error.status_code), error.status_code) from error

    async def _first(self, name: str, texts: AsyncGenerator[str, None]) -> str | None:
        """The first message, which etcd sends at once; a member that hangs says nothing at all."""
        try:
            async with asyncio.timeout(self._timeout):
                return await anext(texts, None)
        except UpstreamTimeoutError:
            raise
        except TimeoutError as error:
            raise EtcdError(f"{name}: no watch began within {self._timeout:g} s") from error

    def _message(self, name: str, text: str) -> Table:
        """One message of a watch. Raises EtcdError for one that says why it ends."""
        table = _table(text.encode(), name, 200)
        if "error" in table:
            raise self._refusal(name, table, 200)
        message = _inner(table)
        if message.get("canceled"):
            if message.get("compact_revision"):
                raise EtcdError(f"{name}: the revision is compacted", Kind.COMPACTED)
            raise self._refusal(name, {"message": message.get("cancel_reason", "")}, 200)
        return _checked(name, message)

    def _refusal(self, name: str, table: Table, status: int) -> EtcdError:
        """The error for what the server said."""
        inner = table.get("error")
        about = inner if isinstance(inner, Mapping) else table
        text = str(about.get("message") or inner or "the watch was canceled")
        code = about.get("grpc_code", about.get("code"))
        kind = self._kind(code, text)
        if kind is Kind.REFUSED and "permission denied" in text:
            text += f" for the user {self._username!r}" if self._username else ""
        elif kind is Kind.REFUSED and "user name is empty" in text:
            text += "; it wants a user: give username and password"
        return EtcdError(f"{name}: {text} (HTTP {status})" if status != 200 else f"{name}: {text}", kind)

    def _kind(self, code: object, text: str) -> Kind:
        if code == _UNAUTHENTICATED or "invalid auth token" in text or "auth store is old" in text:
            return Kind.TOKEN
        if "user name is empty" in text:  # authentication was enabled after we came
            return Kind.TOKEN if self._username else Kind.REFUSED
        if code == _NOT_FOUND:
            return Kind.GONE
        if code == _OUT_OF_RANGE and "revision" in text:
            return Kind.COMPACTED
        if code in (_INVALID_ARGUMENT, _PERMISSION_DENIED, _PRECONDITION) or "permission denied" in text:
            return Kind.REFUSED
        return Kind.AWAY


def encoded(key: bytes) -> str:
    """Bytes as the JSON gateway takes them."""
    return base64.b64encode(key).decode("ascii")


def key_value(table: object) -> KeyValue:
    """A key as the JSON gateway gives it. Raises EtcdError for anything else."""
    try:
        given = cast("Mapping[str, str]", table)
        return KeyValue(
            base64.b64decode(given["key"], validate=True),
            base64.b64decode(given.get("value", ""), validate=True),
            int(given.get("create_revision", 0)),
            int(given.get("mod_revision", 0)),
        )
    except (TypeError, KeyError, AttributeError, ValueError, binascii.Error) as error:
        raise EtcdError(f"a key is no key: {type(error).__name__}: {error}") from error


def entries(table: Table, name: str) -> Iterable[object]:
    """A list in an answer; absent ones are empty there. Raises EtcdError for anything else."""
    found = table.get(name)
    if found is None:
        return ()
    if not isinstance(found, list):
        raise EtcdError(f"{name!r} is no list")
    return found


def number(table: Table, name: str) -> int:
    """A number in an answer; absent ones are 0 there. Raises EtcdError for anything else."""
    try:
        return int(str(table.get(name, 0)))
    except ValueError as error:
        raise EtcdError(f"{name!r} is no number: {table.get(name)!r}") from error


def state_of(message: Table) -> tuple[int, int]:
    """The term and revision of the store: neither goes back unless it has lost something."""
    header = cast("Table", message["header"])  # each answer has been checked for it
    return number(header, "raft_term"), number(header, "revision")


def after(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with `prefix`, whose last byte is not 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _table(content: bytes, name: str, status: int) -> Table:
    """The first line of an answer as a table."""
    try:
        found = json.loads(content.split(b"\n", 1)[0])
    except ValueError:
        found = None
    if isinstance(found, Mapping):
        return found
    if status >= 500 or status == 429:
        raise EtcdError(f"{name}: HTTP {status}")
    raise EtcdError(
        f"{name}: HTTP {status}, and not in JSON: this is no etcd of version 3.4 or newer, or its JSON gateway is off "
        "(--enable-grpc-gateway)",
        Kind.REFUSED,
    )


def _inner(table: Table) -> Table:
    """What a streamed message carries; others carry themselves."""
    result = table.get("result")
    return result if isinstance(result, Mapping) else table


def _checked(name: str, message: Table) -> Table:
    """`message`, if etcd can have sent it."""
    header = message.get("header")
    if not isinstance(header, Mapping) or "cluster_id" not in header:
        raise EtcdError(f"{name}: an answer without a header, as no etcd gives it")
    return message


def _unreachable(name: str, error: ServiceUnavailableError) -> EtcdError:
    """The error for a server that can't be spoken with; one of TLS is mended by whoever made the settings."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return EtcdError(f"{name}: TLS: {cause}", Kind.REFUSED)
        cause = cause.__cause__ or cause.__context__
    return EtcdError(f"{name} can't be reached: {error}" if name not in str(error) else str(error))
