"""Tests of WebSockets into applications of this process, with `websockets`' own client protocol as the peer."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from starlette.responses import PlainTextResponse
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from fastapi_mesh.core.message import Outcome
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.exceptions import ConfigurationError, UpstreamConnectionError, UpstreamTimeoutError
from fastapi_mesh.testing.clock import FakeClock
from fastapi_mesh.wire.asgi_websocket import CLOSE_TIMEOUT, MAX_MESSAGE
from tests.wire.asgi_support import asgi_wire, request_to, until

pytestmark = pytest.mark.anyio

HANDSHAKE = [
    (b"Upgrade", b"WebSocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"Sec-WebSocket-Version", b"13"),
]


def handshake(app, target=b"/ws", headers=()):
    return request_to(app, target, headers=[*HANDSHAKE, *headers])


class Peer:
    """The client's end: frames out, events in."""

    def __init__(self, response):
        self.response = response
        self.stream = response.upgrade
        self.protocol = ClientProtocol(parse_uri("ws://orders/"), max_size=None)
        self.protocol.state = self.protocol.state.__class__.OPEN
        self.protocol.parser = super(ClientProtocol, self.protocol).parse()
        next(self.protocol.parser)
        self.events: list[Frame] = []
        self.ended = False

    async def flush(self):
        for data in self.protocol.data_to_send():
            if data:
                await self.stream.write(data)

    async def send_text(self, text):
        self.protocol.send_text(text.encode())
        await self.flush()

    async def frame(self):
        """The next frame from the application, None at the end."""
        while not self.events and not self.ended:
            data = await self.stream.read()
            if not data:
                self.ended = True
                break
            self.protocol.receive_data(data)
            self.events += self.protocol.events_received()
            await self.flush()
        return self.events.pop(0) if self.events else None

    async def close(self, code=1000, reason=""):
        self.protocol.send_close(code, reason)
        await self.flush()

    async def until_end(self):
        while await self.frame() is not None:
            pass
        assert self.stream.at_end
        return self.protocol.close_rcvd


def echo_application(events):
    app = FastAPI()

    @app.websocket("/ws")
    async def echo(websocket: WebSocket):
        await websocket.accept(subprotocol="chat" if "chat" in websocket.scope["subprotocols"] else None)
        try:
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(message["code"], message.get("reason"))
                if message.get("text") is not None:
                    await websocket.send_text(message["text"] + "!")
                else:
                    await websocket.send_bytes(message["bytes"] + b"!")
        except WebSocketDisconnect as error:
            events.append((error.code, error.reason))

    return app


@pytest.mark.spec("X-11", "X-24")
async def test_text_and_bytes_go_both_ways_and_the_close_code_reaches_the_application():
    events = []
    async with asgi_wire() as wire:
        response = await wire(handshake(echo_application(events)))
        assert response.status == 101
        assert response.header(b"sec-websocket-accept") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert response.header(b"sec-websocket-protocol") is None
        outcomes = []
        response.on_close(lambda argument, outcome, error: outcomes.append(outcome), None)

        peer = Peer(response)
        await peer.send_text("héllo")
        assert (await peer.frame()).data.decode() == "héllo!"
        peer.protocol.send_binary(b"\x00\xff")
        await peer.flush()
        assert (await peer.frame()).data == b"\x00\xff!"
        await peer.close(4001, "enough")
        assert (await peer.until_end()).code == 4001
        await response.aclose()
        await until(lambda: events)
    assert events == [(4001, "enough")]
    assert outcomes == [Outcome.COMPLETE]


async def test_the_scope_is_a_websocket_s():
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        assert await receive() == {"type": "websocket.connect"}
        await send({"type": "websocket.close"})

    headers = [(b"Sec-WebSocket-Protocol", b"a, b"), (b"sec-websocket-protocol", b"c"), (b"Cookie", b"x=1")]
    async with asgi_wire() as wire:
        await wire(handshake(app, b"/w%20s?x=1", headers))
    [scope] = scopes
    assert (scope["type"], scope["scheme"], scope["path"], scope["query_string"]) == ("websocket", "ws", "/w s", b"x=1")
    assert scope["subprotocols"] == ["a", "b", "c"]
    assert "method" not in scope
    assert (b"cookie", b"x=1") in scope["headers"]


async def test_the_subprotocol_and_headers_of_the_accept_are_in_the_answer():
    async def app(scope, receive, send):
        await receive()
        headers = [(b"x-a", b"1"), (b"Set-Cookie", b"b=2")]
        await send({"type": "websocket.accept", "subprotocol": "chat", "headers": headers})
        await receive()

    async with asgi_wire() as wire:
        extension = (b"sec-websocket-extensions", b"permessage-deflate")
        response = await wire(handshake(app, headers=[(b"sec-websocket-protocol", b"chat"), extension]))
        assert response.header(b"sec-websocket-protocol") == b"chat"
        assert response.headers[-3:-1] == [(b"x-a", b"1"), (b"set-cookie", b"b=2")]
        assert response.header(b"sec-websocket-extensions") is None
        await response.aclose()


async def test_a_fragmented_message_arrives_whole():
    async with asgi_wire() as wire:
        response = await wire(handshake(echo_application([])))
        peer = Peer(response)
        peer.protocol.send_text(b"one ", fin=False)
        peer.protocol.send_continuation(b"two ", fin=False)
        peer.protocol.send_ping(b"still there?")
        peer.protocol.send_continuation(b"three", fin=True)
        data = b"".join(peer.protocol.data_to_send())
        for byte in data:
            await peer.stream.write(bytes([byte]))
        assert (await peer.frame()).opcode is Opcode.PONG
        assert (await peer.frame()).data == b"one two three!"
        await response.aclose()


async def test_pings_are_answered_without_the_application():
    async with asgi_wire() as wire:
        response = await wire(handshake(echo_application([])))
        peer = Peer(response)
        peer.protocol.send_ping(b"12")
        await peer.flush()
        frame = await peer.frame()
        assert (frame.opcode, frame.data) == (Opcode.PONG, b"12")
        await response.aclose()


@pytest.mark.spec("X-24")
async def test_the_application_s_close_code_reaches_the_peer_and_the_stream_ends_with_its_answer():
    after = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4403, "reason": "not you"})
        after.append(await receive())
        with pytest.raises(OSError, match="closed"):
            await send({"type": "websocket.send", "text": "x"})
        after.append("refused")

    async with asgi_wire() as wire:
        response = await wire(handshake(app))
        close = await Peer(response).until_end()
        assert (close.code, close.reason) == (4403, "not you")
        await until(lambda: len(after) == 2)
        await response.aclose()
    assert after[0] == {"type": "websocket.disconnect", "code": 4403, "reason": "not you"}


async def test_a_peer_that_does_not_answer_the_close_is_left_after_a_while():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1005})

    clock = FakeClock()
    async with asgi_wire(clock) as wire:
        response = await wire(handshake(app))
        assert await response.upgrade.read() == b"\x88\x00"
        supervisor = Supervisor()
        reading = supervisor.start(response.upgrade.read(), name="read")
        await clock.advance(CLOSE_TIMEOUT - 0.1)
        assert not reading.done()
        await clock.advance(0.2)
        assert await reading == b""
        await supervisor.aclose()


@pytest.mark.parametrize(("error", "code"), [(None, 1000), (RuntimeError("bug"), 1011)])
async def test_an_application_that_ends_closes_the_connection(error, code, caplog):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        if error is not None:
            raise error

    async with asgi_wire() as wire:
        response = await wire(handshake(app))
        assert (await Peer(response).until_end()).code == code
    assert ("bug" in caplog.text) == (error is not None)


async def test_an_application_that_is_ended_from_outside_goes_away():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    async with asgi_wire() as wire:
        response = await wire(handshake(app))
        await wire._supervisor.aclose()
        assert (await Peer(response).until_end()).code == 1001


async def test_a_peer_that_vanishes_is_1006_for_the_application():
    events = []
    async with asgi_wire() as wire:
        response = await wire(handshake(echo_application(events)))
        await response.upgrade.aclose()
        await until(lambda: wire.statistics()["running"] == 0)
        with pytest.raises(UpstreamConnectionError):
            await response.upgrade.write(b"x")
        assert await response.upgrade.read() == b""
    assert events == [(1006, "")]


async def test_a_connection_lasts_no_longer_than_it_may():
    clock, events = FakeClock(), []
    async with asgi_wire(clock) as wire:
        request = handshake(echo_application(events))
        request.context.policy = replace(request.context.policy, max_stream_duration=60.0)
        response = await wire(request)
        await clock.advance(61)
        with pytest.raises(UpstreamTimeoutError):
            await response.upgrade.read()
        with pytest.raises(UpstreamTimeoutError):
            await response.upgrade.write(b"x")
        await until(lambda: events)
    assert events == [(1006, "")]


async def test_the_application_may_clean_up_after_a_close_although_the_stream_is_gone():
    released, events = asyncio.Event(), []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        events.append((await receive())["code"])
        await released.wait()
        events.append("clean")

    async with asgi_wire() as wire:
        response = await wire(handshake(app))
        peer = Peer(response)
        await peer.close(1000)
        await peer.until_end()
        await response.aclose()
        released.set()
        await until(lambda: len(events) == 2)
    assert events == [1000, "clean"]


async def test_an_application_that_ignores_a_vanished_peer_is_cancelled():
    cancelled = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)

    async with asgi_wire() as wire:
        response = await wire(handshake(app))
        await asyncio.sleep(0)
        await response.aclose()
        await until(lambda: cancelled)


async def test_a_refusal_before_the_accept_is_a_403():
    app = FastAPI()

    @app.websocket("/ws")
    async def refuse(websocket: WebSocket):
        await websocket.close(code=4000)

    async with asgi_wire() as wire:
        response = await wire(handshake(app))
        assert (response.status, response.upgrade, await response.read_all()) == (403, None, b"")


async def test_a_refusal_may_be_a_whole_response():
    events = []
    app = FastAPI()

    @app.websocket("/ws")
    async def refuse(websocket: WebSocket):
        await websocket.send_denial_response(PlainTextResponse("log in first", status_code=401))
        assert (await websocket.receive())["type"] == "websocket.connect"
        events.append(await websocket.receive())

    async with asgi_wire() as wire:
        response = await wire(handshake(app))
        assert (response.status, await response.read_all()) == (401, b"log in first")
        await until(lambda: events)
    assert events[0]["type"] == "websocket.disconnect"


async def test_an_exception_before_the_accept_is_a_failed_connection():
    async def app(scope, receive, send):
        raise KeyError("bug")

    async with asgi_wire() as wire:
        with pytest.raises(UpstreamConnectionError, match="KeyError"):
            await wire(handshake(app))


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({b"sec-websocket-key": None}, 400),
        ({b"sec-websocket-key": b"short"}, 400),
        ({b"sec-websocket-version": b"8"}, 400),
    ],
)
async def test_an_invalid_handshake_never_reaches_the_application(change, status):
    called = []

    async def app(scope, receive, send):
        called.append(scope)

    headers = [(name, change.get(name.lower(), value)) for name, value in HANDSHAKE]
    async with asgi_wire() as wire:
        response = await wire(request_to(app, headers=[field for field in headers if field[1] is not None]))
        assert response.status == status
        assert b"WebSocket" in await response.read_all()
    assert called == []


async def test_only_get_opens_a_websocket():
    async with asgi_wire() as wire:
        response = await wire(request_to(echo_application([]), method=b"POST", headers=HANDSHAKE))
    assert (response.status, response.header(b"allow")) == (405, b"GET")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x83\x00\x00\x00\x00\xff\xfe\xfd", 1007),  # text that is not UTF-8
        (b"\x81\x03abc", 1002),  # not masked
        (b"\x82\xff" + (MAX_MESSAGE + 1).to_bytes(8, "big") + b"\x00\x00\x00\x00", 1009),
    ],
)
async def test_a_peer_that_breaks_the_protocol_is_told_why_and_so_is_the_application(data, code):
    events = []
    async with asgi_wire() as wire:
        response = await wire(handshake(echo_application(events)))
        await response.upgrade.write(data)
        assert (await Peer(response).until_end()).code == code
        await response.upgrade.write(b"more")
        await until(lambda: events)
    assert events[0][0] == code


@pytest.mark.spec("X-23")
async def test_a_slow_application_bounds_the_peer_and_a_slow_peer_the_application():
    received, sent, reading = [], [], asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await reading.wait()
        while len(received) < 4:
            received.append(len((await receive())["bytes"]))
        for _ in range(50):
            sent.append(1)
            await send({"type": "websocket.send", "bytes": b"x" * 40_000})

    async with asgi_wire() as wire:
        response = await wire(handshake(app))
        peer = Peer(response)
        supervisor = Supervisor()

        async def push():
            for _ in range(4):
                peer.protocol.send_binary(b"y" * 40_000)
                await peer.flush()

        pushing = supervisor.start(push(), name="push")
        for _ in range(50):
            await asyncio.sleep(0)
        assert not pushing.done()
        reading.set()
        await pushing
        for _ in range(50):
            await asyncio.sleep(0)
        assert received == [40_000] * 4
        assert len(sent) == 2
        total = 0
        while total < 50 * 40_000:
            total += len((await peer.frame()).data)
        assert (await peer.until_end()).code == 1000
        await supervisor.aclose()


async def test_a_flood_of_pings_waits_for_its_own_answers_to_be_read():
    async with asgi_wire() as wire:
        response = await wire(handshake(echo_application([])))
        supervisor = Supervisor()
        peer = Peer(response)

        async def flood():
            for _ in range(1000):
                peer.protocol.send_ping(b"x")
                await peer.flush()

        flooding = supervisor.start(flood(), name="flood")
        for _ in range(200):
            await asyncio.sleep(0)
        assert not flooding.done()
        pongs = 0
        while pongs < 1000:
            assert (await peer.frame()).opcode is Opcode.PONG
            pongs += 1
        await flooding
        await response.aclose()
        await supervisor.aclose()


async def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.server", None)
    async with asgi_wire() as wire:
        with pytest.raises(ConfigurationError, match=r"fastapi-mesh\[ws\]"):
            await wire(handshake(echo_application([])))


async def test_what_has_no_place_in_an_open_connection_is_refused():
    refused = []

    async def app(scope, receive, send):
        await receive()
        with pytest.raises(RuntimeError, match="no place"):
            await send({"type": "websocket.send", "text": "too early"})
        await send({"type": "websocket.accept"})
        with pytest.raises(RuntimeError, match="no place"):
            await send({"type": "websocket.accept"})
        refused.append(True)

    async with asgi_wire() as wire:
        response = await wire(handshake(app))
        assert (await Peer(response).until_end()).code == 1000
    assert refused == [True]
