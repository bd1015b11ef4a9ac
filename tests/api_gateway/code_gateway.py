"""A gateway made in code, for tests that start it with `--app`."""

from __future__ import annotations

import os

from fastapi_mesh.api_gateway import APIGateway

gateway = APIGateway("127.0.0.1", services={"up": os.environ["UPSTREAM"]})
gateway.configure_routes([{"path": "/api/*", "service": "up"}])
not_a_gateway = 1
