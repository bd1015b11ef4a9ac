"""Fakes for tests of applications: a scripted mesh, a scripted wire, a clock turned by hand. No sockets, no waiting."""

from fastapi_mesh.testing.clock import FakeClock
from fastapi_mesh.testing.fake_mesh import FakeMesh, FakeService, Script
from fastapi_mesh.testing.wire import Answer, Call, ScriptedWire, broken, refused

__all__ = [
    "Answer",
    "Call",
    "FakeClock",
    "FakeMesh",
    "FakeService",
    "Script",
    "ScriptedWire",
    "broken",
    "refused",
]
