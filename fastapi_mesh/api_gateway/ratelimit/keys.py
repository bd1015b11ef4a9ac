"""Who a request is counted for: the authenticated principal, else the client's address, or what the limit says.

Everything that identifies a client is hashed, so that no key, address or token is readable in a storage or a dump.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from hashlib import blake2b
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.exchange import Exchange

KeyFunction = Callable[["Exchange"], "str | Awaitable[str | None] | None"]
"""Says who a request is counted for; None: as the key `client` does."""
CostFunction = Callable[["Exchange"], "int | Awaitable[int]"]
"""Says how much a request counts; 0: it is not counted."""
Identify = Callable[["Exchange"], "str | Awaitable[str]"]

EVERYBODY = "all"
"""The identity where all clients share one count."""
_MAX_NETWORKS = 4096


def hashed(kind: str, value: str) -> str:
    """An identity: 96 bits, which tell more clients apart than there are."""
    return blake2b(f"{kind}:{value}".encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


class Identities:
    """Makes the functions that identify clients. `ipv6_prefix` are the bits of an IPv6 address that count."""

    def __init__(self, ipv6_prefix: int, functions: Mapping[str, KeyFunction]) -> None:
        self._prefix = ipv6_prefix
        self._functions = functions
        self._networks: dict[str, str] = {}

    def of(self, key: str) -> Identify:
        """The function for a limit's `key`. Raises KeyError for a function that nobody gave."""
        kind, _, name = key.partition(":")
        if kind == "header":
            return self._header(name)
        if kind == "function":
            return self._function(name, self._functions[name])
        return {
            "client": self.client,
            "ip": self.ip,
            "principal": _principal,
            "route": _everybody,
            "global": _everybody,
        }[kind]

    def client(self, request: Exchange) -> str:
        """Who was authenticated (a user, a service, or the holder of an API key), else the address."""
        principal = request.principal
        return self.ip(request) if principal is None else hashed("principal", principal.key)

    def ip(self, request: Exchange) -> str:
        """The client's address. All without one (over a Unix socket) are one client."""
        address = request.origin.address
        return self._networks.get(address) or self._network(address)

    def _network(self, address: str) -> str:
        text = address
        if ":" in address:
            parsed = ip_address(address)
            if parsed.version == 6:
                text = str(ip_network(f"{address.partition('%')[0]}/{self._prefix}", strict=False))
        if len(self._networks) >= _MAX_NETWORKS:
            self._networks.clear()
        identity = self._networks[address] = hashed("ip", text)
        return identity

    def _header(self, name: str) -> Identify:
        wanted = name.lower().encode()

        def identify(request: Exchange) -> str:
            # Those that came in: layers may have changed what goes on. Several count as one value, like one line.
            values = [value for key, value in request.scope["headers"] if key == wanted]
            if not values:
                return self.client(request)
            return hashed(f"header {name.lower()}", b", ".join(values).decode("latin-1"))

        return identify

    def _function(self, name: str, function: KeyFunction) -> Identify:
        def named(request: Exchange, value: object) -> str:
            if value is None:
                return self.client(request)
            if not isinstance(value, str):
                raise TypeError(f"the key function {name!r} returned {type(value).__name__}, not a str or None")
            return hashed(f"function {name}", value)

        async def later(request: Exchange, value: Awaitable[str | None]) -> str:
            return named(request, await value)

        def identify(request: Exchange) -> str | Awaitable[str]:
            value = function(request)
            return later(request, value) if isinstance(value, Awaitable) else named(request, value)

        return identify


def _principal(request: Exchange) -> str:
    return EVERYBODY if request.principal is None else hashed("principal", request.principal.key)


def _everybody(request: Exchange) -> str:
    return EVERYBODY


async def cost_of(name: str, function: CostFunction, request: Exchange) -> int:
    """What a cost function says. Raises TypeError or ValueError when it is no whole number of at least 0."""
    value = function(request)
    cost: object = await value if isinstance(value, Awaitable) else value
    if not isinstance(cost, int) or isinstance(cost, bool):
        raise TypeError(f"the cost function {name!r} returned {type(cost).__name__}, not an int")
    if cost < 0:
        raise ValueError(f"the cost function {name!r} returned {cost}; a request costs 0 or more")
    return cost
