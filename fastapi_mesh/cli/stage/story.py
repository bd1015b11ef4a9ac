"""The story that the demo plays, step by step; each step says which promises were kept."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from typing import TYPE_CHECKING

from fastapi_mesh.cli.stage.calls import PATHS, Answer, Tally
from fastapi_mesh.cli.stage.screen import Verdict
from fastapi_mesh.cli.stage.shop import LEASE, SERVICES
from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.exceptions import MeshError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi_mesh.cli.stage.screen import Screen
    from fastapi_mesh.cli.stage.shop import Shop

    Step = Callable[[], Awaitable[list[Verdict]]]

REACH = "calls through the gateway reach both instances of each service"
CRASH = "no call fails when an instance is killed"
ROTATION = "the killed instance is out of rotation"
RETURN = "started again, it is back in rotation"
OPEN = "the circuit of a failing service opens, and calls to it are refused without reaching it"
CLOSE = "the circuit closes once the service is well again"
END = "every process has ended"

CALLS_EACH = 10
CALLERS = 6
PAUSE = 0.005
"""Seconds between two calls of one caller; the point is that there are always some under way, not how many."""
BEFORE_CRASH, AFTER_CRASH = 0.6, 1.0
REFUSALS = 5
MOST_FAILURES = 50
PATIENCE = 10.0
"""Seconds for what takes about two."""
TRY_AGAIN = 0.1
SHOW_EVERY = 0.5


class Story:
    """Plays on a shop whose processes are ready. `verdicts` has what was seen so far, `play` adds to it."""

    def __init__(self, shop: Shop, screen: Screen) -> None:
        self.verdicts: list[Verdict] = []
        self._shop = shop
        self._screen = screen
        self._clock = SystemClock()
        self._victim = shop.of("profile-service")[0]
        self._calling = False

    async def play(self) -> None:
        """All steps but the last; a step that can't go on breaks its promises, and the next one is played."""
        await self._step("Calls through the gateway", self._reach_everyone, [REACH])
        await self._step(f"{self._victim.name} crashes (kill -9)", self._survive_a_crash, [CRASH, ROTATION])
        await self._step(f"{self._victim.name} is started again", self._come_back, [RETURN])
        await self._step("order-service begins to fail (500 to everything)", self._open_the_circuit, [OPEN])
        await self._step("order-service is mended", self._close_the_circuit, [CLOSE])

    def end(self) -> None:
        """End all processes. Not to be interrupted."""
        stubborn, left = self._shop.end(), self._shop.left()
        seen = f"{self._shop.started} of {self._shop.started}"
        if stubborn or left:
            seen = "; ".join(
                [f"{name} had to be killed" for name in stubborn] + [f"{name} still runs" for name in left]
            )
        self._judge(Verdict(END, not stubborn and not left, seen))

    async def _step(self, title: str, step: Step, promises: list[str]) -> None:
        self._screen.title(title)
        try:
            verdicts = await step()
        except MeshError as error:
            verdicts = [Verdict(promise, False, str(error)) for promise in promises]
        for verdict in verdicts:
            self._judge(verdict)

    def _judge(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        self._screen.verdict(verdict)

    async def _call(self, service: str) -> Answer:
        return await self._shop.caller.call(PATHS[service])

    def _who(self, tally: Tally) -> str:
        """Answers by instance."""
        names = self._shop.by_pid()
        counts = Counter({names[pid].name: count for pid, count in tally.by_pid.items() if pid in names})
        return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))

    # The steps

    async def _reach_everyone(self) -> list[Verdict]:
        nodes = self._shop.by_pid()
        failed, missed = "", []
        for service in SERVICES:
            tally = Tally()
            for _ in range(CALLS_EACH):
                tally.add(await self._call(service))
            self._screen.line(f"GET {PATHS[service]}, {tally.calls} times: {self._who(tally) or 'no answer'}")
            failed = failed or tally.failed
            reached = {nodes[pid].name for pid in tally.by_pid if pid in nodes}
            missed += [node.name for node in self._shop.of(service) if node.name not in reached]
        seen = failed or (f"nothing reached {', '.join(missed)}" if missed else "in turn")
        return [Verdict(REACH, not failed and not missed, seen)]

    async def _survive_a_crash(self) -> list[Verdict]:
        tally = Tally()
        self._calling = True
        gone, _ = await asyncio.gather(self._crash(tally), self._all_calling(tally))
        crash = Verdict(
            CRASH,
            not tally.failed and tally.calls > 0,
            f"{tally.calls} calls, {tally.failed or 'none failed'}"
            + (f", {tally.retried} of them answered by another instance after a retry" if tally.retried else ""),
        )
        after = [await self._call("profile-service") for _ in range(CALLS_EACH)]
        asked_in_vain = [str(answer) for answer in after if not answer.ok or answer.attempts > 1]
        seen = "it has left the registry, and every call succeeds at its first attempt"
        if not gone:
            seen = f"{self._victim.name} is still registered {LEASE + PATIENCE:g} s after its end"
        elif asked_in_vain:
            seen = f"{len(asked_in_vain)} of {len(after)} calls still tried it first"
        return [crash, Verdict(ROTATION, gone and not asked_in_vain, seen)]

    async def _all_calling(self, tally: Tally) -> None:
        await asyncio.gather(*(self._keep_calling(tally, number) for number in range(CALLERS)))

    async def _keep_calling(self, tally: Tally, first: int) -> None:
        for number in itertools.count(first):
            if not self._calling:
                return
            tally.add(await self._call(SERVICES[number % len(SERVICES)]))
            await self._clock.sleep(PAUSE)

    async def _crash(self, tally: Tally) -> bool:
        """Kill the victim while calls go on; whether it has left the registry."""
        try:
            await self._show(tally, BEFORE_CRASH)
            pid = self._shop.children[self._victim.name].pid
            before = tally.calls
            self._shop.kill(self._victim)
            killed = time.monotonic()
            self._screen.line(f"killed process {pid} after {before} calls, with {CALLERS} callers going on")
            await self._show(tally, AFTER_CRASH)
            gone = await self._shop.wait_registered(self._victim, present=False, timeout=LEASE + PATIENCE)
            if gone:
                self._screen.line(f"it has left the registry after {time.monotonic() - killed:.1f} s (its lease)")
            return gone
        finally:
            self._calling = False

    async def _show(self, tally: Tally, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await self._clock.sleep(min(left, SHOW_EVERY))
            self._screen.progress(f"{tally.calls} calls, {tally.failed or 'none failed'}   {self._who(tally)}")

    async def _come_back(self) -> list[Verdict]:
        self._shop.start_one(self._victim)
        await self._shop.wait_ready()
        began = time.monotonic()
        tally = Tally()
        pid = self._shop.children[self._victim.name].pid
        while not tally.by_pid[pid] and time.monotonic() < began + PATIENCE:
            tally.add(await self._call("profile-service"))
            await self._clock.sleep(PAUSE)
        took = time.monotonic() - began
        seen = f"{took:.1f} s after it was registered"
        if not tally.by_pid[pid]:
            seen = f"not within {PATIENCE:g} s"
        elif tally.failed:
            seen = f"{seen}, but {tally.failed}"
        return [Verdict(RETURN, bool(tally.by_pid[pid]) and not tally.failed, seen)]

    async def _open_the_circuit(self) -> list[Verdict]:
        before = await self._shop.served("order-service")
        self._shop.break_orders()
        answers: list[Answer] = []
        refused = 0
        while refused < REFUSALS and len(answers) < MOST_FAILURES:
            answers.append(await self._call("order-service"))
            refused += answers[-1].reason == "circuit-open"
        reached = await self._shop.served("order-service") - before
        told = ", ".join(f"{count} x {text}" for text, count in Counter(map(str, answers)).items())
        self._screen.line(f"{len(answers)} calls: {told}; {reached} of them reached order-service")
        open_at_once = refused == REFUSALS and all(answer.status == 503 for answer in answers[-REFUSALS:])
        seen = f"after {len(answers) - refused} failures, calls are answered 503 circuit-open at once"
        if not open_at_once:
            seen = f"{len(answers)} calls, and the circuit is not open: {told}"
        elif reached != len(answers) - refused:
            seen = f"{refused} calls were refused, but {reached} of {len(answers)} reached order-service"
        return [Verdict(OPEN, open_at_once and reached == len(answers) - refused, seen)]

    async def _close_the_circuit(self) -> list[Verdict]:
        self._shop.heal()
        began = time.monotonic()
        answer = await self._call("order-service")
        while not answer.ok and time.monotonic() < began + PATIENCE:
            await self._clock.sleep(TRY_AGAIN)
            answer = await self._call("order-service")
        if not answer.ok:
            return [Verdict(CLOSE, False, f"{answer} {PATIENCE:g} s later")]
        took = time.monotonic() - began
        tally = Tally()
        for _ in range(CALLS_EACH):
            tally.add(await self._call("order-service"))
        self._screen.line(
            f"trial calls were let through after {took:.1f} s; then {tally.calls} calls: {self._who(tally)}"
        )
        return [Verdict(CLOSE, not tally.failed, tally.failed or "all calls succeed")]
