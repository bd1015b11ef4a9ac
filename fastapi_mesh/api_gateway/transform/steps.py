"""The transformers of a route as the layer calls them: one kind of thing, whatever shape yours have."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from starlette.exceptions import HTTPException

from fastapi_mesh.api_gateway.problems import GatewayRefusalError
from fastapi_mesh.api_gateway.transform.messages import GatewayRequest, GatewayResponse
from fastapi_mesh.api_gateway.transform.needs import reads_body
from fastapi_mesh.core.context import current_request_id
from fastapi_mesh.exceptions import ConfigurationError, MeshError

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger("fastapi_mesh.gateway")

M = TypeVar("M", GatewayRequest, GatewayResponse)
Transformer = Callable[..., object]


class TransformFailedError(GatewayRefusalError):
    """A transformer raised, or made what can't be sent on. The log says which one and why; the client does not."""

    status: ClassVar[int] = 500
    reason: ClassVar[str] = "transform-failed"

    def __init__(self) -> None:
        super().__init__("A transformer of this gateway failed; its log says more.")


@dataclass(frozen=True, slots=True)
class Step:
    """One function of a transformer: its `name` for the log, whether it may read bodies, and `call`."""

    name: str
    call: Transformer
    reads_body: bool

    async def run(self, message: M, request_id: str) -> object:
        """What the transformer returns. Raises TransformFailedError, or what refuses the request."""
        token = current_request_id.set(request_id)
        try:
            result = self.call(message)
            return await result if isinstance(result, Awaitable) else result
        except MeshError:  # refusals, and failed calls through the mesh, have an answer of their own
            raise
        except HTTPException as error:
            raise refusal_of(error) from error
        except Exception as error:  # the code is the user's: whatever it raises ends this request and nothing else
            logger.exception("the transformer %s failed", self.name)
            raise TransformFailedError from error
        finally:
            current_request_id.reset(token)


@dataclass(frozen=True, slots=True)
class TransformerPair:
    """What one `add_transformers` gave, and the paths of the routes it is for; None for all."""

    request: Step | None
    response: Step | None
    routes: tuple[str, ...] | None

    @property
    def reads_response(self) -> bool:
        return self.response is not None and self.response.reads_body

    def is_for(self, path: str) -> bool:
        """Whether it is for the route with this path."""
        return self.routes is None or path in self.routes


def new_pair(request: object, response: object, routes: Iterable[str] | None) -> TransformerPair:
    """Raises ConfigurationError where something could not be called."""
    if request is None and response is None:
        raise ConfigurationError("add_transformers: neither a request_transformer nor a response_transformer")
    if isinstance(routes, str):
        routes = (routes,)
    return TransformerPair(
        None if request is None else new_step("request_transformer", "transform_request", request),
        None if response is None else new_step("response_transformer", "transform_response", response),
        None if routes is None else tuple(routes),
    )


def new_step(role: str, method_name: str, transformer: object) -> Step:
    """A transformer's function: its method `method_name`, or itself where it can be called."""
    if isinstance(transformer, type):
        raise ConfigurationError(f"{role}: {transformer.__name__} is a class; give an object: {transformer.__name__}()")
    method = getattr(transformer, method_name, None)
    if method is None and not hasattr(type(transformer), "transform_request") and callable(transformer):
        method = transformer
    if not callable(method):
        raise ConfigurationError(f"{role}: {_name(transformer)} has no {method_name} and is no function")
    try:
        inspect.signature(method).bind(None)
    except TypeError:
        what = method_name.removeprefix("transform_")
        raise ConfigurationError(f"{role}: {_name(transformer)} can't be called with one {what}") from None
    except ValueError:  # a builtin that doesn't tell its parameters
        pass
    return Step(_name(transformer), method, reads_body(transformer, method))


def unknown_routes(pairs: Iterable[TransformerPair], paths: Iterable[str]) -> list[str]:
    """A line for each path that is no route's."""
    known = set(paths)
    return [
        f"add_transformers: routes: there is no route {path!r}"
        for pair in pairs
        for path in pair.routes or ()
        if path not in known
    ]


@functools.cache
def _refusal_class(status: int) -> type[GatewayRefusalError]:
    return type("TransformerRefusalError", (GatewayRefusalError,), {"status": status, "reason": "transform-refused"})


def refusal_of(error: HTTPException) -> GatewayRefusalError:
    """The answer that FastAPI would give for this error, as a problem document."""
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (error.headers or {}).items()
    ]
    return _refusal_class(error.status_code)(str(error.detail), headers=headers)


def _name(transformer: object) -> str:
    named = transformer if hasattr(transformer, "__qualname__") else type(transformer)
    return f"{named.__module__}.{getattr(named, '__qualname__', repr(transformer))}"
