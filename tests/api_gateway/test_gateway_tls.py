"""TLS of a gateway's own server: its material is checked at the start, and renewed without one."""

from __future__ import annotations

import asyncio
import datetime
import logging
import ssl
import warnings
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from fastapi_mesh.api_gateway.tls import Material, check_certificate
from fastapi_mesh.config.gateway import GatewayConfig
from fastapi_mesh.exceptions import ConfigurationError
from tests.api_gateway.gateway_support import RawUpstream, parts, request, values
from tests.api_gateway.standalone_support import Authority, standalone, started

pytestmark = [pytest.mark.anyio, pytest.mark.spec("S-060", "A14")]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    made.issue()
    return made


async def talk_tls(port: int, payload: bytes, context: ssl.SSLContext) -> tuple[bytes, bytes, str]:
    """The answer, the server's certificate (DER), and the version of TLS."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(payload)
    raw = await reader.read()
    tls = writer.get_extra_info("ssl_object")
    certificate, version = tls.getpeercert(binary_form=True), tls.version()
    writer.close()
    return raw, certificate, version


async def test_it_serves_https_and_the_service_is_told_so(authority: Authority) -> None:
    async with RawUpstream() as upstream:
        gateway = standalone(upstream.url, ssl_cert=str(authority.cert), ssl_key=str(authority.key))
        async with started(gateway) as port:
            raw, _, version = await talk_tls(port, request("GET /api/x"), authority.client())

    assert parts(raw)[0] == 200
    assert version == "TLSv1.3"
    assert values(upstream.received[0], b"x-forwarded-proto") == [b"https"]


async def test_old_versions_of_tls_are_refused(authority: Authority) -> None:
    gateway = standalone(ssl_cert=str(authority.cert), ssl_key=str(authority.key))
    old = authority.client()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    two = authority.client()
    two.maximum_version = ssl.TLSVersion.TLSv1_2
    async with started(gateway) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await talk_tls(port, request("GET /health/live"), old)

        assert (await talk_tls(port, request("GET /health/live"), two))[2] == "TLSv1.2"


async def test_plain_http_on_the_tls_port_gets_no_answer(authority: Authority) -> None:
    async with started(standalone(ssl_cert=str(authority.cert), ssl_key=str(authority.key))) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("GET /health"))
        assert b"HTTP/" not in await reader.read()
        writer.close()


async def test_renewed_files_are_used_for_new_connections_and_old_ones_go_on(authority: Authority) -> None:
    gateway = standalone(ssl_cert=str(authority.cert), ssl_key=str(authority.key))
    async with started(gateway) as port:
        first = (await talk_tls(port, request("GET /health/live"), authority.client()))[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=authority.client())
        authority.issue()

        async with asyncio.timeout(6):
            while (await talk_tls(port, request("GET /health/live"), authority.client()))[1] == first:  # noqa: ASYNC110
                await asyncio.sleep(0.1)  # it looks once a second

        writer.write(request("GET /health/live"))
        assert parts(await reader.read())[0] == 200
        writer.close()


def material(authority: Authority, **settings: object) -> Material:
    given = {"ssl_cert": authority.cert, "ssl_key": authority.key, **settings}
    return Material(GatewayConfig(**given))  # type: ignore[arg-type] # the test's own settings


def test_a_renewal_that_is_no_good_changes_nothing(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    used = material(authority)
    before = used.context._current
    key = authority.key.read_bytes()
    authority.issue()
    authority.key.write_bytes(key)  # the certificate is new already, and its key is not here yet

    used.renew()

    assert used.context._current is before
    assert "the renewed TLS material is not used: ssl_key: the private key in" in caplog.text
    authority.issue()
    used.renew()
    assert used.context._current is not before
    assert used.renewals == 1


def test_one_file_may_have_both(authority: Authority) -> None:
    authority.issue(combined=True)

    assert material(authority, ssl_key=None).renewals == 0


def test_an_encrypted_key_needs_its_password(authority: Authority) -> None:
    key = serialization.load_pem_private_key(authority.key.read_bytes(), None)
    authority.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"sesame"),
        )
    )

    assert material(authority, ssl_key_password="sesame").renewals == 0
    with pytest.raises(ConfigurationError, match="ssl_key_password: is missing for the encrypted private key"):
        material(authority)
    with pytest.raises(ConfigurationError, match="ssl_key_password: is not the one of the encrypted private key"):
        material(authority, ssl_key_password="wrong")


def test_what_is_no_good_is_told_by_its_setting(authority: Authority, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_text("no PEM")

    for settings, text in (
        ({"ssl_cert": tmp_path / "none.pem"}, r"ssl_cert: .*none.pem: there is no such file"),
        ({"ssl_key": tmp_path / "none.pem"}, r"ssl_key: .*none.pem: there is no such file"),
        ({"ssl_cert": tmp_path}, r"ssl_cert: .*: can't be read: Is a directory"),
        ({"ssl_cert": other}, r"ssl_cert: there is no certificate \(PEM\) in .*other.pem"),
        ({"ssl_key": other}, r"ssl_key: there is no private key \(PEM\) in .*other.pem"),
        ({"ssl_key": None}, r"ssl_cert: there is no private key \(PEM\) in .*cert.pem"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            material(authority, **settings)


def test_a_certificate_counts_within_its_time_only(authority: Authority) -> None:
    now = datetime.datetime.now(datetime.UTC)
    authority.issue(expires=now - datetime.timedelta(days=1))
    with pytest.raises(ConfigurationError, match=r"ssl_cert: the certificate in .* has expired on"):
        material(authority)

    authority.issue(expires=now + datetime.timedelta(days=1))
    assert material(authority).renewals == 0
    with pytest.raises(ConfigurationError, match="is not valid before"):
        check_certificate(authority.cert, now=now - datetime.timedelta(days=365 * 100))


def test_a_start_with_files_that_are_no_good_fails_with_exit_code_3(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = standalone(ssl_cert=str(authority.cert), ssl_key=str(tmp_path / "none.pem"))

    with pytest.raises(SystemExit) as end:
        asyncio.run(gateway.start())

    assert end.value.code == 3
    assert "ssl_key" in caplog.text


async def test_hangup_renews_too(authority: Authority) -> None:
    used = material(authority)
    authority.issue()
    used.renew()
    assert used.renewals == 1
