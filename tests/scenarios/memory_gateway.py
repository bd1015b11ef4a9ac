"""A gateway with everything on that keeps something per client, key, URL or request, with bounds that fill quickly.

Started by the memory scenario as a process of its own: `python -m fastapi_mesh.api_gateway --app ...:gateway`. UPSTREAM
is the service, DEAD an address where nobody listens.
"""

from __future__ import annotations

import os

from fastapi_mesh import APIGateway
from fastapi_mesh.api_gateway.auth import APIKeyAuthProvider, JWTAuthProvider
from fastapi_mesh.api_gateway.transform import GatewayRequest, GatewayResponse
from tests.scenarios.memory_load import KEYS, SECRET

TOKENS, COUNTS, CACHE = 250, 500, 512 * 1024
"""Bounds: checked credentials of each provider, counts of rate limits, bytes of answers."""


class Stamp:
    """Reads both bodies, and changes headers and a body."""

    async def transform_request(self, request: GatewayRequest) -> GatewayRequest:
        request.headers["x-size"] = str(len(request.body))
        return request

    async def transform_response(self, response: GatewayResponse) -> GatewayResponse:
        response.headers["x-elapsed"] = str(response.elapsed)
        response.body = response.body + b" "
        return response


gateway = APIGateway(
    services={
        "shop": [f"http://{os.environ['UPSTREAM']}", f"http://localhost:{os.environ['UPSTREAM'].rpartition(':')[2]}"],
        "dead": f"http://{os.environ['DEAD']}",
        "mixed": [f"http://{os.environ['UPSTREAM']}", f"http://{os.environ['DEAD']}"],
    },
    auth={"cache_size": TOKENS},
    cache={"max_bytes": CACHE, "sharing": "strict"},
    rate_limit="1000000/hour",
    ip_rate_limit="100000/minute",
    rate_limiting={"max_keys": COUNTS},
)
gateway.configure_auth([JWTAuthProvider(secret_key=SECRET, algorithm="HS256"), APIKeyAuthProvider(keys=KEYS)])
gateway.add_transformers(request_transformer=Stamp(), response_transformer=Stamp(), routes=["/changed/*"])
gateway.configure_routes(
    [
        {"path": "/items/*", "service": "shop", "cache_ttl": 3600, "auth": {"optional": True}},
        {
            "path": "/mine/*",
            "service": "shop",
            "cache_ttl": 3600,
            "auth_required": True,
            "rate_limit": "50/second;1000/minute;100000/hour",
        },
        {"path": "/orders/*", "service": "shop", "auth_required": True, "cache": True},
        {
            "path": "/changed/*",
            "service": "shop",
            "auth_required": True,
            "rate_limit": {"limit": "500/minute", "strategy": "moving"},
        },
        {"path": "/few/*", "service": "shop", "rate_limit": {"limit": "1/second;3/minute", "key": "header:x-client"}},
        {"path": "/slow/*", "service": "shop"},
        {"path": "/broken/*", "service": "shop"},
        {"path": "/mixed/*", "service": "mixed"},
        {"path": "/dead/*", "service": "dead"},
    ]
)
