"""Imports every module of the package that needs no extra, and measures what `import fastapi_mesh` costs.

Run by `nox -s bare`, in an environment without extras.
"""

from __future__ import annotations

import importlib
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
    "fastapi_mesh.testing.plugin",
    "fastapi_mesh.wire.h2",
)
"""Modules that may import what an extra or the test runner brings; theirs is the job to say so when it is missing."""

EXTRAS = ("uvicorn", "typer", "rich", "redis", "lightkube", "graphql", "yaml", "h2", "websockets", "opentelemetry.sdk")
"""Modules that extras bring; `import fastapi_mesh` must not import them where they happen to be installed."""

AIM, BOUND = 200.0, 400.0
"""CPU milliseconds that `import fastapi_mesh` may add to `import fastapi`: what we aim at, and what fails unless the
machine is so slow or busy that fastapi itself takes long (`FACTOR`)."""
FACTOR = 1.5
"""Times fastapi's own import."""
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


def _seconds(statement: str) -> float:
    code = f"import time; start = time.process_time(); {statement}; print(time.process_time() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def import_cost() -> tuple[float, float]:
    """CPU milliseconds of fastapi alone, and what the package adds to it: the best of several runs, interleaved."""
    _seconds("import fastapi_mesh")
    pairs = [(_seconds("import fastapi"), _seconds("import fastapi; import fastapi_mesh")) for _ in range(RUNS)]
    alone, both = (min(times) * 1000 for times in zip(*pairs, strict=True))
    return alone, both - alone


def main() -> None:
    names = import_everything()
    imported = [name for name in EXTRAS if name in sys.modules]
    if imported:
        sys.exit(f"imported without being asked for: {', '.join(imported)}")
    print(f"{len(names)} modules imported without any extra")
    alone, added = import_cost()
    print(f"import fastapi: {alone:.0f} ms of CPU; fastapi_mesh adds {added:.0f} ms (best of {RUNS}; aim < {AIM:.0f})")
    if added > max(BOUND, FACTOR * alone):
        sys.exit(f"too much: over {BOUND:.0f} ms and over {FACTOR} times fastapi's own")


if __name__ == "__main__":
    main()
