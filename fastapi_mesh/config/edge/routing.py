"""Settings of what a route matches besides its path, and of what it does to the request on its way."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from fastapi_mesh.config.fields import CountOrZero, Frozen, Host, NotBool, OneOrMany, Problems, Token, shown

REST = "rest"
"""The name of what `*` stands for, in templates."""
REQUEST_ID = "request_id"

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_WILDCARD = re.compile(rf"\*(?:\.{_LABEL})+")
_TEMPLATE = re.compile(r"/(?:[\w\-.~!$&'()*+,=:@/{}]|%[0-9A-Fa-f]{2})*")
_VISIBLE = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")

HOP_BY_HOP = frozenset(
    {
        "connection",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""RFC 9110 section 7.6.1: fields of one connection, which a gateway writes itself."""
FORWARDING = frozenset({"forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-prefix", "x-forwarded-proto"})
OF_REQUESTS = HOP_BY_HOP | FORWARDING | {"content-length", "expect", "host", "via", "x-request-id"}
OF_RESPONSES = HOP_BY_HOP | {"content-length", "date", "via", "x-request-id"}
_OWN = "x-mesh-"


def _host_pattern(value: object) -> object:
    """A host name or address in lower case, without a dot at its end; or `*.` and a name."""
    if not isinstance(value, str):
        return value
    name = value.lower()
    if "*" in name:
        if not _WILDCARD.fullmatch(name):
            raise ValueError(f"{shown(value)}: '*' stands for whatever is before a name, as in '*.example.com'")
        return name
    return name[1:-1] if name.startswith("[") and name.endswith("]") else name.removesuffix(".")


def _named_host(value: str) -> str:
    return value if value.startswith("*.") else _check_host(value)


_HOST = TypeAdapter[str](Host)


def _check_host(value: str) -> str:
    try:
        return _HOST.validate_python(value)
    except ValidationError:
        raise ValueError(
            f"{shown(value)} is not a host name, an IP address or a pattern like '*.example.com'; a port is ignored in "
            "requests and has no place here"
        ) from None


HostPatterns = Annotated[
    tuple[Annotated[str, BeforeValidator(_host_pattern), AfterValidator(_named_host)], ...], OneOrMany
]


def _regular(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    return value


class ValueMatch(Frozen):
    """What a header or query parameter must be. A text alone is an `exact` value, true and false are `present`."""

    exact: str | None = Field(default=None, description="This value, letter for letter.")
    regex: Annotated[str, AfterValidator(_regular)] | None = Field(
        default=None, description="A regular expression (Python's) that matches the whole value."
    )
    present: bool | None = Field(default=None, description="true: there is one, whatever it is; false: there is none.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        if isinstance(value, str):
            return {"exact": value}
        if isinstance(value, bool):
            return {"present": value}
        if isinstance(value, (int, float)):
            raise ValueError(f"{value} is a number, and values are compared as texts - write '{value}'")
        return value

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if sum(each is not None for each in (self.exact, self.regex, self.present)) != 1:
            raise ValueError("needs a text, true, false, or one of exact, regex and present")
        return self


def _lower_keys(value: dict[str, ValueMatch]) -> dict[str, ValueMatch]:
    lowered = {name.lower(): each for name, each in value.items()}
    if len(lowered) < len(value):
        raise ValueError("has a header twice: their names are the same in upper and lower case")
    return lowered


HeaderMatches = Annotated[dict[Token, ValueMatch], AfterValidator(_lower_keys)]
QueryMatches = dict[str, ValueMatch]


def placeholders(text: str) -> list[str]:
    """The names in braces of a template. `{{` and `}}` are braces. Raises ValueError for a brace that is neither."""
    bare = text.replace("{{", "").replace("}}", "")
    if set(PLACEHOLDER.sub("", bare)) & set("{}"):
        raise ValueError(f"{shown(text)}: a placeholder is a name in braces, like '{{id}}'; a brace is written twice")
    return PLACEHOLDER.findall(bare)


def _header_value(value: str) -> str:
    if not _VISIBLE.fullmatch(value) or value != value.strip():
        raise ValueError("a header's value has no control character, and no space at either end")
    placeholders(value)
    return value


HeaderValue = Annotated[str, AfterValidator(_header_value)]


def _lower(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value.lower() for value in values))


class HeaderOperations(Frozen):
    """What is done to headers: first `remove`, then `set`, then `add`.

    Values may have placeholders: `{name}` for a parameter of the route's path (as it was sent, percent-encoded),
    `{request_id}`; `{{` is a brace.
    """

    add: dict[Token, Annotated[tuple[HeaderValue, ...], OneOrMany]] = Field(
        default={}, description="Header to a value, or several, put beside those that are there."
    )
    set: dict[Token, HeaderValue] = Field(default={}, description="Header to the value that replaces all others.")
    remove: Annotated[tuple[Token, ...], OneOrMany, AfterValidator(_lower)] = Field(
        default=(), description="Headers that are taken away."
    )

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = [*map(str.lower, self.add), *map(str.lower, self.set), *self.remove]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(doubled)}: only one of add, set and remove per header")
        return self

    def names_used(self) -> list[str]:
        """The placeholders of all values."""
        values = [*self.set.values(), *(value for values in self.add.values() for value in values)]
        return [name for value in values for name in placeholders(value)]

    def _refuse(self, forbidden: frozenset[str], why: str) -> None:
        problems: list[tuple[tuple[str | int, ...], str]] = []
        for operation, names in (("add", self.add), ("set", self.set), ("remove", self.remove)):
            for name in names:
                plain = name.lower().replace("_", "-")
                if plain in forbidden or plain.startswith(_OWN):
                    problems.append(((operation,), f"{name}: {why}"))
        if problems:
            raise Problems(problems)


class RequestHeaders(HeaderOperations):
    """Changes of the headers that a service gets."""

    @model_validator(mode="after")
    def _not_ours(self) -> Self:
        self._refuse(OF_REQUESTS, "the gateway writes this header of the request itself (see preserve_host for Host)")
        return self


class ResponseHeaders(HeaderOperations):
    """Changes of the headers of a service's answers."""

    @model_validator(mode="after")
    def _not_ours(self) -> Self:
        self._refuse(OF_RESPONSES, "this header of the answer is the gateway's or the server's to write")
        return self


def _rewrite(value: str) -> str:
    if not _TEMPLATE.fullmatch(value):
        raise ValueError(f"{shown(value)} is not a path: it starts with '/' and has no space, ';', '?' or '#' in it")
    used = placeholders(value)
    if "{{" in value or "}}" in value:
        raise ValueError(f"{shown(value)}: a path has no braces but those of a placeholder")
    last = value.rsplit("/", 1)[1]
    if "*" in value.removesuffix("/*") or (REST in used and (last != f"{{{REST}}}" or used.count(REST) > 1)):
        raise ValueError(f"{shown(value)}: '*' and '{{{REST}}}' stand alone at the end, as in '/v2/*'")
    if {".", ".."} & set(value.lower().replace("%2e", ".").split("/")) or "//" in value or "%2f" in value.lower():
        raise ValueError(f"{shown(value)}: no empty or dot segments and no '%2F' in a path that is sent on")
    return value


Rewrite = Annotated[str, AfterValidator(_rewrite)]


def _fixed_host(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    name, _, port = value.rpartition(":") if not value.endswith("]") and ":" in value else (value, "", "")
    _check_host(name.removeprefix("[").removesuffix("]"))
    if port and not (port.isdigit() and 0 < int(port) <= 65535):
        raise ValueError(f"{shown(value)} is not a host, or a host and a port")
    return value


HostPolicy = Annotated[bool | str, BeforeValidator(_fixed_host)]
"""True: the client's Host; False: the instance's own; a text: that."""

MaxBody = CountOrZero
Priority = Annotated[int, NotBool]
