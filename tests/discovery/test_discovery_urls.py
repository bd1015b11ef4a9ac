"""Addresses of instances, as people write them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_mesh.discovery.urls import DEFAULT_PORTS, parse
from fastapi_mesh.exceptions import ConfigurationError


async def app(scope, receive, send):
    """An ASGI application."""


def read(url):
    instance = parse(url, service="users", id="users-1")
    return instance.scheme, instance.address, instance.port, instance.base_path


@pytest.mark.spec("B25")
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://user-service:8000", ("http", "user-service", 8000, b"")),
        ("http://user-service", ("http", "user-service", 80, b"")),
        ("https://api.example.com", ("https", "api.example.com", 443, b"")),
        ("HTTPS://API.Example.com:8443/", ("https", "api.example.com", 8443, b"")),
        ("http://10.0.0.7:8000/base", ("http", "10.0.0.7", 8000, b"/base")),
        ("http://host/base/v1/", ("http", "host", 80, b"/base/v1")),
        ("http://host/b%C3%BCcher/a@b:c;d=1", ("http", "host", 80, b"/b%C3%BCcher/a@b:c;d=1")),
        ("user-service:8000", ("http", "user-service", 8000, b"")),
        ("localhost", ("http", "localhost", 80, b"")),
        ("under_score:80/x", ("http", "under_score", 80, b"/x")),
        ("[::1]:8000", ("http", "::1", 8000, b"")),
        ("https://[2001:DB8:0:0::1]/a", ("https", "2001:db8::1", 443, b"/a")),
        ("h2c://grpc:50051", ("h2c", "grpc", 50051, b"")),
        ("h2://grpc", ("h2", "grpc", 443, b"")),
        (" http://host:80\n", ("http", "host", 80, b"")),
        ("fully.qualified.:8000", ("http", "fully.qualified.", 8000, b"")),
    ],
)
def test_an_address_is_read(url, expected):
    assert read(url) == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "is empty"),
        ("http://", "has no host"),
        ("http:///path", "has no host"),
        (":8000", "has no host"),
        ("ftp://host", "unknown scheme; use one of http, https, h2, h2c"),
        ("ws://host", "a WebSocket is reached through"),
        ("redis://localhost:6379", "unknown scheme"),
        ("http://user:secret@host", "carries a user or password"),
        ("secret@host:80", "carries a user or password"),
        ("http://host?token=secret", "has a query or a fragment"),
        ("http://host/a#b", "has a query or a fragment"),
        ("http://host:0", "invalid port"),
        ("http://host:65536", "invalid port"),
        ("http://host:", "invalid port"),
        ("http://host:80a", "invalid port"),
        ("http://host:-1", "invalid port"),
        ("http://host:8000:9000", "an IPv6 address stands in brackets"),
        ("::1", "an IPv6 address stands in brackets"),
        ("http://[::1", "closing bracket"),
        ("http://[::1]8000", "closing bracket"),
        ("http://[::g]", "invalid IPv6 address"),
        ("http://[fe80::1%25eth0]", "IPv6 zone"),
        ("http://999.1.1.1", "invalid IPv4 address"),
        ("http://1.2.3", "invalid IPv4 address"),
        ("http://-host", "invalid host name"),
        ("http://ho..st", "invalid host name"),
        ("http://ho st", "contains a space"),
        ("http://host/\x00", "contains a space, a control character"),
        ("http://bücher.example", "the xn-- form"),
        ("http://host/a b", "contains a space"),
        ("http://host/%zz", "percent-encoded"),
        ('http://host/"', "percent-encoded"),
        ("http://host\\@evil", "carries a user"),
        ("http://host\\evil", "invalid host name"),
        ("http://host/a/../b", "has '.' or '..'"),
        ("http://host/%2E%2e/b", "has '.' or '..'"),
    ],
)
def test_an_address_that_is_none_is_refused_by_its_key(url, why):
    with pytest.raises(ConfigurationError) as refusal:
        parse(url, service="users", id="users-1", key="services.users[2]")

    assert str(refusal.value).startswith("services.users[2]: ")
    assert why in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_the_key_defaults_to_the_service():
    with pytest.raises(ConfigurationError, match=re.escape("services.users: 'gopher://host' has an unknown scheme")):
        read("gopher://host")


def test_an_application_is_an_instance_of_this_process():
    instance = parse(app, service="users", id="users-1")

    assert (instance.scheme, instance.address, instance.app) == ("asgi", "users", app)


def test_something_else_is_refused():
    with pytest.raises(ConfigurationError, match=re.escape("services.users: 8000 is neither a URL nor an ASGI")):
        parse(8000, service="users", id="users-1")


schemes = st.sampled_from(sorted(DEFAULT_PORTS))
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=4).map(".".join).filter(lambda name: not name.replace(".", "").isdigit())
hosts = st.one_of(names, st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
ports = st.one_of(st.none(), st.integers(1, 65535))
segments = st.from_regex(r"([A-Za-z0-9~!$&'()*+,;=:@_-]|%[0-9A-F]{2}){1,8}", fullmatch=True).filter(
    lambda text: "%2E" not in text
)
paths = st.lists(segments, max_size=3).map(lambda parts: "".join(f"/{part}" for part in parts))


@given(schemes, hosts, ports, paths, st.booleans())
def test_what_is_put_together_is_taken_apart_again(scheme, host, port, path, slash):
    authority = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{authority}{'' if port is None else f':{port}'}{path}{'/' if slash else ''}"

    assert read(url) == (scheme, host, port or DEFAULT_PORTS[scheme], path.encode())


def refusal_of(url):
    """The message that refuses `url`; None when it is an address."""
    try:
        read(url)
    except ConfigurationError as refusal:
        return str(refusal)
    return None


@given(
    st.one_of(st.text(), st.text(alphabet="htps:/@[]?#.%0189a\\ \t"), st.text(alphabet="ab:/@.").map("http://".__add__))
)
def test_any_text_is_either_an_address_that_can_be_used_or_a_configuration_error(text):
    refusal = refusal_of(text)
    if refusal is not None:
        assert refusal.startswith("services.users: ")
        assert "\n" not in refusal
        return
    scheme, address, port, base_path = read(text)
    assert scheme in DEFAULT_PORTS
    assert address
    assert address.isascii()
    assert not set(address) & set("@/?#[]\\ ")
    assert 1 <= port <= 65535
    assert base_path == b"" or (base_path.startswith(b"/") and not base_path.endswith(b"/"))
    authority = f"[{address}]" if ":" in address else address
    assert read(f"{scheme}://{authority}:{port}{base_path.decode()}") == (scheme, address, port, base_path)


@given(st.text(alphabet="abz0:/@.?#[]%", min_size=1), st.sampled_from(["http://", "", "nonsense://", "https://x://"]))
def test_a_password_is_never_shown(rest, scheme):
    for url in (
        f"{scheme}user:PASSWORD@{rest}",
        f"{scheme}PASSWORD@{rest}",
        f"{scheme}{rest}?key=PASSWORD",
        f"{scheme}{rest}#PASSWORD",
    ):
        assert "PASSWORD" not in (refusal_of(url) or "")
