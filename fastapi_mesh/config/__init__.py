"""Configuration as pure data: frozen pydantic models, no I/O besides reading a file in `load`."""
