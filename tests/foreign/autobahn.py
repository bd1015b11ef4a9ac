"""Runs the Autobahn test suite against WebSockets through a gateway: `nox -s autobahn [-- --cases 1.* 2.*]`.

Its fuzzing client talks to an echo service through a gateway on each of uvicorn's WebSocket protocols, and, for
comparison, to an echo without a gateway on the same protocol and to the service itself. The suite is written for
Python 2.7 and gets an environment of its own. Fails when a case fails through a gateway that does not fail without it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from websockets.asyncio.server import ServerConnection, serve  # noqa: E402

from tests.support.process import Processes  # noqa: E402

PROTOCOLS = ("websockets-sansio", "wsproto", "websockets")
SUITE = ROOT / ".nox" / "autobahn-suite"
SLOW = ("12.*", "13.*")
"""Compression, 216 cases that take half an hour: `--compression`."""
KINDS = ("OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED", "FAILED")


def suite() -> Path:
    """The suite's program, installed on first use."""
    program = SUITE / "bin" / "wstest"
    if not program.exists():
        python = _python2()
        subprocess.run([sys.executable, "-m", "virtualenv", "-q", "-p", python, str(SUITE)], check=True)
        subprocess.run([str(SUITE / "bin" / "pip"), "install", "-q", "autobahntestsuite"], check=True)
    return program


def _python2() -> str:
    candidates = [os.environ.get("PYTHON2", ""), shutil.which("python2.7") or ""]
    candidates += [str(path) for path in sorted(Path.home().glob(".pyenv/versions/2.7*/bin/python2.7"))]
    for candidate in candidates:
        if candidate and subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return candidate
    sys.exit("the suite needs a Python 2.7: none found; say where with PYTHON2=")


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=["*"])
    parser.add_argument("--compression", action="store_true", help="the cases 12.* and 13.* too")
    options = parser.parse_args()
    program = suite()
    folder = Path(tempfile.mkdtemp(prefix="autobahn-"))
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # most cases break a rule
    with Processes(folder) as processes:
        async with serve(echo, "127.0.0.1", 0, max_size=None, ping_interval=None) as server:
            url = f"127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
            agents = {"service": f"ws://{url}"}
            upstream = {"WS_UPSTREAM": f"http://{url}"}
            for ws in PROTOCOLS:
                settings = ("--ws", ws, "--ws-ping-interval", "0", "--log-level", "critical")
                for kind, target in (
                    ("alone", "tests.foreign.autobahn_app:app"),
                    ("gateway", "tests.api_gateway.websocket.ws_gateway_app:gateway"),
                ):
                    child = processes.app(target, *settings, name=f"{kind} {ws}", environment=upstream)
                    child.traceback_expected = True
                    child.wait_listening()
                    agents[f"{kind} {ws}"] = f"ws://127.0.0.1:{child.port}/api/ws"
            await run(program, folder, agents, options.cases, [] if options.compression else list(SLOW))
    if report(json.loads((folder / "report" / "index.json").read_text())):
        sys.exit(f"cases fail through the gateway; see {folder / 'report'}")
    shutil.rmtree(folder)


async def run(program: Path, folder: Path, agents: dict[str, str], cases: list[str], left_out: list[str]) -> None:
    spec = {
        "outdir": str(folder / "report"),
        "servers": [{"agent": agent, "url": url} for agent, url in agents.items()],
        "cases": cases,
        "exclude-cases": left_out,
        "exclude-agent-cases": {},
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    with (folder / "wstest.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(program), "-m", "fuzzingclient", "-s", str(folder / "spec.json"), cwd=folder, stdout=log, stderr=log
        )
        if await process.wait():
            sys.exit(f"the suite failed: {(folder / 'wstest.log').read_text()[-2000:]}")


def report(index: dict[str, dict[str, dict[str, str]]]) -> bool:
    """Print a line per agent; whether a case fails with a gateway and not without."""
    worse = False
    for agent, cases in index.items():
        counts = Counter(case["behavior"] for case in cases.values())
        closes = Counter(case["behaviorClose"] for case in cases.values())
        figures = ", ".join(f"{counts[kind]} {kind.lower()}" for kind in KINDS if counts[kind])
        print(f"{agent:28} {len(cases)} cases: {figures}; close: {dict(closes)}")
        failed = {name for name, case in cases.items() if "FAILED" in (case["behavior"], case["behaviorClose"])}
        if agent.startswith("gateway"):
            alone = index[agent.replace("gateway", "alone")]
            own = {name for name in failed if "FAILED" not in (alone[name]["behavior"], alone[name]["behaviorClose"])}
            if own:
                worse = True
                print(f"{'':28} fail through the gateway only: {' '.join(sorted(own))}")
            failed -= own
        if failed:
            print(f"{'':28} fail: {' '.join(sorted(failed))}")
    return worse


if __name__ == "__main__":
    asyncio.run(main())
