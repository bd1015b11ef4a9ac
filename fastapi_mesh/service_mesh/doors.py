"""The door that is a lifespan, what all doors share, and the words for a start that failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar, overload

from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi_mesh.service_mesh.mesh import ServiceMesh

A = TypeVar("A")


def explain_start(service_name: str | None, error: Exception) -> str:
    """What an operator needs when a start failed: what, which settings, and two ways out. One line each."""
    who = service_name or "the application"
    problems = error.problems if isinstance(error, ConfigurationError) else ()
    source = error.source if isinstance(error, ConfigurationError) else None
    settings = [f"  setting: {line}" for line in problems] or [f"  reason:  {type(error).__name__}: {error}"]
    return "\n".join(
        [
            f"fastapi-mesh: {who} can't start" + (f" with the settings of {source}" if source else ""),
            *settings,
            f"  fix:     {_fix(error)}",
            f"  or:      {_way_out(error)}",
        ]
    )


def _way_out(error: Exception) -> str:
    if isinstance(error, ConfigurationError):
        return "leave the setting out, so that its default counts; the configuration reference has it"
    return "SERVICE_MESH_ENABLED=false starts it without the mesh; calls then pass straight through"


def _fix(error: Exception) -> str:
    if isinstance(error, ConfigurationError):
        return "correct what is named above, in code, in the environment (MESH_...) or in the file"
    if isinstance(error, ImportError):
        return f"install what is missing: {error.name or 'see the reason'}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"make {error.filename} accessible to this process"
    return "start_policy='degraded' (MESH_START_POLICY) starts without it, unready until it is there"


class HasState(Protocol):
    """An application, as far as a lifespan needs it: Starlette's and FastAPI's have `state`."""

    @property
    def state(self) -> object: ...


Lifespan = Callable[[A], AbstractAsyncContextManager[Mapping[str, object] | None]]


@overload
def lifespan_of(mesh: ServiceMesh, target: HasState) -> AbstractAsyncContextManager[Mapping[str, object]]: ...
@overload
def lifespan_of(mesh: ServiceMesh, target: Lifespan[A]) -> Lifespan[A]: ...
def lifespan_of(
    mesh: ServiceMesh, target: HasState | Lifespan[A]
) -> AbstractAsyncContextManager[Mapping[str, object]] | Lifespan[A]:
    """What `mesh.lifespan` does: `FastAPI(lifespan=mesh.lifespan)`, or `FastAPI(lifespan=mesh.lifespan(inner))` around
    a lifespan of one's own. Requests find the mesh in `scope["state"]["mesh"]` and `app.state.mesh`.
    """
    if hasattr(target, "state"):
        return _opened(mesh, target)
    inner = target

    @asynccontextmanager
    async def around(app: A) -> AsyncIterator[Mapping[str, object]]:
        async with _opened(mesh, app) as state, inner(app) as more:
            yield {**state, **(more or {})}

    return around


@asynccontextmanager
async def _opened(mesh: ServiceMesh, app: object) -> AsyncIterator[Mapping[str, object]]:
    adopt(mesh, app)
    life = mesh.life
    try:
        owner = await life.open()
    except Exception as error:  # whatever it is, it ends the start, and is explained below its traceback
        error.add_note(explain_start(mesh.service_name, error))
        raise
    life.serving()
    try:
        yield {"mesh": mesh}
    finally:
        if owner:
            await life.close()


def adopt(mesh: ServiceMesh, app: object) -> None:
    """Make `mesh` the one of `app` (`app.state.mesh`). Raises ConfigurationError when another has been opened for it:
    its calls, circuits and registration would be those of two nodes.
    """
    state = getattr(app, "state", None)
    if state is None:
        return
    other = getattr(state, "mesh", None)
    if other is not None and other is not mesh and other.life.is_open:
        raise ConfigurationError(
            "mesh: this application already has another mesh; give the same object to both doors: "
            "add_middleware(ServiceMeshMiddleware, mesh=mesh) and FastAPI(lifespan=mesh.lifespan)"
        )
    state.mesh = mesh
