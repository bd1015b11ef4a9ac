"""The parts of transformers by themselves: which bodies are read, the headers' mapping, and conversions."""

from __future__ import annotations

import functools
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_mesh.api_gateway.transform import (
    Fields,
    GatewayRequest,
    GatewayResponse,
    JMESPath,
    JSONToXML,
    XMLToJSON,
)
from fastapi_mesh.api_gateway.transform.body import TooLongError, UnreadableError, codings, decoded, narrowed
from fastapi_mesh.api_gateway.transform.convert import ConversionError, ServiceConversionError
from fastapi_mesh.api_gateway.transform.needs import reads_body
from tests.api_gateway.transform_support import Echo, client_of, new_gateway

# Which bodies are read.


def helper(message):
    return len(message.body)


def innocent(message):
    return message.headers["X"]


class Direct:
    def transform_request(self, request):
        return request.body

    def transform_response(self, response):
        return response.headers


class ThroughMethod:
    async def transform_request(self, request):
        return await self._more(request)

    async def _more(self, request):
        return [len(part) for part in (request.body,)]


class ThroughFunction:
    def transform_request(self, request):
        return helper(request) if request.path == "/x" else request


class ThroughBase(ThroughMethod):
    pass


class ThroughSuper(Direct):
    def transform_request(self, request):
        return super().transform_request(request)


class Writes:
    def transform_request(self, request):
        request.body = b""
        return request


class Nothing:
    def transform_request(self, request):
        request.headers["X"] = str(innocent(request))
        return request

    def unused(self, request):
        return request.body


class Said(Nothing):
    buffer_body = True


class SaidNot(Direct):
    buffer_body = False


class Wrapped:
    def __init__(self, function):
        self.transform_request = functools.partial(function, 1)


def traced(function):
    @functools.wraps(function)
    def call(*arguments):
        return function(*arguments)

    return call


def closure():
    def inner(message):
        return message.body

    return lambda message: inner(message) + 1


@pytest.mark.spec("X-32", "A2")
@pytest.mark.parametrize(
    ("transformer", "reads"),
    [
        (Direct(), True),
        (ThroughMethod(), True),
        (ThroughFunction(), True),
        (ThroughBase(), True),
        (ThroughSuper(), True),
        (Said(), True),
        (Wrapped(lambda one, message: message.body), True),
        (helper, True),
        (traced(helper), True),
        (closure(), True),
        (functools.partial(helper), True),
        (lambda message: [(lambda: message.body)() for _ in "x"], True),
        (Writes(), False),
        (Nothing(), False),
        (SaidNot(), False),
        (innocent, False),
        (traced(innocent), False),
        (str, False),
    ],
)
def test_a_body_is_read_for_a_transformer_whose_code_reads_it(transformer: object, reads: bool) -> None:
    assert reads_body(transformer, getattr(transformer, "transform_request", transformer)) is reads


def test_only_the_method_that_is_called_counts() -> None:
    transformer = Direct()
    assert not reads_body(transformer, transformer.transform_response)


# Headers.


@pytest.mark.spec("A2")
def test_headers_keep_their_order_and_their_duplicates() -> None:
    fields = Fields([("A", "1"), ("B", "2"), ("a", "3"), ("C", "4")])

    assert (len(fields), list(fields), fields["a"], fields.getlist("A")) == (3, ["a", "b", "c"], "1, 3", ["1", "3"])
    assert not fields.getlist("z")
    fields["a"] = "5"
    assert fields.raw == ((b"a", b"5"), (b"b", b"2"), (b"c", b"4"))
    fields.add("B", "6")
    del fields["A"]
    assert fields.raw == ((b"b", b"2"), (b"c", b"4"), (b"b", b"6"))
    assert ("B" in fields, "A" in fields, 5 in fields) == (True, False, False)
    with pytest.raises(KeyError):
        del fields["a"]
    with pytest.raises(KeyError):
        fields["a"]
    assert fields.setdefault("D", "7") == fields.pop("D") == "7"
    assert Fields([("Cookie", "a=1"), ("Cookie", "b=2")])["cookie"] == "a=1; b=2"


@given(
    st.lists(st.tuples(st.sampled_from(["a", "B", "x-y"]), st.text(st.characters(max_codepoint=255), max_size=8))),
    st.text(max_size=8),
    st.text(max_size=8),
)
def test_no_value_that_gets_in_can_end_a_line(items: list[tuple[str, str]], name: str, value: str) -> None:
    fields = Fields()
    for key, each in [*items, (name, value)]:
        try:
            fields.add(key, each)
        except ValueError:
            continue
    for key, data in fields.raw:
        assert not set(key + data) & set(b"\r\n\0")
        assert key == key.lower() != b""


def test_what_is_not_changed_is_not_copied() -> None:
    raw = [(b"a", b"1")]
    fields = Fields.of(raw)
    assert not fields.changed
    fields["b"] = "2"
    assert (raw, fields.changed) == ([(b"a", b"1")], True)


def test_codings_that_can_not_be_taken_off_are_not_asked_for() -> None:
    assert {"gzip", "deflate", "br"} <= codings()
    assert narrowed("br;q=1, zstd", frozenset({"br"})) == "br;q=1"
    assert narrowed("*", frozenset({"br"})) == "identity"
    assert narrowed("identity;q=0, zstd", frozenset()) == "identity;q=0"


# Conversions.


def xml(body: str, kind: str = "application/xml; charset=utf-8") -> GatewayResponse:
    return GatewayResponse(200, {"Content-Type": kind}, body)


@pytest.mark.spec("S-033")
@pytest.mark.parametrize("kind", ["application/xml", "text/xml; charset=utf-8", "application/atom+xml"])
def test_xml_becomes_json(kind: str) -> None:
    response = XMLToJSON(force_list=["item"]).transform_response(
        xml('<order id="7"><item>a</item><note>ñ</note></order>', kind)
    )

    assert json.loads(response.body) == {"order": {"@id": "7", "item": ["a"], "note": "ñ"}}
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "text/html", ""])
def test_other_bodies_are_left_alone(kind: str) -> None:
    response = XMLToJSON().transform_response(xml("<a/>", kind))
    assert (response.body, response.body_changed) == (b"<a/>", False)
    assert XMLToJSON().transform_response(xml("")).body == b""
    assert XMLToJSON("request").transform_response(xml("<a/>")).body == b"<a/>"


BILLION = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><a>&c;</a>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'


@pytest.mark.spec("S-033")
@pytest.mark.parametrize(
    ("body", "text"),
    [
        (BILLION, "document type"),
        (EXTERNAL, "document type"),
        ('<!DOCTYPE a SYSTEM "http://127.0.0.1/x.dtd"><a/>', "document type"),
        ("<a>" * 65 + "</a>" * 65, "deeper than 64"),
        ("<a>" * 200_000, "deeper than 64"),
        ("<r>" + "<a/>" * 100_001 + "</r>", "more than 100000"),
        ("<a>", "not XML"),
        ("{}", "not XML"),
        ("<a>&unknown;</a>", "not XML"),
        ("<a b='1' b='2'/>", "not XML"),
    ],
)
def test_xml_that_could_hurt_is_refused(body: str, text: str) -> None:
    with pytest.raises(ServiceConversionError, match=text):
        XMLToJSON().transform_response(xml(body))
    request = GatewayRequest("POST", "/x", "", {"Content-Type": "text/xml"}, body)
    with pytest.raises(ConversionError, match=text) as refused:
        XMLToJSON("request").transform_request(request)
    assert (refused.value.status, ServiceConversionError.status) == (400, 502)


def to_xml(body: str) -> str:
    request = GatewayRequest("POST", "/x", "", {"Content-Type": "application/json"}, body)
    changed = JSONToXML("both", root="data").transform_request(request)
    assert changed.headers["content-type"] == "application/xml; charset=utf-8"
    return changed.body.decode().partition("?>\n")[2]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ('{"user": {"@id": "7", "name": "Ana"}}', '<user id="7"><name>Ana</name></user>'),
        ('{"a": 1, "b": "<&>"}', "<data><a>1</a><b>&lt;&amp;&gt;</b></data>"),
        ("[1, 2]", "<data><item>1</item><item>2</item></data>"),
        ('{"a": [1, 2]}', "<data><a>1</a><a>2</a></data>"),
        ('"text"', "<data>text</data>"),
        ("null", "<data></data>"),
    ],
)
def test_json_becomes_xml(body: str, wanted: str) -> None:
    assert to_xml(body) == wanted


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"a><evil/": 1}', "can't be the name"),
        ('{"a b": 1}', "can't be the name"),
        ('{"": 1, "b": 2}', "can't be the name"),
        ('{"@a=\\"1\\" b": 1, "c": 2}', "can't be the name"),
        ('{"a": "\\u0000"}', "not XML"),
        ("[" * 65 + "]" * 65, "deeper than 64"),
        ("[" * 100_000, "deeper than 64"),
        ("{", "not JSON"),
    ],
)
def test_json_that_is_no_xml_is_refused(body: str, text: str) -> None:
    with pytest.raises(ConversionError, match=text):
        to_xml(body)


def test_xml_and_json_are_each_others_inverse() -> None:
    document = '{"order": {"@id": "7", "item": ["a", "b"], "note": "x"}}'
    there = GatewayResponse(200, {"Content-Type": "application/json"}, document)
    JSONToXML("both").transform_response(there)
    XMLToJSON().transform_response(there)
    assert json.loads(there.body) == json.loads(document)


@pytest.mark.spec("X-32")
def test_jmespath_finds_what_it_is_asked_for() -> None:
    query = JMESPath("items[?price > `10`].name")
    response = GatewayResponse(
        200,
        {"Content-Type": "application/hal+json"},
        '{"items": [{"name": "a", "price": 5}, {"name": "b", "price": 15}]}',
    )
    assert json.loads(query.transform_response(response).body) == ["b"]
    with pytest.raises(ServiceConversionError, match="can't be applied"):
        JMESPath("abs(name)").transform_response(
            GatewayResponse(200, {"Content-Type": "application/json"}, '{"name": "a"}')
        )
    with pytest.raises(ValueError, match="no JMESPath"):
        JMESPath("a[")


def test_where_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="'request', 'response' or 'both'"):
        XMLToJSON("everywhere")  # type: ignore[arg-type]


@pytest.mark.anyio
@pytest.mark.spec("S-033")
async def test_a_gateway_speaks_json_for_a_service_that_speaks_xml() -> None:
    echo = Echo(b"<user><name>Ana</name></user>", {"content-type": "text/xml"})
    gateway = new_gateway(echo, JSONToXML(), XMLToJSON())
    async with client_of(gateway) as client:
        answer = await client.post("/api/users", json={"user": {"name": "Ana"}})
        invalid = await client.post("/api/users", content=b"{", headers={"content-type": "application/json"})

    assert echo.last["body"].endswith(b"<user><name>Ana</name></user>")  # type: ignore[attr-defined]
    assert echo.header("content-type") == "application/xml; charset=utf-8"
    assert answer.json() == {"user": {"name": "Ana"}}
    assert (invalid.status_code, invalid.headers["x-mesh-reason"]) == (400, "transform-invalid-body")


# Content codings.


def test_all_members_of_a_gzip_file_are_read() -> None:
    parts = [b"a" * 100_000, b"", b"b" * 70_000, b"c"]
    data = b"".join(gzip.compress(part, mtime=0) for part in parts)

    assert decoded(data, "gzip", 200_000) == b"".join(parts)
    with pytest.raises(TooLongError):
        decoded(data, "gzip", 170_000)
    with pytest.raises(UnreadableError, match="ends too early"):
        decoded(data[:-1], "gzip", 200_000)
    with pytest.raises(UnreadableError, match="not in the coding"):
        decoded(data + b"garbage", "gzip", 200_000)


def test_a_gzip_file_of_countless_empty_members_is_refused() -> None:
    with pytest.raises(UnreadableError, match="too many members"):
        decoded(gzip.compress(b"", mtime=0) * 50_000, "gzip", 1_000_000)


def test_json_with_countless_values_is_refused_before_xml_is_made_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    converter = JSONToXML("request")
    monkeypatch.setattr(converter, "_unparse", lambda root: pytest.fail("the slow work was begun"))
    request = GatewayRequest("POST", "/", "", {"Content-Type": "application/json"}, json.dumps([1] * 100_001))

    with pytest.raises(ConversionError, match="more than 100000 elements"):
        converter.transform_request(request)
