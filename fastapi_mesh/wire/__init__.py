"""Wires: how a request reaches an instance. HTTP/1.1 of our own, httpx2 for the rest, ASGI in the same process."""
