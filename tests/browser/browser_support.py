"""A headless Chromium of its own, driven over the DevTools protocol."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import websockets
from websockets.asyncio.client import ClientConnection

from tests.support.servers import find

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # it can reach nothing but this machine
    "--remote-debugging-port=0",
)


class Page:
    """A tab. `errors` are exceptions that its scripts left to the browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, object]]] = {}
        self.session = ""
        self.errors: list[str] = []

    async def read(self) -> None:
        """Take what the browser says, until it ends."""
        with contextlib.suppress(websockets.ConnectionClosed):
            async for text in self._connection:
                message = json.loads(text)
                if message.get("id") in self._answers:
                    self._answers.pop(message["id"]).set_result(message)
                elif message.get("method") == "Runtime.exceptionThrown":
                    self.errors.append(json.dumps(message["params"]))

    async def command(self, method: str, **params: object) -> dict[str, object]:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        await self._connection.send(json.dumps(message))
        async with asyncio.timeout(20):
            result = await answer
        assert "error" not in result, f"{method}: {result['error']}"
        return result["result"]  # type: ignore[return-value]

    async def open(self, url: str) -> None:
        """Go there."""
        answer = await self.command("Page.navigate", url=url)
        assert "errorText" not in answer, answer

    async def reload(self) -> None:
        await self.command("Page.reload")

    async def value(self, expression: str) -> object:
        """The value of a JavaScript expression; promises are awaited."""
        answer = await self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")  # type: ignore[attr-defined,no-any-return]

    async def until(self, expression: str, timeout: float = 15.0) -> object:
        """Wait until an expression is true, and return its value."""
        found: object = None
        try:
            async with asyncio.timeout(timeout):
                while not found:
                    with contextlib.suppress(AssertionError):  # between two pages there is nothing to ask
                        found = await self.value(expression)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            log = await self.value("window.log")
            raise AssertionError(f"it never came true that {expression}; the page's log: {log}") from None
        return found


@asynccontextmanager
async def chromium() -> AsyncIterator[Page]:
    """A browser with an empty page, and its end."""
    program = find("chromium")
    assert program is not None, "the marker `server` asks for it"
    folder = Path(tempfile.mkdtemp(prefix="chromium-"))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond
            [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # its helpers end with it
        )
    try:
        async with websockets.connect(await _address(folder, process), max_size=None, proxy=None) as connection:
            page = Page(connection)
            reading = asyncio.get_running_loop().create_task(page.read())
            target = await page.command("Target.createTarget", url="about:blank")
            attached = await page.command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            page.session = str(attached["sessionId"])
            await page.command("Page.enable")
            await page.command("Runtime.enable")
            yield page
        await reading
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


async def _address(folder: Path, process: subprocess.Popen[bytes]) -> str:
    """Where its DevTools listen: it writes that into its folder."""
    file = folder / "DevToolsActivePort"
    async with asyncio.timeout(30):
        while not file.exists() or len(file.read_text().splitlines()) < 2:
            assert process.poll() is None, f"chromium ended: {(folder / 'log').read_text(errors='replace')}"
            await asyncio.sleep(0.05)
    port, path = file.read_text().splitlines()[:2]
    return f"ws://127.0.0.1:{port}{path}"
