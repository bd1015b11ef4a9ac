"""Layers: service functions that hold another. One behaviour per file; their order is in service_mesh/stack.py."""
