"""Options whose part of the library isn't in this version: known by name, refused when switched on, never ignored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError, core_schema

from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue

VERSION = "0.1"
"""The version that refusals name: major and minor."""

LATER: dict[str, str] = {
    # routes of a gateway
    # identity
    "enable_mtls": "mutual TLS is",
    "cert_path": "mutual TLS is",
    "key_path": "mutual TLS is",
    "ca_path": "mutual TLS is",
    "auto_cert_renewal": "renewing certificates is",
    "cert_authority": "issuing certificates is",
    "security_policies": "access rules between services are",
}
"""Option to what it belongs to, as the beginning of the sentence "... not part of this version"."""

LATER_METHODS: dict[str, str] = {
    # of a mesh
    "require_valid_cert": "mutual TLS is",
}
"""Method of the product description to what it belongs to, likewise."""

_OFF_WORDS = frozenset({"", "0", "false", "no", "off", "none", "null"})


def is_off(value: object) -> bool:
    """Whether `value` leaves an option switched off: None, False, 0, an empty text or container, "false", "no"...

    >>> is_off("false"), is_off(0), is_off("100/minute")
    (True, True, False)
    """
    if isinstance(value, str):
        return value.strip().lower() in _OFF_WORDS
    return not value


def not_yet(what: str) -> str:
    """The end of a refusal.

    >>> not_yet("rate limits are")
    'rate limits are not part of this version (0.1)'
    """
    return f"{what} not part of this version ({VERSION})"


def refusal(option: str) -> str:
    """The whole sentence about an option, without its path."""
    return not_yet(LATER.get(option, "this option is"))


class NotInThisVersionError(ConfigurationError, AttributeError):
    """A method of the product description that this version doesn't have."""


def missing_attribute(owner: object, name: str) -> AttributeError:
    """What `owner.__getattr__(name)` raises: names what belongs to a later version, else is Python's usual error."""
    kind = type(owner).__name__
    if name in LATER_METHODS:
        return NotInThisVersionError(f"{kind}.{name}: {not_yet(LATER_METHODS[name])}")
    return AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=owner)


@dataclass(frozen=True, slots=True)
class Refused:
    """Marks a field that is known and refused: it validates to None, or fails; `problems.explain` says the sentence."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(_check_off)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"enum": [None, False]}


def _check_off(value: object) -> None:
    if not is_off(value):
        raise PydanticCustomError("later", not_yet("this option is"))


LaterOption = Annotated[Literal[False] | None, Refused()]
"""The type of such a field. Its value is always None."""


def later(name: str) -> Any:  # what pydantic.Field returns
    """The default and description of the field `name`, an option of a later version."""
    what = LATER[name].rsplit(" ", 1)[0]
    return Field(default=None, description=f"Not part of this version: {what}. Refused unless off.")
