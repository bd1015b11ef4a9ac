"""Settings of WebSockets through a gateway: whether, how large, how long, and how a dead service is noticed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, model_validator

from fastapi_mesh.config.edge.cors import ANY, origin
from fastapi_mesh.config.fields import Count, Delay, Frozen, OneOrMany, Seconds

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

MIB = 1024 * 1024
_WORDS = {"true": True, "false": False, "on": True, "off": False, "yes": True, "no": False}

SELF = "self"
"""Stands for the origin under which the client knows the gateway."""


def _origin(value: str) -> str:
    if value == ANY:
        raise ValueError("'*' allows what is allowed without allowed_origins; leave it out")
    return value if value == SELF else origin(value)


SocketOrigins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], OneOrMany]


class WebSocketPolicy(Frozen):
    """WebSockets of one route, or of all routes. `true` or `false` alone stands for `enabled`."""

    enabled: bool = Field(default=True, description="Let WebSockets through; false: their handshakes get 403.")
    max_message: Count = Field(
        default=16 * MIB, description="Bytes of the largest message, either way; a larger one closes with 1009."
    )
    ping_interval: Delay = Field(
        default=20.0,
        description="Seconds between two pings to the service; 0: none. (The server in front pings clients.)",
    )
    ping_timeout: Seconds = Field(
        default=20.0, description="Seconds that the service may stay silent after a ping before it counts as gone."
    )
    idle_timeout: Delay = Field(
        default=0.0, description="Seconds without a message either way after which it closes with 1001; 0: never."
    )
    max_lifetime: Delay = Field(default=0.0, description="Seconds after which it closes with 1001; 0: never.")
    outlive_token: bool = Field(
        default=False,
        description="Stay open when the client's token or session ends; false: it closes with 1008 then.",
    )
    allowed_origins: SocketOrigins = Field(
        default=(),
        description="Origins whose pages may open one, like 'https://app.example.com'; 'self': the gateway's own. "
        "Others get 403; clients that are no browsers name none. Empty: any, with a browser's session its own.",
    )
    compression: bool = Field(
        default=False, description="Offer permessage-deflate to the service; the server in front does to clients."
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "boolean"}, handler(schema)]}

    @model_validator(mode="before")
    @classmethod
    def _switch_alone(cls, value: object) -> object:
        if isinstance(value, str):
            value = _WORDS.get(value.strip().lower(), value)
        return {"enabled": value} if isinstance(value, bool) else value


def effective(gateway: WebSocketPolicy, route: WebSocketPolicy | None) -> WebSocketPolicy:
    """The policy of a route: what it sets, over the gateway's. Settings of its own switch a route's WebSockets on."""
    if route is None:
        return gateway
    return WebSocketPolicy(
        **{
            **{name: getattr(gateway, name) for name in gateway.model_fields_set - {"enabled"}},
            **{name: getattr(route, name) for name in route.model_fields_set},
        }
    )
