"""A gateway over the fixed instances that INSTANCES lists; started by the scenarios."""

from __future__ import annotations

import os

from fastapi_mesh import APIGateway

gateway = APIGateway()
gateway.configure_services({"counting": {"instances": os.environ["INSTANCES"].split(",")}})
gateway.configure_routes([{"path": "/*", "service": "counting"}])
app = gateway
