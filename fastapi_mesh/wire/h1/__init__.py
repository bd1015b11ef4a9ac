"""Our own HTTP/1.1 client: O(1) pool, strict framing, raw bytes both ways."""

from fastapi_mesh.wire.h1.wire import H1Wire

__all__ = ["H1Wire"]
