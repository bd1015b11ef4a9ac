"""Calls to an issuer: JSON from an address that was checked, of bounded size, without following where it leads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi_mesh.api_gateway.auth.compact import Json, read_object
from fastapi_mesh.config.edge.credentials import url_problem
from fastapi_mesh.exceptions import UpstreamProtocolError, UpstreamTimeoutError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi_mesh.wire.http import ControlClient, ControlResponse

LONGEST = 1024 * 1024
"""Bytes of an answer. Key sets have some 10 kB."""


class Issuer:
    """Plain calls over the control client, one for each origin. A redirect is an error: keys come from where we said.

    Raises UpstreamConnectionError, UpstreamTimeoutError and UpstreamProtocolError.
    """

    def __init__(self, *, timeout: float, allow_http: bool) -> None:
        self._timeout = timeout
        self._allow_http = allow_http
        self._clients: dict[str, ControlClient] = {}

    async def get(self, url: str) -> Json:
        """The JSON object at an address."""
        answer = await self._call("GET", url, {}, None)
        return self._object(url, answer)

    async def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Json:
        """The JSON object that answers a form."""
        answer = await self._call("POST", url, headers, form)
        return self._object(url, answer)

    async def ask(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> tuple[int, Json]:
        """The status and the JSON object that answer a form; {} for an error that is no JSON object."""
        answer = await self._call("POST", url, headers, form)
        if answer.status == 200:
            return 200, self._object(url, answer)
        try:
            return answer.status, read_object(answer.content)
        except ValueError:
            return answer.status, {}

    async def aclose(self) -> None:
        """Close all connections."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.aclose()

    async def _call(
        self, method: str, url: str, headers: Mapping[str, str], form: Mapping[str, str] | None
    ) -> ControlResponse:
        # Again, because an address may come from a document of the issuer.
        if problem := url_problem(url, insecure=self._allow_http):
            raise UpstreamProtocolError(f"an address of the issuer: {problem}")
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        client = self._clients.get(origin)
        if client is None:
            from fastapi_mesh.wire.http import ControlClient

            client = self._clients[origin] = ControlClient(
                origin, timeout=self._timeout, max_connections=20, max_size=LONGEST
            )
        accept = {"accept": "application/json", "accept-encoding": "identity", **headers}
        try:
            async with asyncio.timeout(self._timeout):  # the client's own bounds each wait, and there can be many
                return await client.request(method, url, headers=accept, form=form)
        except TimeoutError as error:
            raise UpstreamTimeoutError(f"{origin}: no answer in {self._timeout:g} s") from error

    @staticmethod
    def _object(url: str, answer: ControlResponse) -> Json:
        where = f"{urlsplit(url).hostname}{urlsplit(url).path}"
        if answer.status != 200:
            raise UpstreamProtocolError(f"{where} answered {answer.status}", request_sent=True)
        try:
            return read_object(answer.content)
        except ValueError as error:
            raise UpstreamProtocolError(f"{where} answered what is no JSON object", request_sent=True) from error
