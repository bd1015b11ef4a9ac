"""WebSocket and EventSource of a real browser, through a gateway process that is drained and replaced."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from starlette.responses import HTMLResponse, StreamingResponse

from tests.api_gateway.gateway_support import serving
from tests.browser.browser_support import Page, chromium
from tests.support.process import ChildProcess, Processes

pytestmark = [pytest.mark.anyio, pytest.mark.server("chromium"), pytest.mark.spec("X-23", "X-24", "S-407")]

PAGE = """<!doctype html><title>streams</title><script>
window.log = [];
const url = location.origin.replace("http", "ws") + "/api/ws";
function dial(query) {
  const socket = new WebSocket(url + (query || ""), ["chat.v2", "chat.v1"]);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => log.push(["open", socket.protocol, socket.extensions]);
  socket.onmessage = (event) => log.push(["message",
    typeof event.data === "string" ? event.data : Array.from(new Uint8Array(event.data)).join(",")]);
  socket.onclose = (event) => log.push(["close", event.code, event.reason, event.wasClean]);
  return socket;
}
window.socket = dial();
window.source = new EventSource("/api/events");
window.events = [];
source.onmessage = (event) => events.push(event.lastEventId + ":" + event.data);
source.onerror = () => events.push("error");
</script>"""


class Live:
    """The service behind the gateway: a page, an echo, and events that go on where a client left off."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.left: list[int] = []
        self.resumed: list[str | None] = []
        self.go_on = asyncio.Event()
        self.app.get("/api/page")(self.page)
        self.app.get("/api/events")(self.events)
        self.app.websocket("/api/ws")(self.chat)

    async def page(self) -> HTMLResponse:
        return HTMLResponse(PAGE)

    async def events(self, request: Request) -> StreamingResponse:
        last = request.headers.get("last-event-id")
        self.resumed.append(last)

        async def stream() -> AsyncIterator[str]:
            yield "retry: 50\n\n"
            number = int(last or 0)
            while True:
                number += 1
                yield f"id: {number}\ndata: event {number}\n\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def chat(self, socket: WebSocket, refuse: bool = False) -> None:
        if refuse:
            await socket.close()
            return
        await socket.accept("chat.v1")
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    self.left.append(message["code"])
                    return
                if message.get("text") == "die":
                    raise ConnectionAbortedError("as a crash does")
                if message.get("text", "").startswith("close "):
                    await socket.close(int(message["text"][6:]), "as you like")
                    return
                await socket.send({**message, "type": "websocket.send"})
        except WebSocketDisconnect as gone:
            self.left.append(gone.code)


def start_gateway(processes: Processes, upstream: int, port: int | None = None) -> ChildProcess:
    return processes.app(
        "tests.api_gateway.websocket.ws_gateway_app:gateway",
        port=port,
        environment={"WS_UPSTREAM": f"http://127.0.0.1:{upstream}"},
    )


async def test_a_browser_talks_reloads_and_survives_a_restart_of_the_gateway(processes: Processes) -> None:
    live = Live()
    async with serving(live.app, ws="wsproto") as upstream:
        gateway = await start_gateway(processes, upstream).ready()
        async with chromium() as page:
            await page.open(f"{gateway.url}/api/page")

            opened = await page.until("log.find(each => each[0] === 'open')")
            assert opened[1] == "chat.v1"  # type: ignore[index]
            assert opened[2].startswith("permessage-deflate")  # type: ignore[index]
            await page.value("socket.send('grüße'); socket.send(new Uint8Array([0, 255, 7])); 1")
            await page.until("log.length === 3")
            assert await page.value("log.slice(1)") == [["message", "grüße"], ["message", "0,255,7"]]
            await page.until("events.length >= 3")
            assert await page.value("events.slice(0, 3)") == ["1:event 1", "2:event 2", "3:event 3"]

            await page.reload()
            await page.until("log.length === 1 && log[0][0] === 'open' && events.length > 1")
            assert await page.value("events[0]") == "1:event 1"
            assert live.left == [1001]  # a page that goes says Going Away

            await page.value("socket.send('close 4001'); 1")
            await page.until("log.length === 2")
            assert await page.value("log[1]") == ["close", 4001, "as you like", True]
            await page.value("log.length = 0; window.socket = dial('?refuse=true'); 1")
            await page.until("log.length === 1")
            assert await page.value("log[0].slice(0, 2)") == ["close", 1006]  # all that a page may know
            await redial(page)
            await page.value("socket.send('die'); 1")
            await page.until("log.length === 2")
            assert await page.value("log[1]") == ["close", 1011, "the service is gone", True]
            await redial(page)

            resumed = len(live.resumed)
            gateway.signal(signal.SIGTERM)
            await page.until("log.length === 2")
            assert await page.value("log[1]") == ["close", 1012, "service restart", True]
            await page.until("events.includes('error')")
            assert await asyncio.to_thread(gateway.ended, 10) in (0, -signal.SIGTERM)
            last = await page.value("events.filter(each => each !== 'error').pop()")
            count = await page.value("events.filter(each => each !== 'error').length")
            await start_gateway(processes, upstream, gateway.port).ready()
            await page.until(f"events.filter(each => each !== 'error').length >= {count} + 2")
            number = int(str(last).partition(":")[0])
            after = await page.value(f"events.filter(each => each !== 'error').slice({count}, {count} + 2)")
            assert after == [f"{each}:event {each}" for each in (number + 1, number + 2)]
            # It may come back once to the gateway that ends, whose port closes a tenth of a second later.
            assert set(live.resumed[resumed:]) == {str(number)}
            assert page.errors == []


async def redial(page: Page) -> None:
    await page.value("log.length = 0; window.socket = dial(); 1")
    await page.until("log.length === 1 && log[0][0] === 'open'")
