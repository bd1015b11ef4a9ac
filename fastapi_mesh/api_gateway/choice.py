"""Routes of the same path and method, told apart by host, headers, query and priority.

They are in one order: higher `priority` first; then an exact host before a pattern (the longer one first) before none;
then those with more conditions on headers and query; then one that names the method before one for all methods; then
as they were given. The first whose conditions all hold is taken. Hosts are looked up, not tried one by one, so that
thousands of virtual hosts cost what one does; routes that differ in headers or query only are tried in their order.
"""

from __future__ import annotations

import heapq
import re
from operator import itemgetter
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fastapi_mesh.config.edge.routing import ValueMatch
    from fastapi_mesh.core.instance import Message as Scope

    Test = Callable[[list[bytes]], bool]

R = TypeVar("R")

LONGEST_HOST = 255
"""Bytes of a host that patterns are looked up for; no name in the DNS is longer (RFC 1035 section 2.3.4)."""

_NO_HOST = b"*"
"""What stands for a route that takes every host."""


class Conditions:
    """What a route asks of a request besides path and method. `key` is equal where two ask for the same."""

    __slots__ = ("headers", "hosts", "key", "priority", "query")

    def __init__(
        self,
        hosts: Iterable[str] = (),
        headers: Mapping[str, ValueMatch] | None = None,
        query: Mapping[str, ValueMatch] | None = None,
        priority: int = 0,
    ) -> None:
        self.hosts = tuple(host.removeprefix("*").encode() for host in hosts)
        self.priority = priority
        self.headers = tuple((name.encode(), _test(match)) for name, match in sorted((headers or {}).items()))
        self.query = tuple((name.encode(), _test(match)) for name, match in sorted((query or {}).items()))
        self.key = (
            priority,
            *(tuple(sorted((name, repr(match)) for name, match in (each or {}).items())) for each in (headers, query)),
        )

    @property
    def is_empty(self) -> bool:
        """Whether every request of any host fulfils them."""
        return not (self.hosts or self.headers or self.query)

    def fulfilled(self, asked: Asked) -> bool:
        """Whether headers and query are as they must be."""
        for name, test in self.headers:
            if not test(asked.header(name)):
                return False
        return all(test(asked.parameters().get(name, [])) for name, test in self.query)


ALWAYS = Conditions()


def _test(match: ValueMatch) -> Test:
    """Whether the values of one name are as `match` says: of several, one is enough."""
    if match.exact is not None:
        wanted = match.exact.encode()
        return lambda values: wanted in values
    if match.regex is not None:
        fits = re.compile(match.regex).fullmatch
        return lambda values: any(fits(value.decode("utf-8", "replace")) is not None for value in values)
    return lambda values: bool(values) is match.present


class Asked:
    """What one request says, read when a condition asks for it."""

    __slots__ = ("_parameters", "_scope", "authority")

    def __init__(self, scope: Scope, authority: bytes | None) -> None:
        self._scope = scope
        self.authority = authority
        self._parameters: dict[bytes, list[bytes]] | None = None

    def header(self, name: bytes) -> list[bytes]:
        """All values of a header."""
        return [value for key, value in self._scope["headers"] if key == name or key.lower() == name]

    def parameters(self) -> dict[bytes, list[bytes]]:
        """The query as the HTML form encoding has it: name to values, decoded."""
        if self._parameters is None:
            found: dict[bytes, list[bytes]] = {}
            query: bytes = self._scope["query_string"]
            for pair in query.replace(b"+", b" ").split(b"&"):
                name, _, value = pair.partition(b"=")
                if pair:
                    found.setdefault(unquote_to_bytes(name), []).append(unquote_to_bytes(value))
            self._parameters = found
        return self._parameters

    def host(self) -> bytes:
        """The host that was asked, without port, in lower case; an absolute-form target names it before `Host` does."""
        host = self.authority
        if host is None:
            host = next(iter(self.header(b"host")), b"")
        return bare_host(host)


def bare_host(host: bytes) -> bytes:
    """A Host header without its port, brackets, upper case and the dot of an absolute name.

    >>> bare_host(b"Shop.Example.COM.:8080"), bare_host(b"[::1]:80")
    (b'shop.example.com', b'::1')
    """
    name = host[1:].partition(b"]")[0] if host[:1] == b"[" else host.partition(b":")[0]
    return name.lower().removesuffix(b".")


class Choice(Generic[R]):
    """The routes of one path and method, in their order, indexed by host. Immutable."""

    __slots__ = ("_by_host", "_by_suffix", "_others")

    def __init__(self, ordered: Iterable[tuple[Conditions, bytes | None, R]]) -> None:
        """`ordered` has each route once for each of its hosts, None for any."""
        groups: dict[bytes, list[tuple[int, Conditions, R]]] = {}
        for position, (conditions, host, route) in enumerate(ordered):
            groups.setdefault(host or _NO_HOST, []).append((position, conditions, route))
        self._others = _until_certain(groups.pop(_NO_HOST, []))
        self._by_suffix: dict[bytes, list[tuple[int, Conditions, R]]] = {}
        self._by_host: dict[bytes, list[tuple[int, Conditions, R]]] = {}
        for host in sorted(groups, key=len):  # the shorter suffixes first: the longer ones contain them
            below = self._below(host[1:] if host[:1] == b"." else host)
            merged = _until_certain(heapq.merge(groups[host], below, key=itemgetter(0)))
            (self._by_suffix if host[:1] == b"." else self._by_host)[host] = merged

    def pick(self, asked: Asked) -> R | None:
        """The first route whose conditions hold."""
        candidates = self._others
        if self._by_host or self._by_suffix:
            host = asked.host()
            candidates = self._by_host.get(host) or self._below(host)
        for _, conditions, route in candidates:
            if conditions.fulfilled(asked):
                return route
        return None

    def _below(self, host: bytes) -> list[tuple[int, Conditions, R]]:
        """The candidates of the longest pattern that `host` fits, which include those of the shorter ones."""
        if self._by_suffix and len(host) <= LONGEST_HOST:
            dot = host.find(b".", 1)
            while dot >= 0:
                found = self._by_suffix.get(host[dot:])
                if found is not None:
                    return found
                dot = host.find(b".", dot + 1)
        return self._others


def _until_certain(ordered: Iterable[tuple[int, Conditions, R]]) -> list[tuple[int, Conditions, R]]:
    """Up to the first one that asks for nothing but its host: what comes after it is never reached."""
    kept: list[tuple[int, Conditions, R]] = []
    for candidate in ordered:
        kept.append(candidate)
        if not (candidate[1].headers or candidate[1].query):
            break
    return kept


def settle(candidates: Iterable[tuple[int, Conditions, R]]) -> R | Choice[R]:
    """Of routes for one path and method, in the order they were given, what is to be asked at a request.

    Each comes with how far it is from naming the method (0: it does). It is the route itself where no request could
    find another one.
    """
    ranked: list[tuple[tuple[int, tuple[int, int], int, int, int], Conditions, bytes | None, R]] = []
    for index, (distance, conditions, route) in enumerate(candidates):
        count = len(conditions.headers) + len(conditions.query)
        for host in conditions.hosts or (None,):
            rank = (-conditions.priority, _host_rank(host), -count, distance, index)
            ranked.append((rank, conditions, host, route))
    ranked.sort(key=itemgetter(0))
    first = ranked[0]
    if first[1].is_empty:
        return first[3]
    return Choice((conditions, host, route) for _, conditions, host, route in ranked)


def _host_rank(host: bytes | None) -> tuple[int, int]:
    if host is None:
        return 2, 0
    return (1, -len(host)) if host[:1] == b"." else (0, 0)
