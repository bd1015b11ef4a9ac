"""A gateway over the instances that INSTANCES lists, with the settings of somebody who knows their service: an answer
takes less than a second, and a failed one may be asked for again.
"""

from __future__ import annotations

import os

from fastapi_mesh import APIGateway

gateway = APIGateway()
gateway.configure_services({"items": {"instances": os.environ["INSTANCES"].split(",")}})
gateway.configure_routes(
    [
        {
            "path": "/*",
            "service": "items",
            "timeouts": {"attempt_timeout": 1.0, "timeout": 5.0},
            "retry": {"retry_statuses": [500, 502, 503, 504]},
        }
    ]
)
app = gateway
