"""A config store in Consul's KV: a document under a key, watched by a blocking query."""

from __future__ import annotations

import base64
import binascii
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi_mesh.configstore.base import Entry, check_key, check_text
from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.discovery.consul_api import ConsulApi, ConsulError, decoded
from fastapi_mesh.discovery.consul_feeds import Feed, Limiter, Source, Terms
from fastapi_mesh.exceptions import ConfigStoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fastapi_mesh.config.servers import ServerSettings
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.control import Control, ControlAnswer

MAX_VALUE = 512 * 1024
"""Bytes that Consul keeps under one key (its kv_max_value_size)."""
MAX_WATCHES = 50
"""Keys watched by a blocking query of their own; the others are polled in turn."""


class ConsulStore:
    """Configuration in Consul, at `fastapi-mesh/{namespace}/config/{key}`.

    The token needs `key_prefix "fastapi-mesh/{namespace}/config/" { policy = "read" }`; to change it, "write".
    Use one object in one event loop at a time; `aclose` it at the end, which closes `control` too.
    """

    def __init__(
        self, control: Control, settings: ServerSettings, *, namespace: str = "default", clock: Clock | None = None
    ) -> None:
        self._settings = settings.consul
        self._clock: Clock = clock or SystemClock()
        self._api = ConsulApi(control, settings.consul, timeout=settings.request_timeout)
        self._terms = self._new_terms()
        self._prefix = f"fastapi-mesh/{namespace}/config/"
        self._feeds: dict[str, Feed[Entry]] = {}

    def statistics(self) -> dict[str, int]:
        """Keys watched, and how many of them by a blocking query of their own."""
        return {"watches": len(self._feeds), "blocking": self._terms.limiter.blocking}

    async def aclose(self) -> None:
        """Close all connections; the next use opens them again."""
        await self._api.aclose()
        self._api.closed = False
        self._feeds.clear()
        self._terms = self._new_terms()

    async def get(self, key: str) -> Entry | None:
        """See `ConfigStore.get`."""
        path = self._path(check_key(key))
        with self._told(key, "read"):
            answer = await self._api.read(path)
            return _entry(key, path, answer.content)

    async def watch(self, key: str) -> AsyncIterator[Entry | None]:
        """See `ConfigStore.watch`."""
        feed = self._enter(check_key(key))
        version = 0
        last: Entry | None = None
        try:
            while True:
                first = version == 0
                with self._told(key, "read"):
                    version = await feed.wait_newer(version)
                entry = feed.values.get(key)
                if first or (entry and entry.text) != (last and last.text):
                    last = entry
                    yield entry
        finally:
            feed.users -= 1
            if not feed.users:
                feed.close()
                self._feeds.pop(key, None)

    async def put(self, key: str, text: str) -> None:
        """See `ConfigWriter.put`."""
        path = self._path(check_key(key))
        content = check_text(key, text).encode()
        if len(content) > MAX_VALUE:
            raise ConfigStoreError(f"{key!r} has {len(content)} bytes; Consul keeps at most {MAX_VALUE} under a key")
        with self._told(key, "write"):
            answer = await self._api.write(path, content=content, remote=True)
            if decoded(answer, path) is not True:
                raise ConsulError(f"Consul did not store it: {answer.content[:100]!r}")

    async def delete(self, key: str) -> None:
        """See `ConfigWriter.delete`."""
        path = self._path(check_key(key))
        with self._told(key, "write"):
            answer = await self._api.write(path, method="DELETE", remote=True)
            if decoded(answer, path) is not True:
                raise ConsulError(f"Consul did not delete it: {answer.content[:100]!r}")

    def _new_terms(self) -> Terms:
        limiter = Limiter(min(MAX_WATCHES, self._settings.max_watches), self._clock)
        return Terms(self._api, limiter, self._clock, self._settings.wait)

    def _path(self, key: str) -> str:
        return f"/v1/kv/{quote(self._prefix + key)}"

    def _enter(self, key: str) -> Feed[Entry]:
        feed = self._feeds.get(key)
        if feed is None:
            path = self._path(key)

            def parse(answer: ControlAnswer | None) -> dict[str, Entry]:
                entry = _entry(key, path, answer)
                return {} if entry is None else {key: entry}

            feed = self._feeds[key] = Feed(self._terms, Source(path, parse))
        feed.users += 1
        return feed

    @contextmanager
    def _told(self, key: str, right: str) -> Iterator[None]:
        """Tell an error of Consul as the store's, with the key and the right that is missing."""
        try:
            yield
        except ConsulError as error:
            text = f"config key {key!r}: {error}"
            if error.answered == 403:
                text += f'; the token needs key "{self._prefix}{key}" {{ policy = "{right}" }}'
            if error.answered == 413:
                text += f"; this Consul keeps less than {MAX_VALUE} bytes under a key"
            raise ConfigStoreError(text) from error


def _entry(key: str, path: str, answer: ControlAnswer | None) -> Entry | None:
    """The entry of an answer to GET /v1/kv/KEY. Raises ConsulError for what is no such answer."""
    if answer is None:
        return None
    rows: Any = decoded(answer, path)
    try:
        (row,) = rows
        value, version = row["Value"], row["ModifyIndex"]
        text = "" if value is None else base64.b64decode(value, validate=True).decode()
    except (ValueError, TypeError, KeyError, binascii.Error) as error:
        raise ConsulError(f"what is under {key!r} is no text in UTF-8, or no answer of Consul: {error}") from error
    return Entry(key, text, str(version))
