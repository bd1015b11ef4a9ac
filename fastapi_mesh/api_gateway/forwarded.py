"""What an upstream is told about the client: X-Forwarded-*, Forwarded (RFC 7239) and Via.

Only the transport peer's address is a fact. What it says about others is believed if the peer is a trusted proxy: then
we add ourselves to its lists (`X-Forwarded-For`, `Forwarded`) and keep what it says of the original request
(`X-Forwarded-Proto`, `-Host`; `-Prefix` grows by ours; `X-Real-IP` and such pass). Anybody else's forwarding headers
are replaced, and those that we don't write are dropped.

What `Forwarded` says of client and protocol counts where the proxy sends no `X-Forwarded-*`: one that writes only those
may pass on a `Forwarded` that the client has made up.
"""

from __future__ import annotations

import logging
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.headers import FOR_SERVICES, RELATED
from fastapi_mesh.api_gateway.nodes import address_of, read_forwarded
from fastapi_mesh.config.fields import UNIX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.api_gateway.headers import Head
    from fastapi_mesh.core.instance import Message as Scope
    from fastapi_mesh.core.message import Header

logger = logging.getLogger("fastapi_mesh.gateway")

PROXY_HEADERS = (
    "the server in front believes X-Forwarded-For by itself, so clients can pretend to be somebody else; start uvicorn "
    "with --no-proxy-headers (proxy_headers=False) and name trusted proxies in trusted_proxies="
)

_MAX_PEERS = 4096
"""Addresses remembered at most; then the memory starts anew."""
_LONGEST = 64
"""Characters of an address that is remembered; what is longer is none."""


class _Peer:
    """What there is to say about a transport peer: worked out once per address."""

    __slots__ = ("address", "for_header", "node", "trusted")

    def __init__(self, text: str | None, networks: tuple[object, ...], *, trusts_unix: bool) -> None:
        self.trusted = trusts_unix and text is None
        self.node = b"for=unknown"
        self.address = b""
        try:
            address = ip_address(address_of(text or ""))
        except ValueError:
            pass  # a Unix socket, or a test client: nobody's address, so nothing to forward
        else:
            if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
                address = address.ipv4_mapped
            self.address = str(address).encode()
            self.node = b'for="[%b]"' % self.address if address.version == 6 else b"for=" + self.address
            self.trusted = any(address in network for network in networks)  # type: ignore[operator]
        self.for_header = (b"x-forwarded-for", self.address)


class Origin:
    """Where a request came from: what its transport peer is, and what that may say about others.

    `trusted` says whether the peer is one of `trusted_proxies`. `scheme` is what the client used (`http`, `https`),
    `address` the client's IP address as text, "" where there is none (a Unix socket): the last one in the chain of
    `X-Forwarded-For` that no trusted proxy has (Envoy's and nginx's `real_ip_recursive` rule), else the peer itself.
    Ports and brackets in the chain are left out; before something that is no address nobody is believed.
    """

    __slots__ = ("_chain", "_forwarding", "_peer", "scheme", "trusted")

    def __init__(self, forwarding: Forwarding, peer: _Peer, scheme: str, chain: bytes | None) -> None:
        self._forwarding = forwarding
        self._peer = peer
        self._chain = chain
        self.trusted = peer.trusted
        self.scheme = scheme

    @property
    def address(self) -> str:
        """Worked out when asked: most requests never need it."""
        chain = self._chain
        if chain:
            nearest = self._peer.address
            for hop in reversed(chain.split(b",")):
                peer = self._forwarding.peer(hop.strip(b" \t").decode("latin-1"))
                if not peer.address:  # no address, so nobody before it can be believed either
                    break
                nearest = peer.address
                if not peer.trusted:
                    break
            return nearest.decode()
        return self._peer.address.decode()


class Forwarding:
    """Appends the forwarding headers. `trusted_proxies` are addresses, CIDR networks or "unix"; none is trusted
    by default.
    """

    __slots__ = ("_networks", "_peers", "_trusts_unix", "_via", "_warned", "via")

    def __init__(self, trusted_proxies: Iterable[str] = (), via: str = "fastapi-mesh") -> None:
        self._warned = False
        self.configure(trusted_proxies, via)

    def configure(self, trusted_proxies: Iterable[str], via: str) -> None:
        """Change what it was made with, for requests from now on."""
        listed = tuple(trusted_proxies)
        self._trusts_unix = UNIX in listed
        self._networks = tuple(ip_network(each) for each in listed if each != UNIX)
        self._peers: dict[str | None, _Peer] = {}
        self._via = {version: (b"via", f"{version} {via}".encode()) for version in ("1.0", "1.1", "2", "2.0", "3")}
        self.via = self._via["1.1"]

    def append(self, head: Head, scope: Scope, prefix: bytes) -> Origin:
        """Add our headers to `head`; `prefix` is what was taken off the path. Says where the request came from."""
        client = scope.get("client")
        name = client[0] if client else None
        if head.forwarding is not None and client and client[1] == 0 and not self._warned:
            self._warned = True  # port 0 is what uvicorn writes when it has put X-Forwarded-For in the peer's place
            logger.warning("%s", PROXY_HEADERS)
        peer = self.peer(name)
        headers, host, received = head.headers, head.host, head.forwarding
        proto = b"https" if scope.get("scheme") == "https" else b"http"
        said: dict[bytes, bytes] = {}
        chain: bytes | None = None
        if received is not None and peer.trusted:
            for name, value in received:
                if name in RELATED or name in FOR_SERVICES:
                    headers.append((name, value))
                if name not in FOR_SERVICES:
                    said[name] = said[name] + b", " + value if name in said else value
        element = peer.node + b';host="' + host + b'";proto=' + proto
        if said:
            _append_said(headers, said, peer, element)
            prefix = said.get(b"x-forwarded-prefix", b"").rstrip(b"/") + prefix
            chain, proto = _believed(said, proto)
            headers.append((b"x-forwarded-proto", proto))
            headers.append((b"x-forwarded-host", said.get(b"x-forwarded-host", host)))
        else:
            if peer.address:
                headers.append(peer.for_header)
            headers.append((b"x-forwarded-proto", proto))
            headers.append((b"x-forwarded-host", host))
            headers.append((b"forwarded", element))
        if prefix:
            headers.append((b"x-forwarded-prefix", prefix))
        headers.append(self._via.get(scope["http_version"], self.via))
        if proto != b"https" and proto != b"http":
            proto = proto.rpartition(b",")[2].strip(b" \t").lower()
        scheme = "https" if proto == b"https" else "http"
        return Origin(self, peer, scheme, chain)

    def peer(self, name: str | None) -> _Peer:
        """What is known of an address."""
        return self._peers.get(name) or self._new_peer(name)

    def _new_peer(self, name: str | None) -> _Peer:
        if len(self._peers) >= _MAX_PEERS:
            self._peers.clear()
        peer = _Peer(name, self._networks, trusts_unix=self._trusts_unix)
        if name is None or len(name) <= _LONGEST:
            self._peers[name] = peer
        return peer


def _believed(said: dict[bytes, bytes], proto: bytes) -> tuple[bytes | None, bytes]:
    """The chain of clients, if any, and the protocol that a trusted proxy names; else `proto`, the connection's own."""
    if said.keys() != {b"forwarded"}:
        return said.get(b"x-forwarded-for"), said.get(b"x-forwarded-proto", proto)
    heard = read_forwarded(said[b"forwarded"])
    if heard is None:
        return None, proto
    chain, by_it = heard
    return chain, by_it if by_it in (b"https", b"http") else proto


def _append_said(headers: list[Header], said: dict[bytes, bytes], peer: _Peer, element: bytes) -> None:
    chain = said.get(b"x-forwarded-for")
    if not peer.address:  # a proxy over a Unix socket, which there is nothing to say of
        if chain:
            headers.append((b"x-forwarded-for", chain))
    else:
        headers.append((b"x-forwarded-for", chain + b", " + peer.address) if chain else peer.for_header)
    earlier = said.get(b"forwarded")
    headers.append((b"forwarded", earlier + b", " + element if earlier else element))
