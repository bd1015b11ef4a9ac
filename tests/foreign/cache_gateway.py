"""The gateway that http-tests/cache-tests is run against: RFC 9111 to the letter, in front of the suite's own origin.

    ORIGIN=http://127.0.0.1:PORT uvicorn tests.foreign.cache_gateway:gateway --port PORT --no-date-header

`CACHE` is JSON that is laid over the settings, to see what one of them costs: '{"sharing": "strict"}'.
"""

from __future__ import annotations

import json
import os

from fastapi_mesh import APIGateway

LETTER = {"sharing": "rfc", "heuristic": 0.1, "keep_date": True}

gateway = APIGateway(
    cache={**LETTER, **json.loads(os.environ.get("CACHE", "{}"))},
    # One try each, as the suite counts what its origin sees and plans its disconnections; no instance is left out.
    max_retries=0,
)
gateway.configure_services(
    {
        "origin": {
            "instances": os.environ.get("ORIGIN", "http://127.0.0.1:1"),
            "circuit_breaker": None,
            "outlier": None,
        }
    }
)
gateway.configure_routes(
    [
        {"path": "/test/*", "service": "origin", "cache": True},
        {"path": "/*", "service": "origin"},
    ]
)
