"""A client of the Kubernetes API; the only file that meets lightkube (the extra `kubernetes`).

lightkube reads kubeconfigs and ServiceAccounts, authenticates (it reads a rotated token again), builds requests and
decodes. Watching is ours: its own watch asks again without a pause when a server ends each one at once, waits for ever
on a connection that is dead, and has no bookmarks.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.core.objects import Batch
from fastapi_mesh.exceptions import (
    ConfigurationError,
    ServiceUnavailableError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from fastapi_mesh.wire.http import stream_timeout, translated

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from lightkube.config.kubeconfig import SingleConfig
    from lightkube.core.generic_client import BasicRequest

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.objects import Kind, Object

PAGE = 500
"""Objects asked for at once."""
STEADY = 1.0
"""Seconds that a watch must have lasted to be begun anew at once; the caller waits after one that ends at once."""
ATTEMPTS = 3
"""How often in a row everything is asked for, where what the server said is too old at once, before it is an error."""
GONE = 410
MERGE = "application/merge-patch+json"


class KubernetesApi:
    """Connects when it is used first. `timeout` is seconds for an answer, `watch_timeout` for one watch."""

    def __init__(
        self,
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
        timeout: float = 10.0,
        watch_timeout: float = 60.0,
        clock: Clock | None = None,
    ) -> None:
        """Raises ConfigurationError for a kubeconfig that can't be used, and when lightkube is missing."""
        self._config = _configuration(kubeconfig, context)
        self._peer = self._config.cluster.server
        self._timeout = timeout
        self._watch_timeout = watch_timeout
        self._clock: Clock = clock or SystemClock()
        self._made: Any = None  # a GenericAsyncClient, whose methods have no types
        self._counts = {"lists": 0, "watches": 0, "events": 0}

    def __repr__(self) -> str:
        return f"<KubernetesApi {self._peer}>"

    @property
    def namespace(self) -> str:
        return self._config.namespace

    def statistics(self) -> dict[str, int]:
        """How often everything was asked for, how many watches were begun, and what they told."""
        return dict(self._counts)

    async def follow(self, kind: Kind, namespace: str, name: str | None = None) -> AsyncGenerator[Batch, None]:
        """See `Objects.follow`."""
        fields = f"metadata.name={name}" if name else None
        version: str | None = None
        attempts = 0
        while True:
            if version is None:
                attempts += 1
                objects, version = await self._everything(kind, namespace, fields)
                yield Batch(objects, complete=True)
            begun = self._clock.now()
            try:
                async with aclosing(self._events(kind, namespace, fields, version)) as events:
                    async for event, found in events:
                        attempts = 0
                        version = found["metadata"]["resourceVersion"]
                        if event != "BOOKMARK":
                            yield Batch({found["metadata"]["name"]: None if event == "DELETED" else found})
            except ServiceUnavailableError as error:
                if error.status_code == GONE and attempts < ATTEMPTS:
                    version = None
                elif not self._was_steady(begun) or not isinstance(
                    error, UpstreamConnectionError | UpstreamTimeoutError
                ):
                    raise
            else:
                if not self._was_steady(begun):
                    raise UpstreamProtocolError(f"{self._peer} ends each watch at once", request_sent=True)

    def _was_steady(self, begun: float) -> bool:
        return self._clock.now() - begun >= min(STEADY, self._watch_timeout / 2)

    async def first(self, kind: Kind, namespace: str) -> None:
        """See `Objects.first`."""
        await self._page(self._request("list", kind, namespace, params={"limit": "1"}), kind)

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """See `Objects.get`."""
        return await self._object(self._request("get", kind, namespace, name=name), name)

    async def put_data(self, namespace: str, name: str, data: Mapping[str, str | None]) -> None:
        """See `Objects.put_data`."""
        body = {"data": dict(data)}
        changed = self._request("patch", "configmaps", namespace, name=name, obj=body, headers={"Content-Type": MERGE})
        if await self._object(changed, name) is not None:
            return
        kept = {key: text for key, text in data.items() if text is not None}
        if not kept:
            return
        new = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": kept}
        request = self._request("post", "configmaps", namespace, obj=_config_map(new))
        try:
            await self._object(request, name)
        except ServiceUnavailableError as error:
            if error.status_code != 409:  # somebody else was first
                raise
            await self._object(changed, name)

    async def aclose(self) -> None:
        """See `Objects.aclose`."""
        client, self._made = self._made, None
        if client is not None:
            await client.close()

    # Requests

    async def _everything(self, kind: Kind, namespace: str, fields: str | None) -> tuple[dict[str, Object], str]:
        """All objects, page by page, and the version at which they were that. One that expires midway is begun anew."""
        self._counts["lists"] += 1
        for attempt in range(ATTEMPTS):
            objects: dict[str, Object] = {}
            more: str | None = None
            try:
                while True:
                    params = {"limit": str(PAGE), "fieldSelector": fields, "continue": more}
                    more, version, found = await self._page(self._request("list", kind, namespace, params=params), kind)
                    objects.update((each["metadata"]["name"], each) for each in found)
                    if not more:
                        return objects, version
            except ServiceUnavailableError as error:
                if error.status_code != GONE or attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _page(self, request: BasicRequest, kind: Kind) -> tuple[str | None, str, list[Object]]:
        from lightkube.core import decoders

        status, content = await self._answer(request)
        if not _is_success(status):
            raise self._failure(status, content)
        try:
            more, version, found = decoders.decode_list(content, _resource(kind))
            objects = [_plain(each) for each in found]
        except (ValueError, TypeError, AttributeError) as error:  # msgspec's errors are ValueErrors
            raise self._nonsense(error) from error
        if not version:
            raise self._nonsense("a list without a version")
        return more, version, objects

    async def _object(self, request: BasicRequest, name: str) -> Object | None:
        status, content = await self._answer(request)
        if status == 404 and not _names_the_api(content):
            return None
        if not _is_success(status):
            raise self._failure(status, content)
        try:
            found = json.loads(content)
            named = found["metadata"]["name"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._nonsense(error) from error
        if named != name:
            raise self._nonsense(f"{named!r} where {name!r} was asked for")
        return cast("dict[str, Any]", found)

    async def _answer(self, request: BasicRequest) -> tuple[int, bytes]:
        client = self._client()
        try:
            # httpx2's own limit is for each piece of an answer, and a server that drips never reaches it.
            async with asyncio.timeout(self._timeout):
                with translated(self._peer):
                    answer = await client.send(client.build_adapter_request(request))
        except TimeoutError as error:
            if isinstance(error, UpstreamTimeoutError):
                raise
            raise self._too_slow() from error
        return answer.status_code, answer.content

    async def _events(
        self, kind: Kind, namespace: str, fields: str | None, version: str
    ) -> AsyncGenerator[tuple[str, Object], None]:
        """What one watch tells, until the server ends it."""
        from lightkube.core.exceptions import ApiError
        from lightkube.core.generic_client import WatchDriver

        params = {
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(self._watch_timeout))),
            "resourceVersion": version,
            "fieldSelector": fields,
        }
        request = self._request("list", kind, namespace, watch=True, params=params)
        request.timeout = stream_timeout(self._timeout)
        driver: Any = WatchDriver(request, None)
        async with aclosing(self._lines(request)) as lines:
            async for line in lines:
                if not line.strip():
                    continue
                try:
                    event, found = driver.process_one_line(line)
                    plain = _plain(found)
                    assert plain["metadata"]["resourceVersion"], "each event has one"
                except ApiError as error:
                    status = error.status
                    raise self._error(status.code or 500, status.message or status.reason or "") from error
                except (ValueError, TypeError, AttributeError, KeyError, AssertionError) as error:
                    raise self._nonsense(error) from error
                self._counts["events"] += 1
                yield event, plain

    async def _lines(self, request: BasicRequest) -> AsyncGenerator[str, None]:
        client = self._client()
        self._counts["watches"] += 1
        try:
            with translated(self._peer):
                async with asyncio.timeout(self._timeout):
                    answer = await client.send(client.build_adapter_request(request), stream=True)
                async with aclosing(answer):
                    if not _is_success(answer.status_code):
                        raise self._failure(answer.status_code, await answer.aread())
                    async with aclosing(cast("AsyncGenerator[str, None]", answer.aiter_lines())) as lines:
                        while (line := await self._next(lines)) is not None:
                            yield line
        except TimeoutError as error:
            if isinstance(error, UpstreamTimeoutError):
                raise
            raise self._too_slow() from error

    async def _next(self, lines: AsyncGenerator[str, None]) -> str | None:
        """The next line, None at the end. A server ends each watch by itself; one that doesn't is not there."""
        async with asyncio.timeout(1.25 * self._watch_timeout + self._timeout):
            return await anext(lines, None)

    def _request(
        self, method: str, kind: Kind, namespace: str, *, params: Mapping[str, str | None] | None = None, **more: Any
    ) -> BasicRequest:
        given = dict(params or {})
        request = self._client().prepare_request(method, _resource(kind), namespace=namespace, params=given, **more)
        return cast("BasicRequest", request)

    def _client(self) -> Any:
        if self._made is None:
            from lightkube.config.client_adapter import ConnectionParams
            from lightkube.core.generic_client import GenericAsyncClient

            parameters = ConnectionParams(timeout=cast("Any", self._timeout), trust_env=False)
            try:
                self._made = GenericAsyncClient(parameters, self._config)
            except (OSError, ValueError) as error:  # certificates
                raise ConfigurationError(f"kubernetes: the kubeconfig's TLS material can't be used: {error}") from error
        return self._made

    # Errors

    def _failure(self, status: int, content: bytes) -> ServiceUnavailableError:
        """What an answer that is an error says: its `Status`, if it has one."""
        try:
            text = str(json.loads(content)["message"])
        except (ValueError, KeyError, TypeError):
            text = ""
        return self._error(status, text)

    def _error(self, status: int, text: str) -> ServiceUnavailableError:
        return ServiceUnavailableError(
            f"{self._peer} answered {status}{f': {text}' if text else ''}", status_code=status
        )

    def _nonsense(self, error: object) -> UpstreamProtocolError:
        return UpstreamProtocolError(
            f"{self._peer} is no Kubernetes API, or answers nonsense: {error}", request_sent=True
        )

    def _too_slow(self) -> UpstreamTimeoutError:
        return UpstreamTimeoutError(f"{self._peer} did not answer in time", phase="read")


def _configuration(kubeconfig: str | None, context: str | None) -> SingleConfig:
    try:
        from lightkube.config.kubeconfig import DEFAULT_KUBECONFIG, KubeConfig
        from lightkube.config.models import User
    except ImportError as error:
        raise ConfigurationError(
            "discovery.backend: 'kubernetes' needs lightkube; install it with pip install 'fastapi-mesh[kubernetes]'"
        ) from error
    try:
        if kubeconfig is not None:
            found = KubeConfig.from_file(kubeconfig)
        elif "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            found = KubeConfig.from_service_account()
        else:
            found = KubeConfig.from_file(os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or DEFAULT_KUBECONFIG)
        one = found.get(context)
    except Exception as error:  # lightkube's, the YAML parser's, or what odd content makes of either
        where = kubeconfig or "the pod's ServiceAccount, $KUBECONFIG or ~/.kube/config"
        raise ConfigurationError(
            f"discovery.kubernetes.kubeconfig: {where} can't be used: {error}; name a kubeconfig file there, or run "
            "in a pod with a ServiceAccount whose token is mounted"
        ) from error
    assert one is not None, "without a default it is found or raised"
    return one if one.user is not None else one._replace(user=User())


def _resource(kind: Kind) -> Any:
    if kind == "endpointslices":
        from lightkube.resources.discovery_v1 import EndpointSlice

        return EndpointSlice
    from lightkube.resources.core_v1 import ConfigMap

    return ConfigMap


def _config_map(content: dict[str, Any]) -> Any:
    from lightkube.resources.core_v1 import ConfigMap

    return ConfigMap.from_dict(content)


def _plain(found: Any) -> Object:
    """An object of lightkube's as its JSON was."""
    return cast("dict[str, Any]", found.to_dict())


def _is_success(status: int) -> bool:
    return 200 <= status < 300


def _names_the_api(content: bytes) -> bool:
    """Whether a 404 is not of an object: an API server's says which one, in `details`."""
    try:
        return not json.loads(content)["details"]["name"]
    except (ValueError, KeyError, TypeError):
        return True
