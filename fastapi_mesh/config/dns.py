"""Settings that only discovery by DNS has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from fastapi_mesh.config.fields import Frozen, Port, Problems, Seconds, shown


def _template(value: str) -> str:
    rest = value.replace("{service}", "x")
    if "{service}" not in value or not rest.isascii() or not set("{} /:").isdisjoint(rest) or ".." in value:
        raise ValueError(
            f"{shown(value)} is not a template of a name: it has {{service}} in it, like '_http._tcp.{{service}}'"
        )
    return value


class DnsConfig(Frozen):
    """How services are asked for in DNS."""

    record: Literal["srv", "address"] = Field(
        default="srv",
        description="srv: SRV records (RFC 2782), which have ports and weights. address: A and AAAA records; the port "
        "is `service_port`.",
    )
    name: Annotated[str, AfterValidator(_template)] | None = Field(
        default=None,
        description="The name that is asked for, with {service} for the service. None: '_http._tcp.{service}' for srv, "
        "'{service}' for address.",
    )
    domain: str = Field(default="", description="What is put behind that name, such as 'svc.example.org'.")
    search: bool = Field(
        default=False, description="Whether the search domains of /etc/resolv.conf are tried, as other programs do."
    )
    service_port: Port | None = Field(default=None, description="Record address: the port of all services.")
    scheme: Literal["http", "https", "h2", "h2c"] = Field(
        default="http", description="How the instances are spoken to. With TLS the certificate is for the name in DNS."
    )
    family: Literal["any", "ipv4", "ipv6"] = Field(
        default="any", description="Which addresses are used; any: IPv6 ones where there is no IPv4 one."
    )
    tcp: bool = Field(
        default=False,
        description="Ask over TCP at once. Consul, by its defaults, leaves out instances over UDP without saying so.",
    )
    min_ttl: Seconds = Field(default=1.0, description="Seconds for which an answer counts at least.")
    max_ttl: Seconds = Field(
        default=30.0, validate_default=True, description="Seconds after which is asked again at the latest."
    )

    @field_validator("max_ttl")
    @classmethod
    def _in_order(cls, longest: float, info: ValidationInfo) -> float:
        shortest = info.data.get("min_ttl")
        if shortest is not None and longest < shortest:
            raise ValueError(f"max_ttl ({longest:g} s) is less than min_ttl ({shortest:g} s)")
        return longest

    @model_validator(mode="after")
    def _addresses_have_a_port(self) -> DnsConfig:
        if self.record == "address" and self.service_port is None:
            raise Problems([(("service_port",), "A and AAAA records have no port: say which one the services have")])
        return self
