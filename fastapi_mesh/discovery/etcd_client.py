"""A client of etcd's JSON gateway (`/v3`, etcd 3.4 and newer): several endpoints, tokens, calls and watches."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from fastapi_mesh.discovery.etcd_messages import (
    EtcdError,
    Kind,
    checked,
    encoded,
    inner_of,
    refusal,
    table_of,
    unreachable,
)
from fastapi_mesh.exceptions import InvalidRequestError, ServiceUnavailableError, UpstreamTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from fastapi_mesh.core.control import Control
    from fastapi_mesh.discovery.etcd_messages import Table

_LEADER = {"Grpc-Metadata-Hasleader": "true"}
"""Makes a member that has lost the others end a watch, instead of staying silent (clientv3.WithRequireLeader)."""


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

    @property
    def server(self) -> tuple[str, int]:
        """Host and port of the endpoint that is asked now."""
        parts = urlsplit(self._endpoints[self._current][0])
        return parts.hostname or "", parts.port or 0

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
        except (ServiceUnavailableError, InvalidRequestError) as error:  # the latter for a token that is none
            raise unreachable(name, error) from error
        table = table_of(answer.content, name, answer.status)
        if answer.status != 200 or "error" in table:
            raise refusal(name, table, answer.status, self._username)
        return checked(name, inner_of(table))

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
            raise unreachable(name, error) from error
        except InvalidRequestError as error:
            raise unreachable(name, error) from error
        except ServiceUnavailableError as error:
            if error.status_code is None:
                raise unreachable(name, error) from error
            raise refusal(
                name, table_of(error.body, name, error.status_code), error.status_code, self._username
            ) from error

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
        table = table_of(text.encode(), name, 200)
        if "error" in table:
            raise refusal(name, table, 200, self._username)
        message = inner_of(table)
        if message.get("canceled"):
            if message.get("compact_revision"):
                raise EtcdError(f"{name}: the revision is compacted", Kind.COMPACTED)
            raise refusal(name, {"message": message.get("cancel_reason", "")}, 200, self._username)
        return checked(name, message)
