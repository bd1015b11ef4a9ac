"""Which rate limits apply to which route: worked out when the configuration is taken, so that requests need not.

A route's own limit and the gateway's `rate_limit` both apply (B13); `ip_rate_limit` is checked before authentication.
`RateLimitingMiddleware(default_rate_limit=..., storage=...)` sets `rate_limit` and `rate_limiting.storage`; without it,
GATEWAY_RATE_LIMIT or a setting nothing is limited (B44).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.ratelimit.engine import RateLimitEngine, engine_settings
from fastapi_mesh.api_gateway.ratelimit.headers import policy_header
from fastapi_mesh.api_gateway.ratelimit.keys import Identities, cost_of, hashed
from fastapi_mesh.api_gateway.ratelimit.layer import RateLimit
from fastapi_mesh.api_gateway.ratelimit.windows import Window
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from fastapi_mesh.api_gateway.engines import Engines
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.api_gateway.extensions import Extensions
    from fastapi_mesh.api_gateway.ratelimit.keys import CostFunction, Identify
    from fastapi_mesh.api_gateway.ratelimit.layer import RateLimitMeter
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.config.edge.limits import OnFailure, RateLimitingConfig, RateLimitPolicy
    from fastapi_mesh.config.gateway import GatewayConfig
    from fastapi_mesh.config.routes import RouteConfig
    from fastapi_mesh.core.tasks import Supervisor


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of a route. `windows` are (what a key begins with, the window, what it ends with); the client's identity
    goes between, in the braces that keep all keys of a client on one node of a Redis Cluster.
    """

    name: str
    identify: Identify
    cost: int | Callable[[Exchange], Awaitable[int]]
    windows: tuple[tuple[str, Window, str], ...]
    on_failure: OnFailure


class RateLimits:
    """The limits of one configuration, over the engine that counts."""

    def __init__(
        self, config: GatewayConfig, extensions: Extensions, engine: RateLimitEngine, meter: RateLimitMeter | None
    ) -> None:
        self._shared: RateLimitingConfig = config.rate_limiting
        self._default = config.rate_limit
        self._by_ip = config.ip_rate_limit
        self._engine = engine
        self._meter = meter
        self._costs: Mapping[str, CostFunction] = extensions.rate_limit_costs
        self._identities = Identities(self._shared.ipv6_prefix, extensions.rate_limit_keys)

    def layer(self, inner: GatewayService, route: Route) -> RateLimit | None:
        """The layer inside Authenticate; None where no limit applies."""
        config = route.config
        limits = []
        own = config.rate_limit
        if own is not None:
            limits.append(self._limit(own, own.name or "route", _scope(own, f"route:{_named(config)}")))
        default = self._default if config.default_rate_limit else None
        if default is not None:
            scope = f"route:{_named(config)}" if default.key == "route" else "default"
            limits.append(self._limit(default, default.name or "default", _scope(default, scope)))
        return self._new(inner, tuple(limits))

    def ip_layer(self, inner: GatewayService, route: Route) -> RateLimit | None:
        """The layer outside Authenticate, which costs little where clients try out credentials."""
        own = self._by_ip
        if own is None:
            return None
        if own.key == "client":
            own = own.model_copy(update={"key": "ip"})
        # Never a count of `layer`'s: a request goes through both, and would count twice there.
        scope = f"ip:{_named(route.config)}" if own.key == "route" else "ip"
        if own.name is not None:
            scope = f"ip:name:{own.name}"
        return self._new(inner, (self._limit(own, own.name or "ip", scope),))

    def _new(self, inner: GatewayService, limits: tuple[Limit, ...]) -> RateLimit | None:
        if not limits:
            return None
        shown: dict[tuple[str, int], Window] = {}
        for limit in limits:
            for _, window, _ in limit.windows:
                other = shown.setdefault((window.name, window.seconds), window)
                if window.amount < other.amount:
                    shown[window.name, window.seconds] = window
        policy = policy_header(shown.values()) if self._shared.headers else None
        places = [after for limit in limits for _, _, after in limit.windows]
        return RateLimit(
            inner,
            limits=limits,
            engine=self._engine,
            policy=policy,
            meter=self._meter,
            merges=len(set(places)) < len(places),
        )

    def _limit(self, policy: RateLimitPolicy, name: str, scope: str) -> Limit:
        strategy = policy.strategy or self._shared.strategy
        rates = policy.rates
        windows = []
        for rate in rates:
            shown = name if len(rates) == 1 else f"{name}-{rate.seconds}"
            window = Window(strategy, rate.amount, rate.seconds, name, shown)
            # No amount in the key: a changed one goes on with the counts that are there. The strategy is in it, for
            # each stores something else.
            windows.append((f"{self._shared.namespace}:{{", window, f"}}:{scope}:{strategy}:{rate.seconds}"))
        return Limit(
            name,
            self._identities.of(policy.key),
            self._cost(policy.cost),
            tuple(windows),
            policy.on_failure or self._shared.on_failure,
        )

    def _cost(self, cost: int | str) -> int | Callable[[Exchange], Awaitable[int]]:
        if isinstance(cost, int):
            return cost
        name = cost.removeprefix("function:")
        return partial(cost_of, name, self._costs[name])


def _scope(policy: RateLimitPolicy, scope: str) -> str:
    """What counts together: limits of one name, all of the key "global", else those of a route or of the gateway."""
    if policy.name is not None:
        return f"name:{policy.name}"
    return "global" if policy.key == "global" else scope


def _named(config: RouteConfig) -> str:
    """What tells a route from others, and stays when its other settings change."""
    name = f"{','.join(sorted(config.methods or ()))} {config.path}"
    matches = config.model_dump_json(include={"host", "headers", "query"}, exclude_defaults=True)
    return name if matches == "{}" else f"{name} {hashed('match', matches)[:8]}"


def rate_limits(
    config: GatewayConfig,
    routes: Iterable[Route],
    extensions: Extensions,
    engines: Engines,
    supervisor: Supervisor,
    meter: RateLimitMeter | None,
) -> RateLimits | None:
    """The limits of `config` and its `routes`, None where there are none. Raises ConfigurationError with all problems
    of functions that nobody gave and of moving windows that are too long.
    """
    places = _places(config, routes)
    if not places:
        return None
    problems = [problem for place, policy in places for problem in _problems(place, policy, config, extensions)]
    if problems:
        raise ConfigurationError(problems=problems)
    shared = config.rate_limiting
    engine = engines.kept("rate-limits", engine_settings(shared), lambda: RateLimitEngine(shared, supervisor))
    return RateLimits(config, extensions, engine, meter)


def _places(config: GatewayConfig, routes: Iterable[Route]) -> list[tuple[str, RateLimitPolicy]]:
    """All limits, each with its path in the configuration."""
    places: list[tuple[str, RateLimitPolicy]] = []
    if config.rate_limit is not None:
        places.append(("rate_limit", config.rate_limit))
    if config.ip_rate_limit is not None:
        places.append(("ip_rate_limit", config.ip_rate_limit))
    for index, configured in enumerate(config.routes):
        if configured.rate_limit is not None:
            places.append((f"routes[{index}].rate_limit", configured.rate_limit))
    own = {id(configured) for configured in config.routes}
    places += [  # those made from discovered services
        (f"route {route.path}: rate_limit", route.config.rate_limit)
        for route in routes
        if id(route.config) not in own and route.config.rate_limit is not None
    ]
    return places


def _problems(place: str, policy: RateLimitPolicy, config: GatewayConfig, extensions: Extensions) -> list[str]:
    problems = []
    for option, value, known in (
        ("key", policy.key, extensions.rate_limit_keys),
        ("cost", policy.cost, extensions.rate_limit_costs),
    ):
        if isinstance(value, str) and value.startswith("function:") and value.removeprefix("function:") not in known:
            given = f"configure_rate_limits({option}s={{{value.removeprefix('function:')!r}: ...}})"
            problems.append(f"{place}.{option}: {value!r} is a function that nobody gave; {given} does")
    if policy is config.ip_rate_limit and policy.key == "principal":
        problems.append(f"{place}.key: 'principal' is not known yet where this limit is checked; rate_limit's can be")
    if policy.strategy is None and config.rate_limiting.strategy == "moving" and (problem := policy.too_long()):
        problems.append(f"{place}: {problem}")
    return problems
