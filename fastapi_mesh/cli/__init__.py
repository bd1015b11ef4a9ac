"""The command `fastapi-mesh`: one file per command, put together in `application`, on typer (extra `cli`)."""

from __future__ import annotations

import sys

PROGRAM = "fastapi-mesh"
HINT = f'{PROGRAM} needs typer and uvicorn: pip install "fastapi-mesh[cli]"'
BROUGHT_BY_EXTRA = ("typer", "click", "rich", "shellingham", "uvicorn")

__all__ = ["main"]


def main() -> None:
    """The console entry. Without the extra `cli`: one line that says what to install, and exit code 2."""
    try:
        import uvicorn  # noqa: F401  # the commands start it as a process; its absence is better told here

        from fastapi_mesh.cli.application import application
    except ModuleNotFoundError as error:
        if error.name not in BROUGHT_BY_EXTRA:
            raise
        print(HINT, file=sys.stderr)
        sys.exit(2)
    application(prog_name=PROGRAM)
