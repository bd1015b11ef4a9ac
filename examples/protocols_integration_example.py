"""A mesh node and an API gateway in one application, and a call through the mesh.

    python examples/protocols_integration_example.py                    # says what happened
    uvicorn --app-dir examples protocols_integration_example:app        # serves it

`profile-service` is an application in this process, so that nothing else is needed to run this. In your system it has
a process of its own: leave `services=` out, and the mesh finds it where it registered.
"""

from __future__ import annotations

from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.exceptions import ServiceResponseError
from fastapi_mesh.integration import ServiceMeshMiddleware, get_service_mesh
from fastapi_mesh.service_mesh import ServiceMesh

# The service that is called: an ordinary application.

profile_service = FastAPI(title="profile-service")
PROFILES = {1: "likes trains", 2: "likes boats"}


@profile_service.get("/profiles/{user_id}")
async def profile(user_id: int) -> dict[str, object]:
    if user_id not in PROFILES:
        raise HTTPException(404, f"user {user_id} has no profile")
    return {"user_id": user_id, "bio": PROFILES[user_id]}


# The service that calls it. One line makes it a node of the mesh.

app = FastAPI(title="user-service")
app.add_middleware(ServiceMeshMiddleware, service_name="user-service", services={"profile-service": profile_service})


@app.get("/users/{user_id}")
async def user(user_id: int, mesh: ServiceMesh = Depends(get_service_mesh)) -> dict[str, object]:
    try:
        found = await mesh.call_service("profile-service", "/profiles/{}", user_id)
    except ServiceResponseError as error:  # 4xx; failures of the service itself become a 502 or 503 by themselves
        if error.status_code != 404:
            raise
        found = None
    return {"user_id": user_id, "profile": found}


# The gateway, in the same application and over the same mesh: what matches a route goes to a service, the rest to app.

gateway = APIGateway(prefix="/api/v1")
gateway.configure_routes([{"path": "/profiles/*", "service": "profile-service", "methods": ["GET"]}])
app.include_router(gateway.router)


def main() -> None:
    with TestClient(app) as client:
        for path in ("/users/1", "/users/7", "/api/v1/profiles/2", "/api/v1/profiles/7", "/health/ready"):
            answer = client.get(path)
            print(f"GET {path}: {answer.status_code} {answer.text}")
        refused = client.delete("/api/v1/profiles/2")
        print(f"DELETE /api/v1/profiles/2: {refused.status_code} {refused.headers['x-mesh-reason']}")
        counted = [line for line in client.get("/metrics").text.splitlines() if "mesh_service_calls_total{" in line]
        print(*counted, sep="\n")


if __name__ == "__main__":
    main()
