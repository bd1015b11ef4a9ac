"""A ServiceMesh whose other services are scripted: for tests of applications, without sockets and without waiting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.message import Response
from fastapi_mesh.exceptions import UpstreamConnectionError
from fastapi_mesh.health.probe import TEMPLATE as PROBE
from fastapi_mesh.service_mesh.mesh import ServiceMesh
from fastapi_mesh.testing.clock import FakeClock
from fastapi_mesh.testing.wire import Answer, Call, ScriptedWire
from fastapi_mesh.wire.asgi import AsgiWire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi_mesh.config.policies import CallPolicy, ServicePolicy
    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.instance import ASGIApp
    from fastapi_mesh.core.message import Request
    from fastapi_mesh.testing.wire import Reply


@dataclass(slots=True)
class Script:
    """What one method and path of a fake service answers; replies are used up in order, the last one repeats."""

    method: str
    path: str
    replies: list[Reply] = field(default_factory=list)

    def returns(self, value: object = None, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Self:
        """Answer with `value` as JSON (None: no body)."""
        answer = Answer(status) if value is None else Answer.json(value, status)
        answer.headers += [(n.lower().encode(), v.encode()) for n, v in (headers or {}).items()]
        self.replies.append(answer)
        return self

    def fails(self, status: int | None = None, *, times: int = 1, error: BaseException | None = None) -> Self:
        """Fail `times` attempts: with `status`, with `error`, or (neither given) with a refused connection."""
        for _ in range(times):
            if status is not None:
                self.replies.append(status)
            else:
                self.replies.append(error or UpstreamConnectionError("scripted refusal", request_sent=False))
        return self

    def hangs(self, seconds: float = 3600.0) -> Self:
        """Answer only after `seconds` of the mesh's clock, so a timeout comes first."""
        self.replies.append(Answer(200, delay=seconds))
        return self

    def next(self) -> Reply:
        """The reply of the next attempt."""
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


class FakeService:
    """One scripted service of a FakeMesh."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.scripts: list[Script] = []
        self.app: ASGIApp | None = None

    def on(self, method: str, path: str) -> Script:
        """Script `method` and `path` (the path without its query; `*` at the end matches any rest)."""
        script = Script(method.upper(), path)
        self.scripts.append(script)
        return script

    def get(self, path: str) -> Script:
        return self.on("GET", path)

    def post(self, path: str) -> Script:
        return self.on("POST", path)

    def put(self, path: str) -> Script:
        return self.on("PUT", path)

    def patch(self, path: str) -> Script:
        return self.on("PATCH", path)

    def delete(self, path: str) -> Script:
        return self.on("DELETE", path)

    def mount(self, app: ASGIApp) -> None:
        """Let an ASGI application answer everything that has no script, in this process."""
        self.app = app

    def find(self, method: str, path: str) -> Script | None:
        """The newest script with replies that fits."""
        for script in reversed(self.scripts):
            fits = script.path == path or (script.path.endswith("*") and path.startswith(script.path[:-1]))
            if script.method == method and fits and script.replies:
                return script
        return None


class FakeMesh(ServiceMesh):
    """A ServiceMesh with the real layers over scripted services.

        fake = FakeMesh()
        fake.service("profile-service").get("/profiles/3").returns({"bio": "..."})
        fake.service("order-service").post("/orders").fails(503, times=2).returns({"id": 7}, status=201)
        app.dependency_overrides[get_service_mesh] = lambda: fake

    Retries, breakers and timeouts are real; time is the FakeClock `fake.fake_clock`, and back-off does not wait unless
    `real_waits=True` (then turn the clock with `await fake.fake_clock.advance(...)`). A call to a service or path
    without a script fails with an AssertionError that names it; `fake.service(name, instances=0)` is a service that
    exists and has no instance (ServiceDiscoveryError). Health probes without a script get 200. `fake.calls` are the
    attempts made, in order.
    """

    def __init__(
        self,
        service_name: str = "test-service",
        *,
        default_policy: ServicePolicy | None = None,
        policies: Mapping[str, ServicePolicy] | None = None,
        real_waits: bool = False,
    ) -> None:
        fake_clock = FakeClock(skip_sleeps=not real_waits)
        self._services: dict[str, FakeService] = {}
        self._scripted = ScriptedWire(self._reply, clock=fake_clock)
        super().__init__(
            service_name,
            default_policy=default_policy,
            policies=policies,
            discovery_backend="static",
            enable_metrics=False,
            wire=_FakeWire(self),
            clock=fake_clock,
        )
        self.fake_clock = fake_clock
        self._asgi = AsgiWire(self.supervisor, clock=fake_clock)

    @property
    def calls(self) -> list[Call]:
        """Every attempt that was made, oldest first."""
        return self._scripted.calls

    def service(self, name: str, *, instances: int = 2) -> FakeService:
        """The fake service `name`, made on first use with `instances` instances."""
        found = self._services.get(name)
        if found is None:
            found = self._services[name] = FakeService(name)
            self.add_service(name, [Instance(name, f"{name}-{n}", "fake", n) for n in range(1, instances + 1)])
        return found

    def new_context(
        self, service: str, *, template: str = "", policy: CallPolicy | None = None, deadline: float | None = None
    ) -> CallContext:
        """As of any mesh. Raises AssertionError for a service that nobody scripted."""
        if service not in self._services:
            known = ", ".join(self._services) or "none"
            raise AssertionError(f"{service}: nobody scripted this service; scripted are {known}")
        return super().new_context(service, template=template, policy=policy, deadline=deadline)

    async def answer(self, request: Request) -> Response:
        """One attempt: a script, else the mounted application."""
        service = self._services[request.service]
        path = request.target.partition(b"?")[0].decode("latin-1")
        if service.find(request.method.decode(), path) is None:
            if request.context.template == PROBE and service.app is None:
                return Response.of(200, [], b"")
            if service.app is not None:
                return await self._in_process(request, service.app)
        return await self._scripted(request)

    async def _in_process(self, request: Request, app: ASGIApp) -> Response:
        state = request.context.instance
        assert state is not None, "Balance sets the instance before the wire is asked"
        own = state.instance
        state.instance = Instance(own.service, own.id, own.address, own.port, scheme="asgi", app=app)
        try:
            return await self._asgi(request)
        finally:
            state.instance = own

    def _reply(self, request: Request) -> Reply:
        service = self._services[request.service]
        method = request.method.decode("latin-1")
        path = request.target.partition(b"?")[0].decode("latin-1")
        script = service.find(method, path)
        if script is None:
            known = ", ".join(f"{each.method} {each.path}" for each in service.scripts) or "nothing"
            raise AssertionError(f"{service.name}: {method} {path} was called, but {known} is scripted")
        return script.next()


class _FakeWire:
    """The wire of a FakeMesh."""

    def __init__(self, mesh: FakeMesh) -> None:
        self._mesh = mesh

    async def __call__(self, request: Request) -> Response:
        return await self._mesh.answer(request)

    async def aclose(self) -> None:
        await self._mesh._asgi.aclose()
