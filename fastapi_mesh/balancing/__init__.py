"""Balancing strategies: one per file, each a `pick(instances, request)` that does not wait."""

from fastapi_mesh.balancing.base import new_picker

__all__ = ["new_picker"]
