"""`python -m fastapi_mesh` is the command `fastapi-mesh`."""

from __future__ import annotations

from fastapi_mesh.cli import main

if __name__ == "__main__":
    main()
