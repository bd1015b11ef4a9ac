"""user-service: a user, with the profile that profile-service has."""

import os

from fastapi import Depends, FastAPI

from fastapi_mesh import ServiceMesh, ServiceMeshMiddleware, get_service_mesh

app = FastAPI(title="user-service")
app.add_middleware(ServiceMeshMiddleware, service_name="user-service")


@app.get("/users/{user_id}")
async def user(user_id: int, mesh: ServiceMesh = Depends(get_service_mesh)) -> dict[str, object]:  # noqa: B008
    profile = await mesh.call_service("profile-service", "/profiles/{}", user_id)
    return {"user_id": user_id, "profile": profile, "pid": os.getpid()}
