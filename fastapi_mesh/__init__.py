"""The public names of fastapi_mesh."""
