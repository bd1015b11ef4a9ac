"""Consul's HTTP API as the registry and the config store use it: blocking queries, and errors that say what to do."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from fastapi_mesh.exceptions import MeshError, UpstreamConnectionError, UpstreamProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastapi_mesh.config.consul import ConsulConfig
    from fastapi_mesh.core.control import Control, ControlAnswer, Scalar

    Pairs = list[tuple[str, Scalar]]

INDEX = "x-consul-index"
FILTERED = "x-consul-results-filtered-by-acls"
"""Consul 1.11 and later say so when a token may not see all of an answer; earlier ones leave it out in silence."""

SLACK = 5.0
"""Seconds at most that a blocking query may take longer than it asked for: a connection that broke in silence (a
firewall that forgot it) is given up then, so that a node watches again within 20 s."""

SHOWN = 200
"""Characters of an answer that an error shows."""


class ConsulError(MeshError):
    """Consul can't be reached, refuses, or answers what Consul does not.

    `answered` is the status, 0 without one. `dropped`: the connection was made, and closed without an answer.
    """

    def __init__(self, message: str, *, answered: int = 0, dropped: bool = False) -> None:
        super().__init__(message)
        self.answered = answered
        self.dropped = dropped


@dataclass(frozen=True, slots=True)
class Answered:
    """What a query gave. `index` is Consul's for the next one (https://developer.hashicorp.com/consul/api-docs/
    features/blocking); `content` is None where there is nothing (404).
    """

    index: int
    content: ControlAnswer | None


class ConsulApi:
    """Calls to one agent. `timeout` is seconds for each step of an answer; the whole may take twice as long."""

    def __init__(
        self,
        control: Control,
        settings: ConsulConfig,
        *,
        timeout: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._control = control
        self._settings = settings
        self._timeout = timeout
        self._jitter = jitter
        place = {"ns": settings.namespace, "partition": settings.partition}
        self._place: Pairs = [(name, value) for name, value in place.items() if value is not None]
        self._reading: Pairs = [*self._place]
        if settings.datacenter is not None:
            self._reading.append(("dc", settings.datacenter))
        self._consistency: Pairs = [] if settings.consistency == "default" else [(settings.consistency, "")]
        self.closed = False

    async def aclose(self) -> None:
        """Close all connections; later calls raise ConsulError until `closed` is False again."""
        self.closed = True
        await self._control.aclose()

    async def write(
        self, path: str, *, json: object = None, content: bytes | None = None, method: str = "PUT", remote: bool = False
    ) -> ControlAnswer:
        """Change something of the agent; with `remote` in the datacenter of the settings. Raises ConsulError."""
        params = self._reading if remote else self._place
        answer = await self._call(method, path, params, json=json, content=content)
        if answer.status != 200:
            raise refusal(method, path, answer)
        return answer

    async def read(self, path: str, params: Sequence[tuple[str, Scalar]] = ()) -> Answered:
        """Read at once. Raises ConsulError."""
        return await self.query(path, params, index=0, wait=0.0)

    async def query(self, path: str, params: Sequence[tuple[str, Scalar]] = (), *, index: int, wait: float) -> Answered:
        """Read; with an `index` only when there is something newer, or after `wait` seconds. Raises ConsulError."""
        asked: Pairs = [*params, *self._reading, *self._consistency]
        wait = wait * (0.9 + 0.1 * self._jitter()) if index else 0.0  # so that watches begun together don't end so
        if index:
            asked += [("index", index), ("wait", f"{int(wait * 1000)}ms")]
        # Consul adds up to a sixteenth of the wait.
        answer = await self._call("GET", path, asked, wait=wait * 17 / 16)
        if answer.status not in (200, 404):
            raise refusal("GET", path, answer)
        stated = answer.headers.get(INDEX, "")
        if not (stated.isascii() and stated.isdigit()):
            raise ConsulError(f"what answered to GET {path} is not Consul: there is no {INDEX}", answered=answer.status)
        # Index 0 would not block (documentation of blocking queries, "Implementation Details").
        return Answered(max(1, int(stated)), answer if answer.status == 200 else None)

    async def ask(self, path: str) -> ControlAnswer:
        """GET a `path` without an index of its own, whatever the status of the answer. Raises ConsulError."""
        return await self._call("GET", path, [])

    async def _call(
        self,
        method: str,
        path: str,
        params: Pairs,
        *,
        json: object = None,
        content: bytes | None = None,
        wait: float = 0.0,
    ) -> ControlAnswer:
        if self.closed:
            raise ConsulError("the client of Consul is closed")
        patience = min(self._timeout, SLACK) if wait else self._timeout
        whole = wait + 2 * patience  # an answer may come byte by byte
        try:
            async with asyncio.timeout(whole):
                return await self._control.request(
                    method, path, params=params, json=json, content=content, timeout=wait + patience
                )
        except TimeoutError as error:  # ours, and the client's
            text = str(error) or f"no whole answer within {whole:.1f} s"
            raise ConsulError(f"Consul does not answer {method} {path}: {text}") from error
        except UpstreamProtocolError as error:
            raise ConsulError(f"what answered to {method} {path} does not speak HTTP: {error}") from error
        except UpstreamConnectionError as error:
            raise ConsulError(f"Consul can't be reached: {error}", dropped=error.request_sent) from error
        except MeshError as error:
            raise ConsulError(f"Consul can't be asked {method} {path}: {error}") from error


def decoded(answer: ControlAnswer, path: str) -> object:
    """The answer's JSON. Raises ConsulError."""
    try:
        return answer.json()
    except (MeshError, RecursionError) as error:
        raise ConsulError(f"what answered to GET {path} is not Consul: {error}", answered=answer.status) from error


def refusal(method: str, path: str, answer: ControlAnswer) -> ConsulError:
    """The error for an answer that is not what was wanted, with Consul's own words."""
    words = " ".join(answer.content[: 4 * SHOWN].decode("utf-8", "replace").split())
    words = "".join(each for each in words if each.isprintable())[:SHOWN]
    return ConsulError(f"Consul answered {answer.status} to {method} {path}: {words}", answered=answer.status)


def segment(text: str) -> str:
    """`text` as one segment of a path."""
    return quote(text, safe="")
