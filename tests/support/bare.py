"""Imports every module of the package that needs no extra, and measures what `import fastapi_mesh` costs.

Run by `nox -s bare`, in an environment without extras.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import subprocess
import sys

import fastapi_mesh

NEEDS_AN_EXTRA = (
    "fastapi_mesh.api_gateway.cache.redis",
    "fastapi_mesh.api_gateway.http_server",
    "fastapi_mesh.api_gateway.metrics_server",
    "fastapi_mesh.api_gateway.strict",
    "fastapi_mesh.api_gateway.workers",
    "fastapi_mesh.cli",
    "fastapi_mesh.discovery.dns",
    "fastapi_mesh.service_mesh.backends.dns",
    "fastapi_mesh.testing.plugin",
    "fastapi_mesh.wire.h2",
)
"""Modules that may import what an extra or the test runner brings; theirs is the job to say so when it is missing."""

EXTRAS = (
    "uvicorn",
    "typer",
    "rich",
    "redis",
    "lightkube",
    "graphql",
    "yaml",
    "dns",
    "h2",
    "websockets",
    "opentelemetry.sdk",
)
"""Modules that extras bring; `import fastapi_mesh` must not import them where they happen to be installed."""

AIM = 200.0
"""CPU milliseconds that `import fastapi_mesh` may add to `import fastapi`, on a machine of today that is idle."""
FACTOR = 1.0
"""Times fastapi's own import, above which it fails: a slow or busy machine is slow for both."""
RUNS = 15
"""With 7 a busy quarter of a minute doubled all of them once (537 ms, where 25 runs later gave 252)."""


def import_everything() -> list[str]:
    """The names of all modules that could be imported; one that can't is an error."""
    names = [fastapi_mesh.__name__]
    for module in pkgutil.walk_packages(fastapi_mesh.__path__, "fastapi_mesh.", onerror=_raise):
        if not module.name.startswith(NEEDS_AN_EXTRA):
            importlib.import_module(module.name)
            names.append(module.name)
    return names


def _raise(name: str) -> None:
    raise ImportError(f"{name} can't be imported without an extra")


def _seconds(*statements: str) -> list[float]:
    """CPU seconds of each of `statements`, one after the other in a process of their own."""
    timed = "; ".join(f"{each}; times.append(time.process_time())" for each in statements)
    code = f"import time; times = [time.process_time()]; {timed}; print(*times)"
    # Without -P the current folder would come first: the checkout, whose modules may have to be compiled each time.
    out = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True).stdout
    times = [float(each) for each in out.split()]
    return [after - before for before, after in itertools.pairwise(times)]


def import_cost() -> list[float]:
    """CPU milliseconds of importing fastapi, then the package, then the gateway: the best of some runs."""
    steps = ("import fastapi", "import fastapi_mesh", "from fastapi_mesh import APIGateway")
    _seconds(*steps)
    runs = [_seconds(*steps) for _ in range(RUNS)]
    return [min(times) * 1000 for times in zip(*runs, strict=True)]


def main() -> None:
    names = import_everything()
    imported = [name for name in EXTRAS if name in sys.modules]
    if imported:
        sys.exit(f"imported without being asked for: {', '.join(imported)}")
    print(f"{len(names)} modules imported without any extra")
    fastapi, node, gateway = import_cost()
    print(
        f"CPU of importing, best of {RUNS}: fastapi {fastapi:.0f} ms, fastapi_mesh {node:.0f} ms more (aim < {AIM:.0f})"
    )
    print(f"a gateway, which is imported when it is asked for, {gateway:.0f} ms more")
    if node > max(AIM, FACTOR * fastapi):
        sys.exit(f"fastapi_mesh costs too much: over {AIM:.0f} ms and over {FACTOR:g} times fastapi's own")


if __name__ == "__main__":
    main()
