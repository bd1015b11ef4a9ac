"""A stand-in for a Kubernetes API server, which no package brings: list, watch and change of two kinds of objects.

It does what a real 1.36 server was seen to do: resource versions, bookmarks, watches that end by themselves, 410 in
both forms, pages with tokens that expire, refusals with a `Status`. `python -m tests.support.kubernetes_server PORT`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

BOOKMARKS_EVERY = 0.3
KINDS = {"endpointslices": ("discovery.k8s.io/v1", "EndpointSlice"), "configmaps": ("v1", "ConfigMap")}


class Server:
    """Its objects and their history. `tokens` are those it takes, empty for all; `forbidden` ones may do nothing."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.forbidden: list[str] = []
        self.requests: list[str] = []
        self._version = 100
        self._oldest = 0
        self._objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._history: list[tuple[int, str, str, str, dict[str, Any]]] = []
        self._changed = asyncio.Event()

    def application(self) -> Starlette:
        routes = [Route("/control", self._control, methods=["GET", "POST"])]
        for kind, (api, _) in KINDS.items():
            path = f"{'/api' if api == 'v1' else '/apis'}/{api}/namespaces/{{namespace}}/{kind}"
            routes.append(Route(path, self._collection(kind), methods=["GET", "POST"]))
            routes.append(Route(f"{path}/{{name}}", self._one(kind), methods=["GET", "PUT", "PATCH", "DELETE"]))
        return Starlette(routes=routes)

    async def _control(self, request: Request) -> Response:
        """What a test sets: tokens, forbidden, objects, compact; and what it asks for."""
        if request.method == "POST":
            given = await request.json()
            self.tokens, self.forbidden = given.get("tokens", self.tokens), given.get("forbidden", self.forbidden)
            if "objects" in given:
                self._objects = {tuple(key): found for key, found in given["objects"]}
                self.requests.clear()
            if given.get("compact"):
                self._version = max(self._version, given.get("version", 0)) + 1
                self._oldest = self._version
                self._history.clear()
                self._tell_watchers()
        return JSONResponse({"version": self._version, "requests": self.requests, "objects": [*self._objects.items()]})

    def _tell_watchers(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _refusal(self, request: Request) -> Response | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.tokens and token not in self.tokens:
            return status(401, "Unauthorized", "Unauthorized")
        if token in self.forbidden:
            return status(403, "Forbidden", f'{request.url.path} is forbidden: User "test" cannot do this')
        return None

    def _collection(self, kind: str) -> Any:
        async def handle(request: Request) -> Response:
            self.requests.append(f"{request.method} {request.url.path}?{request.url.query}")
            if (refusal := self._refusal(request)) is not None:
                return refusal
            namespace = request.path_params["namespace"]
            if request.method == "POST":
                body = await request.json()
                return self._put(kind, namespace, body["metadata"]["name"], body, new=True)
            if request.query_params.get("watch") == "true":
                return StreamingResponse(self._watch(kind, namespace, request), media_type="application/json")
            return self._list(kind, namespace, request)

        return handle

    def _one(self, kind: str) -> Any:
        async def handle(request: Request) -> Response:
            self.requests.append(f"{request.method} {request.url.path}")
            if (refusal := self._refusal(request)) is not None:
                return refusal
            namespace, name = request.path_params["namespace"], request.path_params["name"]
            found = self._objects.get((kind, namespace, name))
            if request.method == "PUT":
                return self._put(kind, namespace, name, await request.json())
            if found is None:
                text = f'{kind} "{name}" not found'
                return status(404, "NotFound", text, details={"name": name, "kind": kind})
            if request.method == "PATCH":
                assert request.headers["content-type"] == "application/merge-patch+json"
                return self._put(kind, namespace, name, merged(found, await request.json()))
            if request.method == "DELETE":
                del self._objects[kind, namespace, name]
                self._tell("DELETED", kind, namespace, found)
                return status(200, "", "", ok=True)
            return JSONResponse(found)

        return handle

    def _put(self, kind: str, namespace: str, name: str, body: dict[str, Any], *, new: bool = False) -> Response:
        key = kind, namespace, name
        if new and key in self._objects:
            return status(409, "AlreadyExists", f'{kind} "{name}" already exists')
        api, title = KINDS[kind]
        metadata = {**body.get("metadata", {}), "name": name, "namespace": namespace}
        event = "MODIFIED" if key in self._objects else "ADDED"
        stored = {**body, "apiVersion": api, "kind": title, "metadata": metadata}
        if kind == "endpointslices" and not stored.get("endpoints"):
            stored |= {"endpoints": None, "ports": None}
        self._objects[key] = stored
        return JSONResponse(self._tell(event, kind, namespace, stored), 201 if new else 200)

    def _tell(self, event: str, kind: str, namespace: str, found: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        found["metadata"] = {**found["metadata"], "resourceVersion": str(self._version)}
        copy = json.loads(json.dumps(found))
        self._history.append((self._version, event, kind, namespace, copy))
        self._tell_watchers()
        return copy

    def _list(self, kind: str, namespace: str, request: Request) -> Response:
        query = request.query_params
        found = [
            each
            for (of, where, _), each in sorted(self._objects.items())
            if of == kind and where == namespace and selected(each, query)
        ]
        version, begin = self._version, 0
        if token := query.get("continue"):
            version, begin = (int(part) for part in token.split("."))
            if version < self._oldest:
                return status(410, "Expired", "The provided continue parameter is too old")
        limit = int(query.get("limit", "0")) or len(found)
        page, rest = found[begin : begin + limit], len(found) - begin - limit
        api, title = KINDS[kind]
        metadata: dict[str, str] = {"resourceVersion": str(version)}
        if rest > 0:
            metadata["continue"] = f"{version}.{begin + limit}"
        return JSONResponse({"apiVersion": api, "kind": f"{title}List", "metadata": metadata, "items": page})

    async def _watch(self, kind: str, namespace: str, request: Request) -> AsyncIterator[bytes]:
        query = request.query_params
        version = int(query["resourceVersion"])
        end = time.monotonic() + float(query.get("timeoutSeconds", "60"))
        bookmarks = query.get("allowWatchBookmarks") == "true"
        told = time.monotonic()
        while (left := end - time.monotonic()) > 0:
            changed = self._changed
            if version < self._oldest:
                failure = {
                    "kind": "Status",
                    "status": "Failure",
                    "reason": "Expired",
                    "code": 410,
                    "message": "too old",
                }
                yield line("ERROR", {"apiVersion": "v1", "metadata": {}, **failure})
                return
            for number, event, of, where, found in self._history:
                if number > version and of == kind and where == namespace and selected(found, query):
                    yield line(event, found)
            version = self._version
            if bookmarks and time.monotonic() - told > BOOKMARKS_EVERY:
                told = time.monotonic()
                api, title = KINDS[kind]
                mark: dict[str, Any] = {"apiVersion": api, "kind": title}
                mark["metadata"] = {"resourceVersion": str(version), "creationTimestamp": None}
                if kind == "endpointslices":
                    mark |= {"endpoints": None, "ports": None, "addressType": ""}
                yield line("BOOKMARK", mark)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, BOOKMARKS_EVERY)):
                    await changed.wait()


def line(event: str, found: dict[str, Any]) -> bytes:
    return json.dumps({"type": event, "object": found}).encode() + b"\n"


def status(code: int, reason: str, message: str, *, ok: bool = False, **more: Any) -> Response:
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" if ok else "Failure"}
    return JSONResponse({**body, "reason": reason, "message": message, "code": code, **more}, code)


def selected(found: dict[str, Any], query: Any) -> bool:
    labels = found["metadata"].get("labels") or {}
    for pair in filter(None, query.get("labelSelector", "").split(",")):
        name, _, value = pair.partition("=")
        if labels.get(name) != value:
            return False
    name = query.get("fieldSelector", "").removeprefix("metadata.name=")
    return not name or found["metadata"]["name"] == name


def merged(found: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7396."""
    result = dict(found)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            result[name] = merged(result.get(name) or {}, value)
        else:
            result[name] = value
    return result


def main() -> None:
    config = uvicorn.Config(
        Server().application(),
        "127.0.0.1",
        int(sys.argv[1]),
        log_config=None,
        lifespan="off",
        timeout_graceful_shutdown=0,
    )
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
