"""Transformers that convert bodies: XML to JSON and back, and JMESPath queries. Needs the `transform` extra."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Literal
from xml.parsers import expat

from fastapi_mesh.api_gateway.problems import GatewayRefusalError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import ClassVar

    from fastapi_mesh.api_gateway.transform.messages import GatewayRequest, GatewayResponse

    Message = GatewayRequest | GatewayResponse

NEEDS_EXTRA = "converting bodies needs xmltodict and jmespath: pip install 'fastapi-mesh[transform]'"
MAX_DEPTH = 64
"""Levels of nesting; a deeper document is refused before anything recurses into it."""
MAX_NODES = 100_000
"""Elements and attributes of one document."""
XML_TYPES = frozenset({"application/xml", "text/xml"})
_XML_NAME = re.compile(r"[^\W\d][\w.-]*")
Where = Literal["request", "response", "both"]


class ConversionError(GatewayRefusalError):
    """A client's body is not what its Content-Type says, or is nested too deeply."""

    status: ClassVar[int] = 400
    reason: ClassVar[str] = "transform-invalid-body"


class ServiceConversionError(ConversionError):
    """The same, of a service's."""

    status: ClassVar[int] = 502


class _Converter:
    """Changes bodies of certain types, in requests, answers or both."""

    buffer_body = True

    def __init__(self, where: Where) -> None:
        if where not in ("request", "response", "both"):
            raise ValueError(f"where is 'request', 'response' or 'both', not {where!r}")
        self._where = where

    def transform_request(self, request: GatewayRequest) -> GatewayRequest:
        """Convert the body, if it is meant."""
        if self._where != "response":
            self._transform(request, ConversionError)
        return request

    def transform_response(self, response: GatewayResponse) -> GatewayResponse:
        """Convert the body, if it is meant."""
        if self._where != "request":
            self._transform(response, ServiceConversionError)
        return response

    def _transform(self, message: Message, error: type[ConversionError]) -> None:
        if not self._means(media_type(message)):
            return
        body = message.body
        if not body:  # nothing to convert in a 204, a 304 or an empty request
            return
        try:
            message.body, message.headers["Content-Type"] = self._convert(body)
        except (ValueError, RecursionError) as why:
            raise error(f"The body can't be converted: {_short(why)}") from why

    def _means(self, media_type: str) -> bool:
        raise NotImplementedError

    def _convert(self, body: bytes) -> tuple[bytes, str]:
        """The new body and its type. Raises ValueError."""
        raise NotImplementedError


class XMLToJSON(_Converter):
    """Turns XML bodies into JSON (xmltodict's way: attributes as "@name", text beside them as "#text").

    `force_list` are names of elements that become a list even when there is one. Document types and entities are
    refused, as are documents nested deeper than 64 levels or with more than 100 000 elements and attributes.
    """

    def __init__(self, where: Where = "response", *, force_list: Iterable[str] = ()) -> None:
        super().__init__(where)
        self._force_list = tuple(force_list)
        try:
            import xmltodict
        except ImportError as error:
            raise ImportError(NEEDS_EXTRA) from error
        self._parse = xmltodict.parse

    def _means(self, media_type: str) -> bool:
        return media_type in XML_TYPES or media_type.endswith("+xml")

    def _convert(self, body: bytes) -> tuple[bytes, str]:
        check_xml(body)
        try:
            data = self._parse(body, force_list=self._force_list)
        except expat.ExpatError as error:
            raise ValueError(f"it is not XML: {error}") from error
        return json.dumps(data, ensure_ascii=False).encode(), "application/json"


class JSONToXML(_Converter):
    """Turns JSON bodies into XML. An object with one key is the root element; everything else gets `root` around it."""

    def __init__(self, where: Where = "request", *, root: str = "root") -> None:
        super().__init__(where)
        self._root = root
        try:
            import xmltodict
        except ImportError as error:
            raise ImportError(NEEDS_EXTRA) from error
        self._unparse = xmltodict.unparse

    def _means(self, media_type: str) -> bool:
        return is_json(media_type)

    def _convert(self, body: bytes) -> tuple[bytes, str]:
        data = load_json(body)
        _check_names(data)
        content = {"item": data} if isinstance(data, list) else data
        root = {self._root: content}
        if isinstance(data, dict) and len(data) == 1 and not isinstance(next(iter(data.values())), list):
            root = data
        text = self._unparse(root)
        check_xml(text.encode())
        return text.encode(), "application/xml; charset=utf-8"


class JMESPath(_Converter):
    """Replaces JSON bodies by what a JMESPath expression finds in them (null where it finds nothing).

    Raises ValueError at once for an expression that is none.
    """

    def __init__(self, expression: str, where: Where = "response") -> None:
        super().__init__(where)
        try:
            import jmespath
            from jmespath.exceptions import JMESPathError
        except ImportError as error:
            raise ImportError(NEEDS_EXTRA) from error
        try:
            self._expression = jmespath.compile(expression)
        except JMESPathError as error:
            raise ValueError(f"{expression!r} is no JMESPath expression: {error}") from error
        self._error = JMESPathError

    def _means(self, media_type: str) -> bool:
        return is_json(media_type)

    def _convert(self, body: bytes) -> tuple[bytes, str]:
        try:
            found = self._expression.search(load_json(body))
        except self._error as error:
            raise ValueError(f"the expression can't be applied: {error}") from error
        return json.dumps(found, ensure_ascii=False).encode(), "application/json"


def media_type(message: Message) -> str:
    """The type of a body without parameters, in lower case; "" where it isn't said."""
    return message.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def is_json(media_type: str) -> bool:
    """RFC 8259, and every `+json` type (RFC 6839)."""
    return media_type == "application/json" or media_type.endswith("+json")


def load_json(body: bytes) -> object:
    """Plain data. Raises ValueError for what is no JSON, or nested too deeply."""
    try:
        data = json.loads(body)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    level: list[object] = [data]
    for _ in range(MAX_DEPTH):
        level = [value for each in level for value in _inside(each)]
    if any(isinstance(each, (dict, list)) for each in level):
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    return data


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _check_names(data: object) -> None:
    """Raises ValueError for a key that can't be an element's or attribute's name: it could make others of them; and for
    too many of them, before the slow work.
    """
    pending, count = [data], 0
    while pending:
        each = pending.pop()
        count += 1
        if count > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} elements and attributes")
        if isinstance(each, dict):
            for key in each:
                if key != "#text" and not _XML_NAME.fullmatch(key.removeprefix("@")):
                    raise ValueError(f"{key[:40]!r} can't be the name of an XML element")
            pending.extend(each.values())
        elif isinstance(each, list):
            pending.extend(each)


def check_xml(body: bytes) -> None:
    """Raises ValueError for what is no XML, has a document type (and with it entities), or is nested too deeply."""
    depth = nodes = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, nodes
        depth += 1
        nodes += 1 + len(attributes)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        if nodes > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} elements and attributes")

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    def doctype(*_: object) -> None:
        raise ValueError("it has a document type, which could declare entities")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(body, True)
    except expat.ExpatError as error:
        raise ValueError(f"it is not XML: {error}") from error


def _short(error: Exception) -> str:
    return str(error)[:200] if isinstance(error, ValueError) else f"it is nested deeper than {MAX_DEPTH} levels"
