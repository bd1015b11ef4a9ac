"""`python -m fastapi_mesh.api_gateway --config gateway.toml`: a gateway as a program, without the command."""

from __future__ import annotations

import argparse
import sys

from fastapi_mesh.api_gateway.run import Options, run


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments and serve; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fastapi_mesh.api_gateway", description="Run an API gateway.")
    parser.add_argument("--config", metavar="FILE", help="its settings: a .toml, .yaml or .json file")
    parser.add_argument("--app", metavar="MODULE:NAME", help="a gateway made in code, instead of a file")
    parser.add_argument("--host", help="the address to listen on")
    parser.add_argument("--port", type=int, help="the port to listen on; 0: any free one")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that share the port")
    given = parser.parse_args(arguments)
    if given.config and given.app:
        parser.error("--config and --app exclude each other")
    return run(Options(given.config, given.app, given.host, given.port, given.workers))


if __name__ == "__main__":
    sys.exit(main())
