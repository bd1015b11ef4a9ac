"""order-service: an order and whose it is. It fails while the file `order-service.fault` is there."""

import os
from pathlib import Path

from fastapi import Depends, FastAPI, HTTPException

from fastapi_mesh import Mesh, ServiceMeshMiddleware

FAULT = Path("order-service.fault")

app = FastAPI(title="order-service")
app.add_middleware(ServiceMeshMiddleware, service_name="order-service")


def planted_fault() -> None:
    if FAULT.exists():
        raise HTTPException(500, f"the planted fault; remove {FAULT} to mend it")


@app.get("/orders/{order_id}", dependencies=[Depends(planted_fault)])
async def order(order_id: int, mesh: Mesh) -> dict[str, object]:
    customer = await mesh.call_service("user-service", "/users/{}", order_id % 10)
    return {"order_id": order_id, "customer": customer, "pid": os.getpid()}
