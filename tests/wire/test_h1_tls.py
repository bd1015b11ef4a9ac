"""HTTP/1.1 over TLS: whom we trust, whose name must be in the certificate, and how a body may end."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping

import pytest
import trustme

from fastapi_mesh.config.policies import TimeoutPolicy
from fastapi_mesh.core.message import Request
from fastapi_mesh.exceptions import UpstreamConnectionError, UpstreamTimeoutError
from fastapi_mesh.wire.h1 import H1Wire
from tests.support.badserver import OK, BadServer, Peer, answering
from tests.support.calls import make_context, make_instance, make_request
from tests.wire.h1_support import LOOP_NAMES, LOOPS, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=LOOPS, ids=LOOP_NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
async def wire(authority: trustme.CA) -> AsyncIterator[H1Wire]:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    made = H1Wire(ssl_context=context)
    yield made
    await made.aclose()
    assert made.statistics()["open"] == 0


def request_to(
    server: BadServer, metadata: Mapping[str, str] | None = None, timeouts: TimeoutPolicy | None = None
) -> Request:
    instance = make_instance(server.port, scheme="https", metadata=metadata)
    return make_request(make_context(instance, timeouts=timeouts))


async def test_requests_over_tls_share_a_connection(wire: H1Wire, authority: trustme.CA):
    async with BadServer(answering(), tls=server_context(authority, "127.0.0.1")) as server:
        for _ in range(3):
            response = await wire(request_to(server))
            assert (response.status, await response.read()) == (200, b"ok")

        assert len(server.peers) == 1
        assert b"host: 127.0.0.1:%d\r\n" % server.port in server.peers[0].heads[0]
        await wire.aclose()
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)


async def test_a_name_in_the_metadata_is_the_one_that_is_verified(wire: H1Wire, authority: trustme.CA):
    async with BadServer(answering(), tls=server_context(authority, "users.mesh")) as server:
        assert (await wire(request_to(server, {"server_name": "users.mesh"}))).status == 200
        for metadata in (None, {"server_name": "orders.mesh"}):
            with pytest.raises(UpstreamConnectionError) as caught:
                await wire(request_to(server, metadata))
            assert not caught.value.request_sent

        assert wire.statistics()["open"] == 1


async def test_an_unknown_authority_is_refused(wire: H1Wire):
    async with BadServer(answering(), tls=server_context(trustme.CA(), "127.0.0.1")) as server:
        with pytest.raises(UpstreamConnectionError) as caught:
            await wire(request_to(server))

    assert not caught.value.request_sent
    assert "certificate" in str(caught.value).lower()


async def test_without_a_context_the_systems_trust_store_decides(authority: trustme.CA):
    wire = H1Wire()
    async with BadServer(answering(), tls=server_context(authority, "127.0.0.1")) as server:
        with pytest.raises(UpstreamConnectionError):
            await wire(request_to(server))
    await wire.aclose()


async def test_plain_http_on_the_other_end_is_a_connection_error(wire: H1Wire):
    async def script(peer: Peer) -> None:
        await peer.read_some()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with BadServer(script) as server:
        with pytest.raises(UpstreamConnectionError) as caught:
            await wire(request_to(server))

    assert not caught.value.request_sent


async def test_a_handshake_that_never_ends_is_a_connect_timeout(wire: H1Wire):
    async with BadServer(Peer.wait_closed_by_client) as server:
        with pytest.raises(UpstreamTimeoutError) as caught:
            await wire(request_to(server, timeouts=TimeoutPolicy(connect_timeout=0.1)))
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)

    assert (caught.value.phase, caught.value.request_sent) == ("connect", False)
    assert wire.statistics()["open"] == 0


async def test_a_call_cancelled_during_the_handshake_leaves_nothing(wire: H1Wire):
    async with BadServer(Peer.wait_closed_by_client) as server:
        call = asyncio.get_running_loop().create_task(wire(request_to(server)))
        await until(lambda: bool(server.peers))
        call.cancel()
        await asyncio.wait((call,))
        assert call.cancelled()
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)
        assert wire.statistics()["open"] == 0


async def test_a_body_until_close_is_complete_only_with_close_notify(wire: H1Wire, authority: trustme.CA):
    answer = b"HTTP/1.1 200 OK\r\n\r\nhello"

    async def in_order(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(answer)

    async def cut(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(answer)
        await asyncio.sleep(0.02)
        peer._writer.transport.abort()

    async with BadServer(in_order, cut, tls=server_context(authority, "127.0.0.1")) as server:
        response = await wire(request_to(server))
        assert await response.read_all() == b"hello"
        assert response.at_end

        response = await wire(request_to(server))
        with pytest.raises(UpstreamConnectionError):
            await response.read_all()


async def test_a_large_body_goes_both_ways(wire: H1Wire, authority: trustme.CA):
    body = bytes(range(256)) * 8000

    async def script(peer: Peer) -> None:
        while True:
            _, received = await peer.read_request()
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(received) + received)

    async with BadServer(script, tls=server_context(authority, "127.0.0.1")) as server:
        for _ in range(2):
            request = request_to(server)
            request.method, request.body = b"PUT", body
            assert await (await wire(request)).read_all() == body

        assert len(server.peers) == 1


async def test_an_idle_connection_that_says_goodbye_is_not_used_again(wire: H1Wire, authority: trustme.CA):
    async def once(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(OK)

    async with BadServer(once, tls=server_context(authority, "127.0.0.1")) as server:
        await wire(request_to(server))
        await until(lambda: wire.statistics()["open"] == 0)
        assert (await wire(request_to(server))).status == 200

    assert wire.statistics()["stale_retries"] == 0
