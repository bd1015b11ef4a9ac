"""A gateway for tests in processes of their own: a route for each strategy, over a service in the same process.

Where counts are kept is said by its environment.
"""

from __future__ import annotations

import os

from fastapi_mesh.api_gateway import APIGateway


async def service(scope, receive, send):  # type: ignore[no-untyped-def]
    """Says which process it is in."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})


app = APIGateway(services={"up": service})
app.configure_routes(
    [
        {"path": f"/{strategy}/*", "service": "up", "rate_limit": {"limit": "100/hour;150/day", "strategy": strategy}}
        for strategy in ("sliding", "moving", "fixed")
    ]
)
