"""An API gateway with what the product description promises at the door: CORS, tokens, limits, a cache, transformers.

    python examples/api_gateway_example.py                    # says what happened
    uvicorn --app-dir examples api_gateway_example:gateway    # serves it (with --no-proxy-headers)

The three services are applications in this process, so that nothing else is needed to run this. In your system they are
addresses (`services={"user-service": "http://10.0.0.5:8000"}`), or the mesh finds them where they registered.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from itertools import count

from fastapi import FastAPI, Request, Response
from joserfc import jwt
from joserfc.jwk import OctKey
from starlette.testclient import TestClient

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.auth import JWTAuthProvider
from fastapi_mesh.api_gateway.circuit_breaker import CircuitBreaker
from fastapi_mesh.api_gateway.middleware import CORSMiddleware, LoggingMiddleware
from fastapi_mesh.api_gateway.transform import GatewayRequest, GatewayResponse, XMLToJSON

SECRET = "this-secret-is-for-the-example-only"

# The services: ordinary applications, which know nothing of tokens, pages or limits.

user_service, order_service, legacy_service = FastAPI(), FastAPI(), FastAPI()
reads = count(1)


@user_service.get("/api/v1/users/{user_id}")
async def user(user_id: int, request: Request) -> dict[str, object]:
    return {"user_id": user_id, "gateway": request.headers["x-gateway-version"]}


@order_service.get("/api/v1/orders/{order_id}")
async def order(order_id: int) -> dict[str, object]:
    return {"order_id": order_id, "read": next(reads)}


@legacy_service.get("/api/v1/invoices/{number}")
async def invoice(number: int) -> Response:
    return Response(f'<invoice number="{number}"><total>12.50</total></invoice>', media_type="application/xml")


# The gateway.

gateway = APIGateway(
    services={"user-service": user_service, "order-service": order_service, "legacy-service": legacy_service}
)
gateway.configure_routes(
    [
        {"path": "/api/v1/users/*", "service": "user-service", "auth_required": True, "rate_limit": "3/minute"},
        {"path": "/api/v1/orders/*", "service": "order-service", "methods": ["GET"], "cache_ttl": 60},
        {"path": "/api/v1/invoices/*", "service": "legacy-service", "methods": ["GET"]},
    ]
)
gateway.configure_auth([JWTAuthProvider(secret_key=SECRET, algorithm="HS256")])
gateway.configure_circuit_breakers({"legacy-service": CircuitBreaker(3, 30, expected_exception=ConnectionError)})
gateway.add_middleware(
    [
        CORSMiddleware(allow_origins=["https://shop.example.com"], allow_headers=["authorization"]),
        LoggingMiddleware(),  # to the logger fastapi_mesh.gateway.access
    ]
)


class Versions:
    """Touches headers only, so bodies stream through it."""

    def transform_request(self, request: GatewayRequest) -> GatewayRequest:
        request.headers["X-Gateway-Version"] = "1.0"
        return request

    def transform_response(self, response: GatewayResponse) -> GatewayResponse:
        response.headers["X-Gateway-Response-Time"] = str(response.elapsed)
        return response


gateway.add_transformers(request_transformer=Versions(), response_transformer=Versions())
gateway.add_transformers(response_transformer=XMLToJSON(), routes=["/api/v1/invoices/*"])


@gateway.health_check
async def gateway_health() -> dict[str, object]:
    services = await gateway.check_services()
    healthy = all(services.values())
    return {
        "status": "healthy" if healthy else "unhealthy",
        "checks": services,
        "timestamp": datetime.now(UTC).isoformat(),
    }


def new_token(subject: str) -> str:
    """What your login service gives to its users."""
    return jwt.encode({"alg": "HS256"}, {"sub": subject, "exp": int(time.time()) + 300}, OctKey.import_key(SECRET))


def main() -> None:
    as_ana = {"authorization": f"Bearer {new_token('ana')}"}
    page = {"origin": "https://shop.example.com", "access-control-request-method": "GET"}
    with TestClient(gateway) as client:
        nobody = client.get("/api/v1/users/1")
        print(f"a user, without a token: {nobody.status_code} {nobody.headers['www-authenticate']}")
        for _ in range(4):
            known = client.get("/api/v1/users/1", headers=as_ana)
            print(f"a user, as ana: {known.status_code} {known.json().get('reason') or known.text}")
        for _ in range(2):
            order = client.get("/api/v1/orders/7")
            print(f"an order: {order.text} (cache: {order.headers['cache-status'].split('; ')[1]})")
        invoice = client.get("/api/v1/invoices/3")
        print(f"an invoice: {invoice.headers['content-type']} {json.dumps(invoice.json())}")
        asked = client.options("/api/v1/users/1", headers={**page, "access-control-request-headers": "authorization"})
        print(f"a preflight: {asked.status_code} for {asked.headers['access-control-allow-origin']}")
        health = client.get("/health").json()
        print(f"health: {health['status']} {json.dumps(health['checks'])}")


if __name__ == "__main__":
    main()
