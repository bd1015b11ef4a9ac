"""What code sets up in a gateway: routes, services, transformers, middleware, breakers... Part of APIGateway."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway import health
from fastapi_mesh.api_gateway.circuit_breaker import breakers_of
from fastapi_mesh.api_gateway.middleware import with_middleware
from fastapi_mesh.api_gateway.ratelimit.configure import rate_limit_changes
from fastapi_mesh.api_gateway.transform.steps import new_pair
from fastapi_mesh.config.compat_gateway import changed_routes, routes_from_description, services_from_description

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TypeVar

    from fastapi_mesh.api_gateway.auth.base import AuthProvider
    from fastapi_mesh.api_gateway.circuit_breaker import CircuitBreaker
    from fastapi_mesh.api_gateway.extensions import Extensions
    from fastapi_mesh.api_gateway.life import Life
    from fastapi_mesh.api_gateway.ratelimit.keys import CostFunction, KeyFunction
    from fastapi_mesh.config.edge.limits import RateLimitPolicy
    from fastapi_mesh.config.gateway import GatewayConfig, RouteConfig
    from fastapi_mesh.config.policies import BreakerPolicy
    from fastapi_mesh.health.checks import Check

    C = TypeVar("C", bound=Check)


class SetUpInCode:
    """Methods that work before a gateway opens and while it is open: all that they change counts at once, or nothing
    where something about it is wrong (ConfigurationError).
    """

    config: GatewayConfig
    _code: dict[str, object]
    _extensions: Extensions
    _life: Life | None

    def _change(self, code: Mapping[str, object], extensions: Extensions | None = None) -> None:
        raise NotImplementedError

    def configure_routes(self, routes: Iterable[Mapping[str, object] | RouteConfig]) -> None:
        """Replace all routes: dicts with `path`, `service`, `methods`, or RouteConfig.

        On an open gateway they are swapped in one step, after they were found valid; requests under way keep theirs.
        """
        self._change({**self._code, "routes": routes_from_description(list(routes))})

    def change_route(self, route: str, **changes: object) -> None:
        """Change settings of one route, named by its path (or `name`), and leave the others as they are.

            gateway.change_route("/api/v1/orders/*", split={"orders": 80, "orders-next": 20})

        None takes a setting back to its default. Raises ConfigurationError, and changes nothing, when there is no such
        route, when several have that path, or when the result is not valid.
        """
        self._change({**self._code, "routes": changed_routes(self.config.routes, route, changes)})

    def configure_services(self, services: Mapping[str, object]) -> None:
        """Add or replace services: `{"user-service": {"instances": [...], "load_balancing": "least_connections"}}`."""
        self._change({**self._code, "services": {**self.config.services, **services_from_description(services)}})

    def add_middleware(self, middleware: object) -> None:
        """Switch on layers with the objects of `api_gateway.middleware`, one or a list of them; their order is the
        layers' own. Foreign ASGI middleware, as `starlette.middleware.Middleware(cls, ...)` or `(cls, {...})`, wraps
        the whole gateway, the first one outermost.
        """
        self._change(*with_middleware(dict(self._code), self._extensions, middleware))

    def add_transformers(
        self,
        request_transformer: object = None,
        response_transformer: object = None,
        *,
        routes: Iterable[str] | None = None,
    ) -> None:
        """Let code of yours change requests and answers: objects with `transform_request(request)` and
        `transform_response(response)`, or functions, async or not, for all routes or those with the paths in `routes`.

        Those added first see requests first and answers last. See `api_gateway.transform` for what they get.
        """
        pair = new_pair(request_transformer, response_transformer, routes)
        more = replace(self._extensions, transformers=(*self._extensions.transformers, pair))
        self._change(self._code, more)

    def configure_auth(self, providers: Iterable[AuthProvider]) -> None:
        """Replace what checks credentials: JWTAuthProvider, OAuth2AuthProvider, APIKeyAuthProvider, or your own.

        They are asked in order, before those of the settings; routes ask for them with `auth_required` or `auth`.
        """
        from fastapi_mesh.api_gateway.auth.plan import checked_providers  # imported late, as where a gateway opens

        self._change(self._code, replace(self._extensions, auth_providers=checked_providers(providers)))

    def configure_circuit_breakers(
        self, breakers: Mapping[str, CircuitBreaker | BreakerPolicy | Mapping[str, object] | None]
    ) -> None:
        """Set the breakers of services, whichever way those are configured: a CircuitBreaker each, or None for none."""
        before = self._code.get("circuit_breakers")
        known = before if isinstance(before, dict) else {}
        self._change({**self._code, "circuit_breakers": {**known, **breakers_of(breakers)}})

    def configure_rate_limits(
        self,
        default: str | Mapping[str, object] | RateLimitPolicy | None = None,
        *,
        by_ip: str | Mapping[str, object] | RateLimitPolicy | None = None,
        keys: Mapping[str, KeyFunction] | None = None,
        costs: Mapping[str, CostFunction] | None = None,
        **rate_limiting: object,
    ) -> None:
        """Limit what clients may ask for: `default` on all routes together, `by_ip` before authentication.

        `keys` and `costs` are functions (also asynchronous) of a request, which limits name as "function:NAME".
        `rate_limiting` are settings of RateLimitingConfig: `storage`, `strategy`, `on_failure`... What isn't given
        stays; counts do too, unless the storage changed.
        """
        code, functions = rate_limit_changes(self._code, self._extensions, default, by_ip, keys, costs, rate_limiting)
        self._change(code, functions)

    def health_check(self, check: C) -> C:
        """Decorator: `check` (async or not) says how the gateway is; its answer joins the mesh's at `/health` and for
        readiness. It returns what `HealthChecks.register` describes, like {"status": "healthy", "checks": {...}}.
        """
        more: tuple[Check, ...] = (*self._extensions.health_checks, check)
        self._change(self._code, replace(self._extensions, health_checks=more))
        return check

    async def check_services(self) -> dict[str, bool]:
        """Which of the services behind this gateway can be called: their circuit isn't open, and an instance accepts a
        connection within a second. Raises RuntimeError on a gateway that isn't open.
        """
        life = self._life
        if life is None:
            raise RuntimeError("the gateway is not open, so it knows of no service whether it can be called")
        return await health.check_services(life.mesh, life.service_names())
