"""Runs http-tests/cache-tests (BSD-3-Clause, not part of this project) against a gateway, and counts what passes.

    nox -s cache_tests -- PATH_OF_CHECKOUT [--set '{"sharing": "strict"}'] [--id TEST] [--verbose]

The checkout needs its own dependencies (`npm install` in it) and node. Origin, gateway and client are processes of this
machine on free ports; the client is the suite's own. Fails when fewer tests pass than `REQUIRED` and `OPTIMAL` say.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.support.process import Processes, free_port

REQUIRED, OPTIMAL = 157, 93
"""What must pass of 160 and 105; docs/how-to/caching.md says why the others don't. Apache 2.4 passes 131 and 67,
trafficserver 132 and 70 (the suite's own results).
"""

JUDGE = """
import { readFileSync } from 'node:fs'
import tests from '%(checkout)s/tests/index.mjs'
import { determineTestResult, resultTypes } from '%(checkout)s/test-engine/lib/results.mjs'
const results = JSON.parse(readFileSync(process.argv[2]))
const names = new Map(Object.entries(resultTypes).map(([name, type]) => [type, name]))
const judged = []
for (const suite of tests) {
  for (const test of suite.tests) {
    if (!(test.id in results)) continue
    const verdict = names.get(determineTestResult(tests, test.id, results))
    judged.push([test.kind || 'required', test.id, verdict, String(results[test.id])])
  }
}
console.log(JSON.stringify(judged))
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="cache_tests")
    parser.add_argument("checkout", type=Path, help="A checkout of github.com/http-tests/cache-tests.")
    parser.add_argument("--set", default="{}", help="JSON that is laid over the cache's settings.")
    parser.add_argument("--id", default="", help="Run this test alone, and show what was said.")
    parser.add_argument("--verbose", action="store_true", help="List what failed of the checks too.")
    options = parser.parse_args()
    checkout = options.checkout.resolve()
    if not (checkout / "node_modules" / "undici").exists():
        sys.exit(f"{checkout} has no node_modules/undici: run `npm install` there first")
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder), tracebacks_allowed=True) as processes:
        port = free_port()
        origin = processes.start(
            ["node", str(checkout / "test-engine/server/server.mjs")],
            name="origin",
            port=port,
            environment={
                "npm_config_protocol": "http",
                "npm_config_port": str(port),
                "npm_config_pidfile": os.path.join(folder, "origin.pid"),
            },
        )
        origin.wait_listening()
        gateway = processes.app(
            "tests.foreign.cache_gateway:gateway",
            "--no-date-header",
            "--no-proxy-headers",
            name="gateway",
            environment={"ORIGIN": origin.url, "CACHE": options.set},
        ).wait_ready()
        output = client(checkout, gateway.url, options.id)
    if options.id:
        print(output)
        return 0
    return report(judge(checkout, output), verbose=options.verbose)


def client(checkout: Path, url: str, test: str) -> str:
    """Run the suite's client against `url`; what it prints is JSON, or the log of one test."""
    done = subprocess.run(
        ["node", "--no-warnings", str(checkout / "test-engine/cli.mjs")],
        env={**os.environ, "npm_config_base": url, "npm_config_id": test, "npm_package_config_id": ""},
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
    )
    return done.stdout


def judge(checkout: Path, output: str) -> list[tuple[str, str, str, str]]:
    """(kind, id, verdict, what was said) of each test, by the suite's own rules on what depends on what."""
    with tempfile.TemporaryDirectory() as folder:
        results, script = Path(folder, "results.json"), Path(folder, "judge.mjs")
        results.write_text(output[output.index("{") :])
        script.write_text(JUDGE % {"checkout": checkout})
        done = subprocess.run(
            ["node", "--no-warnings", str(script), str(results)], capture_output=True, text=True, timeout=60, check=True
        )
    return [(kind, name, verdict, said) for kind, name, verdict, said in json.loads(done.stdout)]


def report(judged: list[tuple[str, str, str, str]], *, verbose: bool) -> int:
    """Print the counts and what failed; 0 where enough passed."""
    passed = Counter(kind for kind, _, verdict, _ in judged if verdict in ("pass", "yes"))
    total = Counter(kind for kind, *_ in judged)
    for kind, name, verdict, said in judged:
        if verdict not in ("pass", "yes") and (verbose or kind != "check"):
            print(f"{kind:9} {name:55} {verdict:16} {said}")
    print(*(f"{kind} {passed[kind]} of {total[kind]}" for kind in ("required", "optimal", "check")), sep=", ")
    return 0 if passed["required"] >= REQUIRED and passed["optimal"] >= OPTIMAL else 1


if __name__ == "__main__":
    sys.exit(main())
