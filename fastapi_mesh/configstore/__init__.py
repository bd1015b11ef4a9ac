"""Configuration that changes while programs run: one port, and a backend for each place where it is kept."""

from fastapi_mesh.configstore.base import ConfigStore, ConfigWriter, Entry
from fastapi_mesh.configstore.file import FileStore
from fastapi_mesh.configstore.local import LocalStore
from fastapi_mesh.configstore.memory import MemoryStore

__all__ = ["ConfigStore", "ConfigWriter", "Entry", "FileStore", "LocalStore", "MemoryStore"]
