"""profile-service: what is known about a user. It calls nobody."""

import os

from fastapi import FastAPI

from fastapi_mesh import ServiceMeshMiddleware

app = FastAPI(title="profile-service")
app.add_middleware(ServiceMeshMiddleware, service_name="profile-service")


@app.get("/profiles/{user_id}")
async def profile(user_id: int) -> dict[str, object]:
    return {"user_id": user_id, "bio": "likes trains", "pid": os.getpid()}
