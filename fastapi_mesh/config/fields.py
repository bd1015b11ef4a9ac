"""The kinds of values that settings have: seconds, ports, names, paths, addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Frozen(BaseModel):
    """A settings model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_enum_values=False)


class Problems(ValueError):
    """Several problems of one value, each with the path below that value; `problems.explain` unfolds them."""

    def __init__(self, problems: Sequence[tuple[tuple[str | int, ...], str]]) -> None:
        super().__init__("; ".join(text for _, text in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Noun:
    """What a value should be, for "'abc' is not ..."."""

    text: str


def _no_bool(value: object) -> object:
    """Pydantic takes true for 1; as a number of seconds or a port that is a mistake."""
    if isinstance(value, bool):
        raise PydanticCustomError("bool_as_number", "a number is needed, not true or false")
    return value


NotBool = BeforeValidator(_no_bool)

Seconds = Annotated[float, NotBool, Field(gt=0, allow_inf_nan=False), Noun("a number of seconds")]
Delay = Annotated[float, NotBool, Field(ge=0, allow_inf_nan=False), Noun("a number of seconds")]
Factor = Annotated[float, NotBool, Field(ge=1, allow_inf_nan=False)]
Ratio = Annotated[float, NotBool, Field(ge=0, allow_inf_nan=False)]
Weight = Annotated[float, NotBool, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, NotBool, Field(ge=1)]
CountOrZero = Annotated[int, NotBool, Field(ge=0)]
Status = Annotated[int, NotBool, Field(ge=100, le=599), Noun("an HTTP status")]
Port = Annotated[int, NotBool, Field(ge=1, le=65535), Noun("a port number")]
ListenPort = Annotated[int, NotBool, Field(ge=0, le=65535), Noun("a port number")]

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PATH = re.compile(r"/[\w\-.~!$&'()*+,;=:@%/]*", re.ASCII)
_SCHEMES = ("http", "https", "h2", "h2c")


def _service_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a service name: letters, digits, '-', '_' and '.', a letter or digit at both ends"
        )
    return value


def _http_path(value: str) -> str:
    if not _PATH.fullmatch(value):
        raise ValueError(f"{value!r} is not a path: it starts with '/' and has no space, '?' or '#'")
    return value


def _token(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError(f"{value!r} is not a token (RFC 9110 section 5.6.2)")
    return value


def hide_userinfo(text: str) -> str:
    """Replace user and password of a URL in `text`, so that it may be shown."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def _instance_url(value: str) -> str:
    shown = hide_userinfo(repr(value))
    text = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{shown} is not an address: {error}") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"{shown} is not an address: its scheme is not one of {', '.join(_SCHEMES)}")
    if not parts.hostname or any(letter <= " " for letter in value):
        raise ValueError(f"{shown} is not an address like 'http://127.0.0.1:8000'")
    if parts.username is not None:
        raise ValueError(f"{shown} is not an address: it has a user or password in it, which would not be sent")
    if parts.query or parts.fragment:
        raise ValueError(f"{shown} is not an address: it has a query or fragment, which would not be sent")
    if port == 0:
        raise ValueError(f"{shown} is not an address: nothing can be reached on port 0")
    return text


def _network(value: str) -> str:
    try:
        return str(ip_network(value))
    except ValueError:
        pass
    try:
        whole = ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"{value!r} is not an IP address or network like '10.0.0.0/8'") from None
    raise ValueError(f"{value!r} has bits set outside of its mask - did you mean '{whole}'?")


ServiceName = Annotated[str, AfterValidator(_service_name)]
HttpPath = Annotated[str, AfterValidator(_http_path)]
Token = Annotated[str, AfterValidator(_token)]
InstanceUrl = Annotated[str, AfterValidator(_instance_url)]
"""`http://host:port/base`, also https, h2, h2c; without a scheme it is http. Becomes the full URL."""
Network = Annotated[str, AfterValidator(_network)]
"""An IP address or network; becomes its CIDR form."""


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _no_repeats(value: tuple[str, ...]) -> tuple[str, ...]:
    for each in value:
        if value.count(each) > 1:
            raise ValueError(f"{each!r} is listed twice")
    return value


OneOrMany = BeforeValidator(_one_or_many)
"""Takes a single text for a list of one."""

InstanceUrls = Annotated[
    tuple[InstanceUrl, ...], OneOrMany, AfterValidator(_no_repeats), Noun("a URL or a list of URLs")
]
