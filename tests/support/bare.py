"""Imports every module of the package that needs no extra, and measures what `import fastapi_mesh` costs.

Run by `nox -s bare` in an environment without extras; the arguments are the modules that belong to extras.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import fastapi_mesh

NEEDS_AN_EXTRA = ("fastapi_mesh.cli", "fastapi_mesh.testing.plugin")
"""Modules that may import what an extra or the test runner brings; theirs is the job to say so when it is missing."""

AIM, BOUND = 200.0, 400.0
"""Milliseconds that `import fastapi_mesh` may add to `import fastapi`: what we aim at, and what fails."""
RUNS = 7


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
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def import_cost() -> float:
    """Milliseconds that the package adds to fastapi, the best of several runs interleaved."""
    _seconds("import fastapi_mesh")
    pairs = [(_seconds("import fastapi"), _seconds("import fastapi; import fastapi_mesh")) for _ in range(RUNS)]
    alone, both = (min(times) for times in zip(*pairs, strict=True))
    print(f"import fastapi: {alone * 1000:.0f} ms; with fastapi_mesh: {both * 1000:.0f} ms (best of {RUNS})")
    return (both - alone) * 1000


def main() -> None:
    optional = sys.argv[1:]
    names = import_everything()
    imported = [name for name in optional if name in sys.modules]
    if imported:
        sys.exit(f"imported without being asked for: {', '.join(imported)}")
    print(f"{len(names)} modules imported without any extra")
    cost = import_cost()
    print(f"import fastapi_mesh adds {cost:.0f} ms to importing fastapi (aim < {AIM:.0f}, fails over {BOUND:.0f})")
    if cost > BOUND:
        sys.exit(1)


if __name__ == "__main__":
    main()
