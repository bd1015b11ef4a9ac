"""The pytest fixtures of fastapi_mesh, found by pytest through the `pytest11` entry point."""
