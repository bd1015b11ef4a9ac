"""Runs the demo from its first process to its last, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi_mesh.cli.stage.calls import PATHS
from fastapi_mesh.cli.stage.export import export
from fastapi_mesh.cli.stage.live import Logs
from fastapi_mesh.cli.stage.shop import Shop, StartError
from fastapi_mesh.cli.stage.story import Story
from fastapi_mesh.core.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi_mesh.cli.stage.screen import Screen

FAILED = 1
SIGNALLED = 128
"""Plus the number of the signal: what a shell reports for a command that a signal ended."""
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
SHOW_EVERY = 0.2


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command was asked for. `apps` and `logs` are folders: None means a temporary one."""

    port: int
    once: bool
    apps: Path | None = None
    logs: Path | None = None


def run(settings: Settings, screen: Screen) -> int:
    """The exit code: 0 when every promise was kept."""
    with tempfile.TemporaryDirectory(prefix="fastapi-mesh-demo-") as folder:
        temporary = Path(folder)
        apps = settings.apps
        if apps is None:
            apps = temporary / "apps"
            export(apps)
        logs = settings.logs or temporary / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        shop = Shop(apps, registry=temporary / "registry.db", logs=logs, gateway_port=settings.port)
        return asyncio.run(_play(shop, settings, screen))


async def _play(shop: Shop, settings: Settings, screen: Screen) -> int:
    story = Story(shop, screen)
    failed = False
    with _ended_by_signals() as heard:
        try:
            await _perform(shop, story, settings, screen)
        except StartError as error:
            failed = True
            screen.trouble(str(error))
        except asyncio.CancelledError:
            if not heard:
                raise
        finally:
            await _finish(shop, story, screen)
    broken = [verdict.promise for verdict in story.verdicts if not verdict.kept]
    for promise in broken:
        screen.trouble(f"broken promise: {promise}")
    if broken or failed:
        return FAILED
    expected = heard == [signal.SIGINT] and not settings.once  # Ctrl-C is how it is meant to end
    return 0 if expected or not heard else SIGNALLED + heard[0]


async def _finish(shop: Shop, story: Story, screen: Screen) -> None:
    """End all processes, also when nobody reads any more what is printed."""
    try:
        try:
            screen.title("The end")
        finally:
            story.end()
    finally:
        await shop.aclose()


async def _perform(shop: Shop, story: Story, settings: Settings, screen: Screen) -> None:
    screen.title("Mesh demo: three services with two instances each and a gateway, on this machine only")
    shop.start()
    await shop.wait_ready()
    for node in shop.nodes:
        screen.line(f"{node.name:<18} http://127.0.0.1:{node.port}   process {shop.children[node.name].pid}")
    screen.line(f"{'gateway':<18} {shop.url}   process {shop.children['gateway'].pid}")
    await story.play()
    if settings.once:
        return
    screen.title("It is all up: try it (Ctrl-C ends it)")
    for path in PATHS.values():
        screen.line(f"curl -i {shop.url}{path}")
    screen.line(f"kill -9 {shop.children['profile-service-2'].pid}   # then call again")
    screen.line(f"touch {shop.fault}   # order-service fails: call it six times; remove the file to mend it")
    screen.line(f"curl {shop.url}/metrics")
    screen.line("fastapi-mesh demo --export shop   # these applications, to edit")
    screen.title("Calls as they come")
    await _show_calls(shop, screen)


async def _show_calls(shop: Shop, screen: Screen) -> None:
    logs, clock = Logs(shop.logs), SystemClock()
    while True:
        for line in logs.new_lines():
            screen.line(line)
        await clock.sleep(SHOW_EVERY)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[list[signal.Signals]]:
    """Let a signal cancel the current task; what was heard is in the list."""
    heard: list[signal.Signals] = []
    task = asyncio.current_task()
    assert task is not None, "asyncio.run made it"
    loop = asyncio.get_running_loop()
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]

    def hear(number: signal.Signals) -> None:
        if not heard:
            task.cancel()
        heard.append(number)

    added = []
    for number in numbers:
        with contextlib.suppress(NotImplementedError):  # Windows: KeyboardInterrupt does it there
            loop.add_signal_handler(number, hear, number)
            added.append(number)
    try:
        yield heard
    finally:
        for number in added:
            loop.remove_signal_handler(number)
