"""Two traced applications that call each other through the mesh; run as a program it prints their spans as JSON."""

from __future__ import annotations

import json

from fastapi import FastAPI, Request
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from fastapi_mesh.integration import Mesh, ServiceMeshMiddleware

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)

TELEMETRY = {"tracing": True, "metrics": False, "logs": False, "operation_spans": False}
users = FastAPI(telemetry=TELEMETRY)
tries = 0


@users.get("/users/{user}")
async def user(user: int, request: Request) -> JSONResponse:
    global tries
    tries += 1
    return JSONResponse(
        {"user": user, "baggage": request.headers.get("baggage")}, status_code=503 if tries == 1 else 200
    )


orders = FastAPI(telemetry=TELEMETRY)
orders.add_middleware(
    ServiceMeshMiddleware, service_name="orders", services={"users": users}, enable_service_discovery=False
)


@orders.get("/orders/{order}")
async def order(order: int, mesh: Mesh) -> object:
    return await mesh.call_service("users", "/users/{}", order)


def main() -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "baggage": "tenant=7"}
    with TestClient(orders) as client:
        answer = client.get("/orders/3", headers=headers).json()
    finished = [
        {
            "name": span.name,
            "kind": span.kind.name,
            "id": format(span.context.span_id, "x"),
            "parent": format(span.parent.span_id, "x") if span.parent is not None else None,
            "trace": format(span.context.trace_id, "032x"),
            "attributes": dict(span.attributes or {}),
        }
        for span in spans.get_finished_spans()
    ]
    print(json.dumps({"answer": answer, "spans": finished}))


if __name__ == "__main__":
    main()
