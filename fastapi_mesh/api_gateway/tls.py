"""The TLS material of a gateway's own server: checked when it starts, and taken anew when its files are renewed."""

from __future__ import annotations

import logging
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cryptography import x509

from fastapi_mesh.configstore.polling import Signature, signature
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi_mesh.config.edge.listener import Listener
    from fastapi_mesh.core.clock import Clock

logger = logging.getLogger("fastapi_mesh.gateway")

POLL = 1.0
"""Seconds between two looks at the files; new handshakes use what was renewed after two of them."""


class RotatingContext(ssl.SSLContext):
    """A context whose material is replaced in one step: each handshake uses the newest, connections keep their own.

    (Loading into a context in use leaves it dead where certificate and key don't match.)
    """

    def publish(self, context: ssl.SSLContext) -> None:
        """Use `context` for handshakes from now on."""
        self._current = context

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        return self._current.wrap_bio(*arguments, **options)

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        return self._current.wrap_socket(*arguments, **options)


class Material:
    """The files of `ssl_cert` and `ssl_key`. Raises ConfigurationError, naming the setting, where they are no good."""

    def __init__(self, config: Listener) -> None:
        assert config.ssl_cert is not None, "only a gateway with TLS has material"
        self._certificate = config.ssl_cert.expanduser()
        self._key = None if config.ssl_key is None else config.ssl_key.expanduser()
        password = config.ssl_key_password
        self._password = None if password is None else password.get_secret_value()
        self.renewals = 0
        self._loaded = self._signatures()
        self.context = RotatingContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.publish(self._load())

    async def watch(self, clock: Clock) -> None:
        """Look for renewed files for ever; what is no good is logged, and the old material stays in use."""
        while True:
            seen = self._signatures()
            await clock.sleep(POLL)
            if seen != self._loaded and self._signatures() == seen:
                self.renew()

    def renew(self) -> None:
        """Load the files again, for handshakes from now on."""
        self._loaded = self._signatures()
        try:
            context = self._load()
        except ConfigurationError as error:
            logger.error("the renewed TLS material is not used: %s", "; ".join(error.problems))
        else:
            self.context.publish(context)
            self.renewals += 1
            logger.info("the TLS certificate was renewed: %s", self._certificate)

    def _signatures(self) -> tuple[Signature, Signature]:
        return signature(self._certificate), None if self._key is None else signature(self._key)

    def _load(self) -> ssl.SSLContext:
        check_certificate(self._certificate)
        if self._key is not None:
            _read(self._key, "ssl_key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["http/1.1"])
        try:
            # A password that is a function keeps OpenSSL from asking for one at the terminal.
            context.load_cert_chain(self._certificate, self._key, password=lambda: self._password or "")
        except ssl.SSLError as error:
            raise ConfigurationError(problems=[self._explained(error)]) from error
        return context

    def _explained(self, error: ssl.SSLError) -> str:
        where = "ssl_key" if self._key is not None else "ssl_cert"
        file = self._key or self._certificate
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"{where}: the private key in {file} does not belong to the certificate in {self._certificate}"
        text = file.read_text(encoding="latin-1")
        if "ENCRYPTED" in text:
            wrong = "is not the one of" if self._password else "is missing for"
            return f"ssl_key_password: {wrong} the encrypted private key in {file}"
        if "PRIVATE KEY-----" not in text:
            return f"{where}: there is no private key (PEM) in {file}"
        return f"{where}: the certificate and key can't be used: {error.reason or error}"


def check_certificate(path: Path, *, now: datetime | None = None) -> datetime:
    """Whether there is a certificate in `path` that is valid now; gives its end. Raises ConfigurationError."""
    pem = _read(path, "ssl_cert")
    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
    except ValueError as error:
        raise ConfigurationError(problems=[f"ssl_cert: there is no certificate (PEM) in {path}"]) from error
    now = now or datetime.now(UTC)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end < now:
        raise ConfigurationError(
            problems=[f"ssl_cert: the certificate in {path} has expired on {end:%Y-%m-%d %H:%M} UTC"]
        )
    if begin > now:
        raise ConfigurationError(
            problems=[f"ssl_cert: the certificate in {path} is not valid before {begin:%Y-%m-%d %H:%M} UTC"]
        )
    return end


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        why = "there is no such file"
    except OSError as error:
        why = f"can't be read: {error.strerror}"
    raise ConfigurationError(problems=[f"{setting}: {path}: {why}"])
