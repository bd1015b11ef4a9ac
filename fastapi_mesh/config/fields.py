"""The kinds of values that settings have: seconds, ports, names, paths, addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
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

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), NotBool, Noun("a number of seconds")]
Delay = Annotated[float, Field(ge=0, allow_inf_nan=False), NotBool, Noun("a number of seconds")]
Factor = Annotated[float, Field(ge=1, allow_inf_nan=False), NotBool]
Ratio = Annotated[float, Field(ge=0, allow_inf_nan=False), NotBool]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False), NotBool]
Count = Annotated[int, Field(ge=1), NotBool]
CountOrZero = Annotated[int, Field(ge=0), NotBool]
Status = Annotated[int, Field(ge=100, le=599), NotBool, Noun("an HTTP status")]
Port = Annotated[int, Field(ge=1, le=65535), NotBool, Noun("a port number")]
ListenPort = Annotated[int, Field(ge=0, le=65535), NotBool, Noun("a port number")]

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\.?")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_LABEL = re.compile(r"[\x21-\x7e]{1,253}")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PATH = re.compile(r"/(?:[\w\-.~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*", re.ASCII)
_SCHEMES = ("http", "https", "h2", "h2c")


def _service_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{shown(value)} is not a service name: letters, digits, '-', '_' and '.', a letter or digit at both ends"
        )
    return value


def is_http_path(value: str) -> bool:
    """Whether `value` is a path as it stands in a request: percent-encoded, without query."""
    return _PATH.fullmatch(value) is not None


def _http_path(value: str) -> str:
    if not is_http_path(value):
        raise ValueError(f"{shown(value)} is not a path: it starts with '/' and has no space, '?' or '#' in it")
    return value


def _label(value: str) -> str:
    if not _LABEL.fullmatch(value):
        raise ValueError(f"{shown(value)} is not a name: letters, digits and signs without spaces, at most 253")
    return value


def _token(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError(f"{shown(value)} is not a token (RFC 9110 section 5.6.2)")
    return value


def shown(value: str) -> str:
    """`value` quoted for a message: at most 60 characters, nothing before an "@" and nothing of a URL's query.

    >>> shown("http://me:secret@127.0.0.1/?token=1")
    "'***@127.0.0.1/?***'"
    """
    head, mark, _ = value.partition("?")
    if "@" in head:
        head = f"***@{head.rpartition('@')[2]}"
    text = f"{head}{mark}***" if mark else head
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _host(value: str) -> str:
    if value.startswith("[") and value.endswith("]") and _is_ip(value[1:-1]):
        raise ValueError(f"{value!r} has brackets, which only a URL needs - did you mean {value[1:-1]!r}?")
    if not (_is_name(value) or _is_ip(value)):
        raise ValueError(f"{shown(value)} is not a host name or IP address; a port is a setting of its own")
    return value


def _is_name(text: str) -> bool:
    """Whether `text` is a host name or IPv4 address; 1.2 and 1.2.3.4.5 are neither."""
    if text.replace(".", "").isdigit():
        return _is_ip(text)
    return _HOST.fullmatch(text) is not None and ".." not in text


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _instance_url(value: str) -> str:
    text = value if "://" in value else f"http://{value}"
    if problem := _url_problem(text):
        raise ValueError(f"{shown(value)} is not an address like 'http://127.0.0.1:8000': {problem}")
    return text


def _url_problem(text: str) -> str:
    """What keeps `text` from being an instance's address; "" for nothing. Discovery reads it again, in full."""
    if not text.isascii() or any(letter <= " " or letter == "\x7f" for letter in text):
        return "it has a space, a control character or a letter outside ASCII"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return "its host or port is not valid"
    if parts.scheme not in _SCHEMES:
        return f"its scheme is not one of {', '.join(_SCHEMES)}"
    if "@" in parts.netloc:
        return "it has a user or password, which would not be sent"
    if "?" in text or "#" in text:
        return "it has a query or fragment, which would not be sent"
    if port == 0 or parts.netloc.endswith(":"):
        return "it has no port after ':'"
    host = parts.hostname or ""
    if not (_is_name(host) or (_is_ip(host) and "%" not in host)):
        return "it has no valid host"
    if not _PATH.fullmatch(parts.path or "/"):
        return "its path needs percent-encoding"
    dots = {".", ".."}.intersection(parts.path.lower().replace("%2e", ".").split("/"))
    return "it has '.' or '..' in its path" if dots else ""


def _network(value: str) -> str:
    try:
        return str(ip_network(value))
    except ValueError:
        pass
    try:
        whole = ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"{shown(value)} is not an IP address or network like '10.0.0.0/8'") from None
    raise ValueError(f"{value!r} has bits set outside of its mask - did you mean '{whole}'?")


def _proxy(value: str) -> str:
    return value if value == UNIX else _network(value)


UNIX = "unix"
"""Whoever connects over a Unix socket, and so has no address."""

ServiceName = Annotated[str, AfterValidator(_service_name)]
HttpPath = Annotated[str, AfterValidator(_http_path)]
Host = Annotated[str, AfterValidator(_host)]
Token = Annotated[str, AfterValidator(_token)]
Label = Annotated[str, AfterValidator(_label)]
InstanceUrl = Annotated[str, AfterValidator(_instance_url)]
"""`http://host:port/base`, also https, h2, h2c; without a scheme it is http. Becomes the full URL."""
Network = Annotated[str, AfterValidator(_network)]
"""An IP address or network; becomes its CIDR form."""
Proxy = Annotated[str, AfterValidator(_proxy)]
"""A Network, or UNIX."""


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _no_repeats(value: tuple[str, ...]) -> tuple[str, ...]:
    for each in value:
        if value.count(each) > 1:
            raise ValueError(f"{each!r} is listed twice")
    return value


OneOrMany = BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])
"""Takes a single text for a list of one."""

InstanceUrls = Annotated[
    tuple[InstanceUrl, ...], OneOrMany, AfterValidator(_no_repeats), Noun("a URL or a list of URLs")
]
