"""What a service is told of the client, depending on who says it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastapi_mesh.api_gateway.forwarded import Forwarding
from fastapi_mesh.api_gateway.headers import RequestNames, read_request
from fastapi_mesh.api_gateway.nodes import address_of, read_forwarded
from fastapi_mesh.config.gateway import GatewayConfig
from fastapi_mesh.exceptions import InvalidRequestError

pytestmark = pytest.mark.spec("X-22", "B14")


def forwarded(
    forwarding: Forwarding,
    peer: str | None,
    *received: tuple[bytes, bytes],
    prefix: bytes = b"",
    scheme: str = "http",
    version: str = "1.1",
) -> tuple[bool, dict[bytes, bytes]]:
    """Whether the peer is trusted, and the headers that were added."""
    head = read_request([(b"host", b"gw:80"), *received], version, RequestNames())
    before = len(head.headers)
    scope = {"client": None if peer is None else (peer, 5), "scheme": scheme, "http_version": version}
    trusted = forwarding.append(head, scope, prefix).trusted
    added = head.headers[before:]
    assert len({name for name, _ in added}) == len(added), "each of them once"
    return trusted, dict(added)


LIES = (
    (b"x-forwarded-for", b"6.6.6.6"),
    (b"x-forwarded-for", b"7.7.7.7"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-host", b"shop.example"),
    (b"x-forwarded-prefix", b"/outer/"),
    (b"forwarded", b"for=6.6.6.6;proto=https"),
)


def test_by_default_nobody_is_trusted_not_even_loopback() -> None:
    trusted, added = forwarded(Forwarding(), "127.0.0.1", *LIES)

    assert not trusted
    assert added == {
        b"x-forwarded-for": b"127.0.0.1",
        b"x-forwarded-proto": b"http",
        b"x-forwarded-host": b"gw:80",
        b"forwarded": b'for=127.0.0.1;host="gw:80";proto=http',
        b"via": b"1.1 fastapi-mesh",
    }


def test_a_trusted_proxys_word_is_kept_and_its_lists_grow() -> None:
    trusted, added = forwarded(Forwarding(["10.0.0.0/8"]), "10.1.2.3", *LIES, prefix=b"/gw")

    assert trusted
    assert added == {
        b"x-forwarded-for": b"6.6.6.6, 7.7.7.7, 10.1.2.3",
        b"x-forwarded-proto": b"https",
        b"x-forwarded-host": b"shop.example",
        b"x-forwarded-prefix": b"/outer/gw",
        b"forwarded": b'for=6.6.6.6;proto=https, for=10.1.2.3;host="gw:80";proto=http',
        b"via": b"1.1 fastapi-mesh",
    }


RELATED = (
    (b"x-real-ip", b"6.6.6.6"),
    (b"x-forwarded-port", b"444"),
    (b"x-forwarded-scheme", b"https"),
    (b"x-forwarded-server", b"evil"),
    (b"x-forwarded-ssl", b"on"),
)


def test_what_else_says_something_of_a_client_passes_from_a_trusted_proxy_only() -> None:
    forwarding = Forwarding(["10.0.0.0/8"])

    _, kept = forwarded(forwarding, "10.1.2.3", *RELATED)
    _, dropped = forwarded(forwarding, "11.1.2.3", *RELATED)

    assert set(RELATED) <= set(kept.items())
    assert not {name for name, _ in RELATED} & set(dropped)
    assert b"forwarded" in dropped
    head = read_request([(b"host", b"gw"), (b"connection", b"X-Real-IP"), *RELATED], "1.1", RequestNames())
    assert head.headers == [(b"host", b"gw")], "and they go no other way"
    with pytest.raises(InvalidRequestError, match="x_real_ip"):
        read_request([(b"host", b"gw"), (b"x_real_ip", b"6.6.6.6")], "1.1", RequestNames())


def test_a_proxy_on_a_unix_socket_is_trusted_by_that_word_only() -> None:
    forwarding = Forwarding(["10.0.0.0/8", "unix"])

    trusted, added = forwarded(forwarding, None, (b"x-forwarded-for", b"6.6.6.6, 10.0.0.3"), LIES[2])
    nothing_said, alone = forwarded(forwarding, None, (b"x-forwarded-proto", b"https"))
    others = [forwarded(Forwarding(["0.0.0.0/0", "::/0"]), None, *LIES), forwarded(forwarding, "testclient", *LIES)]

    assert trusted
    assert nothing_said
    assert added[b"x-forwarded-for"] == b"6.6.6.6, 10.0.0.3"
    assert (added[b"x-forwarded-proto"], alone[b"x-forwarded-proto"]) == (b"https", b"https")
    assert b"x-forwarded-for" not in alone
    assert not any(believed for believed, _ in others)
    head = read_request([(b"host", b"gw"), (b"x-forwarded-for", b"6.6.6.6, 10.0.0.3")], "1.1", RequestNames())
    assert forwarding.append(head, {"client": None, "scheme": "http", "http_version": "1.1"}, b"").address == "6.6.6.6"
    assert GatewayConfig(trusted_proxies=["unix"]).trusted_proxies == ("unix",)


@pytest.mark.parametrize("name", [b"x-envoy-expected-rq-timeout-ms", b"grpc-timeout", b"x-mesh-shadow"])
def test_deadlines_and_marks_of_copies_pass_from_a_trusted_proxy_only(name: bytes) -> None:
    forwarding = Forwarding(["10.0.0.0/8"])

    _, kept = forwarded(forwarding, "10.1.2.3", (name, b"1"), (b"forwarded", b"for=6.6.6.6"))
    _, dropped = forwarded(forwarding, "11.1.2.3", (name, b"1"))

    assert kept[name] == b"1"
    assert kept[b"forwarded"].startswith(b"for=6.6.6.6, for=10.1.2.3")
    assert name not in dropped


def test_beside_other_words_of_a_proxy_forwarded_alone_is_not_believed() -> None:
    head = read_request(
        [(b"host", b"gw"), RELATED[0], (b"forwarded", b"for=6.6.6.6;proto=https")], "1.1", RequestNames()
    )
    scope = {"client": ("10.1.2.3", 5), "scheme": "http", "http_version": "1.1"}

    origin = Forwarding(["10.0.0.0/8"]).append(head, scope, b"")

    assert (origin.address, origin.scheme) == ("10.1.2.3", "http")


def test_somebody_outside_of_the_trusted_networks_is_not_believed() -> None:
    trusted, added = forwarded(Forwarding(["10.0.0.0/8"]), "11.1.2.3", *LIES)

    assert not trusted
    assert added[b"x-forwarded-for"] == b"11.1.2.3"
    assert b"x-forwarded-prefix" not in added


def test_a_trusted_proxy_that_says_nothing_is_like_any_client() -> None:
    trusted, added = forwarded(Forwarding(["10.0.0.1"]), "10.0.0.1", scheme="https")

    assert trusted
    assert added[b"x-forwarded-for"] == b"10.0.0.1"
    assert added[b"x-forwarded-proto"] == b"https"


def test_addresses_of_both_families_are_written_as_their_headers_want_them() -> None:
    _, six = forwarded(Forwarding(), "2001:db8::1")
    _, mapped = forwarded(Forwarding(["10.0.0.0/8"]), "::ffff:10.0.0.7")

    assert (six[b"x-forwarded-for"], six[b"forwarded"][:21]) == (b"2001:db8::1", b'for="[2001:db8::1]";h')
    assert mapped[b"x-forwarded-for"] == b"10.0.0.7"


@pytest.mark.parametrize("peer", [None, "", "testclient", "/run/gateway.sock"])
def test_a_peer_without_an_address_is_unknown_and_its_lies_are_dropped(peer: str | None) -> None:
    trusted, added = forwarded(Forwarding(["0.0.0.0/0"]), peer, *LIES)

    assert not trusted
    assert b"x-forwarded-for" not in added
    assert added[b"forwarded"] == b'for=unknown;host="gw:80";proto=http'


def test_what_was_taken_off_the_path_is_said() -> None:
    assert forwarded(Forwarding(), "1.2.3.4", prefix=b"/gw")[1][b"x-forwarded-prefix"] == b"/gw"


@pytest.mark.parametrize(("version", "via"), [("1.0", b"1.0 edge"), ("1.1", b"1.1 edge"), ("2", b"2 edge")])
def test_via_has_the_version_the_request_came_in(version: str, via: bytes) -> None:
    assert forwarded(Forwarding(via="edge"), "1.2.3.4", version=version)[1][b"via"] == via


def test_a_via_that_is_there_stays_before_ours() -> None:
    head = read_request([(b"host", b"a"), (b"via", b"1.1 front")], "1.1", RequestNames())

    Forwarding().append(head, {"client": ("1.2.3.4", 5), "scheme": "http", "http_version": "1.1"}, b"")

    assert [value for name, value in head.headers if name == b"via"] == [b"1.1 front", b"1.1 fastapi-mesh"]


def test_the_memory_of_peers_is_bounded() -> None:
    forwarding = Forwarding()

    for number in range(5000):
        forwarded(forwarding, f"10.0.{number // 256}.{number % 256}")

    assert len(forwarding._peers) <= 4096


def origin(*received: tuple[bytes, bytes], trusted: str = "10.0.0.0/8", peer: str = "10.0.0.1") -> tuple[str, str]:
    """The address and the scheme that a request is taken to come from."""
    head = read_request([(b"host", b"gw"), *received], "1.1", RequestNames())
    scope = {"client": (peer, 5), "scheme": "http", "http_version": "1.1"}
    found = Forwarding([trusted]).append(head, scope, b"")
    return found.address, found.scheme


@pytest.mark.parametrize(
    ("chain", "address"),
    [
        (b"6.6.6.6", "6.6.6.6"),
        (b"6.6.6.6:4711", "6.6.6.6"),
        (b"[2001:db8::1]:4711", "2001:db8::1"),
        (b"[2001:db8::1]", "2001:db8::1"),
        (b"2001:db8::1", "2001:db8::1"),
        (b"::ffff:6.6.6.6", "6.6.6.6"),
        (b"7.7.7.7, 6.6.6.6, 10.0.0.2", "6.6.6.6"),
        (b"7.7.7.7,6.6.6.6 ,\t10.0.0.2:80", "6.6.6.6"),
        (b"6.6.6.6, garbage", "10.0.0.1"),
        (b"6.6.6.6, garbage, 10.0.0.2", "10.0.0.2"),
        (b"unknown", "10.0.0.1"),
        (b"", "10.0.0.1"),
        (b",,", "10.0.0.1"),
        (b"6.6.6.6:port", "10.0.0.1"),
        (b"[2001:db8::1", "10.0.0.1"),
        (b"[2001:db8::1]x", "10.0.0.1"),
        (b"256.1.1.1", "10.0.0.1"),
        (b"6.6.6.6" + b"6" * 10_000, "10.0.0.1"),
        (b"10.0.0.9, 10.0.0.2", "10.0.0.9"),
    ],
)
def test_the_clients_address_is_the_last_that_no_trusted_proxy_has(chain: bytes, address: str) -> None:
    assert origin((b"x-forwarded-for", chain))[0] == address
    assert origin((b"x-forwarded-for", chain), peer="11.0.0.1")[0] == "11.0.0.1", "anybody else is not believed"


@pytest.mark.parametrize(
    ("proto", "scheme"),
    [
        (b"https", "https"),
        (b"HTTPS", "https"),
        (b"http", "http"),
        (b"https, http", "http"),
        (b"http,https", "https"),
        (b"x", "http"),
    ],
)
def test_of_several_protocols_the_last_counts_which_the_proxy_next_to_us_has_seen(proto: bytes, scheme: str) -> None:
    assert origin((b"x-forwarded-proto", proto))[1] == scheme
    assert origin((b"x-forwarded-proto", proto), peer="11.0.0.1")[1] == "http"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"for=6.6.6.6;proto=https", ("6.6.6.6", "https")),
        (b'FOR="[2001:db8::1]:4711" ; Proto=HTTPS;by=_gw', ("2001:db8::1", "https")),
        (b"for=7.7.7.7;proto=http, for=6.6.6.6:80;proto=https, for=10.0.0.2", ("6.6.6.6", "http")),
        (b'for="6.6.6.6\\:80"', ("6.6.6.6", "http")),
        (b"for=_hidden;proto=https", ("10.0.0.1", "https")),
        (b"proto=https", ("10.0.0.1", "https")),
        (b'for="6.6.6.6;proto=https', ("10.0.0.1", "http")),
        (b"for=6.6.6.6;proto=https;proto=https", ("10.0.0.1", "http")),
        (b"for=6.6.6.6;;proto=https", ("10.0.0.1", "http")),
        (b'for="6.6.6.6, 7.7.7.7"', ("10.0.0.1", "http")),
        (b"", ("10.0.0.1", "http")),
    ],
)
def test_a_proxy_that_speaks_rfc_7239_only_is_understood(value: bytes, expected: tuple[str, str]) -> None:
    assert origin((b"forwarded", value)) == expected
    assert origin((b"forwarded", value), peer="11.0.0.1") == ("11.0.0.1", "http")


def test_forwarded_does_not_count_beside_what_the_proxy_itself_writes() -> None:
    made_up = (b"forwarded", b"for=1.1.1.1;proto=https")

    assert origin(made_up, (b"x-forwarded-for", b"6.6.6.6")) == ("6.6.6.6", "http")


def test_the_protocol_of_forwarded_is_told_to_services_that_know_the_other_headers_only() -> None:
    _, added = forwarded(Forwarding(["10.0.0.1"]), "10.0.0.1", (b"forwarded", b"for=6.6.6.6;proto=https"))

    assert added[b"x-forwarded-proto"] == b"https"
    assert added[b"forwarded"] == b'for=6.6.6.6;proto=https, for=10.0.0.1;host="gw:80";proto=http'


def test_long_garbage_is_not_remembered() -> None:
    forwarding = Forwarding(["10.0.0.1"])
    head = read_request([(b"host", b"gw"), (b"x-forwarded-for", b"x" * 5000)], "1.1", RequestNames())
    scope = {"client": ("10.0.0.1", 5), "scheme": "http", "http_version": "1.1"}

    assert forwarding.append(head, scope, b"").address == "10.0.0.1"
    assert max(len(name or "") for name in forwarding._peers) < 100


@given(st.binary(max_size=80))
@settings(max_examples=300, deadline=None)
def test_no_value_of_forwarded_can_do_more_than_be_ignored(value: bytes) -> None:
    read_forwarded(value)
    address_of(value.decode("latin-1"))
