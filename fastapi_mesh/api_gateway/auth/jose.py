"""The only file that knows joserfc: keys, signatures, what is weak about a key, and sealing what a browser keeps.

Tokens are read by `compact`, which is stricter than any library; what is done here is to take a key from its JSON or
PEM form, and to check or make a signature with one algorithm and one key that fit each other.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey, import_key
from joserfc.jws import JWSRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from joserfc.jwk import Key as AnyKey

SMALLEST_RSA = 2048
"""Bits (NIST SP 800-131A, RFC 7518 section 3.3)."""

_CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_NOT_OURS = "is a key of a kind that signs no tokens here: RSA, P-256, P-384, P-521 or Ed25519"
_KINDS = {"HS": "oct", "RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}


class Algorithm(Protocol):
    """What joserfc knows an algorithm by."""

    def check_key(self, key: AnyKey) -> None: ...

    def sign(self, msg: bytes, key: AnyKey) -> bytes: ...

    def verify(self, msg: bytes, sig: bytes, key: AnyKey) -> bool: ...


class Key(NamedTuple):
    """A key as it is used: `fits` are the algorithms it can check, `weakness` what is wrong with it, "" for nothing."""

    id: str | None
    fits: frozenset[str]
    weakness: str
    verifiers: Mapping[str, Callable[[bytes, bytes], bool]]

    def verify(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's. False for an algorithm that it doesn't fit."""
        check = self.verifiers.get(algorithm)
        return check is not None and check(signed, signature)


def smallest_secret(algorithm: str) -> int:
    """Bytes that a secret must have: as many as the hash (RFC 7518 section 3.2)."""
    return int(algorithm[2:]) // 8


def secret_key(secret: str, algorithms: tuple[str, ...]) -> Key:
    """The key for a shared secret. Raises ValueError for one that is a public key: everybody knows those."""
    with _quiet():
        key = OctKey.import_key(secret)
    if "-----BEGIN" in secret or secret.startswith(("ssh-", "ecdsa-sha2-")):
        raise ValueError("is a key in PEM or SSH form, not a secret: public_key takes public keys")
    return _key(key, None, algorithms, _secret_weakness(len(secret.encode()), algorithms))


def pem_key(text: str, algorithms: tuple[str, ...] | None) -> tuple[Key, tuple[str, ...]]:
    """The key in a PEM public key or certificate, and its algorithms: those given, else the usual one of its kind.

    Raises ValueError.
    """
    public: object
    try:
        if "-----BEGIN CERTIFICATE-----" in text:
            public = x509.load_pem_x509_certificate(text.encode()).public_key()
        elif "PRIVATE KEY-----" in text:
            raise ValueError("is a private key; a gateway checks with the public one")
        else:
            public = load_pem_public_key(text.encode())
    except ValueError as error:
        known = str(error) if str(error).startswith("is a private") else "is no public key or certificate as PEM"
        raise ValueError(known) from None
    if not isinstance(public, RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey):
        raise ValueError(_NOT_OURS)
    key = _from_public(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), public)
    usual = {"RSA": "RS256", "OKP": "EdDSA"}.get(key.key_type) or _CURVES.get(getattr(key, "curve_name", ""), "")
    if not usual:
        raise ValueError(_NOT_OURS)
    wanted = algorithms or (usual,)
    found = _key(key, None, wanted, _weakness(key))
    if missing := [name for name in wanted if name not in found.fits]:
        raise ValueError(f"does not fit {', '.join(missing)}, it is for {usual}")
    return found, wanted


def key_set(document: Mapping[str, object], algorithms: tuple[str, ...]) -> list[Key]:
    """The keys of a JWK Set (RFC 7517 section 5) that can check one of `algorithms`; others are left out, as it says.

    Raises ValueError when it is no key set at all.
    """
    listed = document.get("keys")
    if not isinstance(listed, list):
        raise ValueError("it has no list 'keys'")
    keys = [_from_jwk(each, algorithms) for each in listed if isinstance(each, dict)]
    return [key for key in keys if key is not None and key.fits]


def kinds_in(document: Mapping[str, object]) -> set[str]:
    """The kinds (`kty`) of keys in a set."""
    listed = document.get("keys")
    return {str(each.get("kty")) for each in listed if isinstance(each, dict)} if isinstance(listed, list) else set()


def signer(text: str, algorithm: str) -> Callable[[bytes], bytes]:
    """What signs with a secret or a PEM private key. Raises ValueError for one that doesn't fit the algorithm."""
    kind = _KINDS[algorithm[:2]]
    model = _model(algorithm)
    try:
        key: OctKey | RSAKey | ECKey | OKPKey
        if kind == "oct":
            secret_key(text, (algorithm,))
            with _quiet():
                key = OctKey.import_key(text)
            if len(text.encode()) < smallest_secret(algorithm):
                raise ValueError(f"has fewer than {smallest_secret(algorithm)} bytes")
        else:
            with _quiet():
                private = _private(kind, text)
            if not private.is_private:
                raise ValueError("is a public key; a private one signs")
            if weakness := _weakness(private):
                raise ValueError(weakness)
            key = private
        model.check_key(key)
        model.sign(b"", key)
    except (JoseError, TypeError) as error:
        raise ValueError(f"is no key for {algorithm}") from error
    return lambda data: model.sign(data, key)


class Sealer:
    """Encrypts and authenticates what a browser keeps for us: JWE, `dir` with A256GCM (RFC 7518 sections 4.5 and 5.3).

    The keys are made of `secrets` and `purpose` (HKDF, RFC 5869), so that what was sealed for one purpose opens for no
    other. The first secret seals, all of them open.
    """

    __slots__ = ("_keys", "_sealing")

    def __init__(self, secrets: Sequence[str], purpose: str) -> None:
        keys = [
            OctKey.import_key(HKDF(SHA256(), 32, None, f"fastapi-mesh {purpose}".encode()).derive(secret.encode()))
            for secret in secrets
        ]
        self._sealing = keys[0]
        self._keys: dict[str, OctKey] = {}
        for key in reversed(keys):
            self._keys[jwe.encrypt_compact(self._header(key), b"", key).partition(".")[0]] = key

    def seal(self, value: bytes) -> str:
        """`value` for nobody but us: base64url and dots."""
        return jwe.encrypt_compact(self._header(self._sealing), value, self._sealing)

    def open(self, sealed: str) -> bytes | None:
        """What was sealed; None for anything that wasn't, by one of our keys, for this purpose."""
        key = self._keys.get(sealed.partition(".")[0])  # the very header that we write, so nothing in it is a choice
        if key is None:
            return None
        try:
            return jwe.decrypt_compact(sealed, key).plaintext
        except (JoseError, ValueError):
            return None

    @staticmethod
    def _header(key: OctKey) -> dict[str, str]:
        return {"alg": "dir", "enc": "A256GCM", "kid": key.thumbprint()[:8]}


@contextmanager
def _quiet() -> Iterator[None]:
    """joserfc warns of weak keys; what is weak is told by us, with more to say, and where it is heard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _from_public(
    pem: bytes, public: RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
) -> RSAKey | ECKey | OKPKey:
    with _quiet():
        if isinstance(public, RSAPublicKey):
            return RSAKey.import_key(pem)
        return OKPKey.import_key(pem) if isinstance(public, Ed25519PublicKey) else ECKey.import_key(pem)


def _private(kind: str, text: str) -> RSAKey | ECKey | OKPKey:
    if kind == "RSA":
        return RSAKey.import_key(text)
    return ECKey.import_key(text) if kind == "EC" else OKPKey.import_key(text)


def _from_jwk(jwk: Mapping[str, object], algorithms: tuple[str, ...]) -> Key | None:
    if jwk.get("kty") not in ("RSA", "EC", "OKP", "oct") or jwk.get("use", "sig") != "sig":
        return None
    operations = jwk.get("key_ops", ["verify"])
    key_id = jwk.get("kid")
    if not isinstance(operations, list) or "verify" not in operations or not isinstance(key_id, str | None):
        return None
    private = {"d", "p", "q", "dp", "dq", "qi", "oth"}
    public = {name: value for name, value in jwk.items() if name not in private and name not in ("key_ops", "use")}
    try:
        with _quiet():
            key = import_key(public)  # type: ignore[arg-type]  # what isn't a JWK raises
            weakness = _secret_weakness(len(key.raw_value), algorithms) if isinstance(key, OctKey) else _weakness(key)
            named = jwk.get("alg")
            names = tuple(name for name in algorithms if named is None or _same(named, name))
            return _key(key, key_id, names, weakness)
    except (JoseError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None  # RFC 7517 section 5: a key that can't be understood is ignored


def _same(named: object, name: str) -> bool:
    """Whether a key's `alg` is the algorithm; EdDSA is what Ed25519 was called before RFC 9864."""
    return named == name or {named, name} == {"EdDSA", "Ed25519"}


def _key(key: OctKey | RSAKey | ECKey | OKPKey, key_id: str | None, algorithms: tuple[str, ...], weakness: str) -> Key:
    fits: dict[str, Callable[[bytes, bytes], bool]] = {}
    for name in algorithms:
        if _KINDS[name[:2]] != key.key_type:
            continue
        model = _model(name)
        try:
            model.check_key(key)
        except (JoseError, ValueError):
            continue
        if key.key_type == "OKP" and getattr(key, "curve_name", "") != "Ed25519":
            continue
        fits[name] = _verifier(model, key)
    return Key(key_id, frozenset(fits), weakness, fits)


def _verifier(model: Algorithm, key: OctKey | RSAKey | ECKey | OKPKey) -> Callable[[bytes, bytes], bool]:
    def verify(signed: bytes, signature: bytes) -> bool:
        try:
            return model.verify(signed, signature, key)
        except (JoseError, ValueError):
            return False

    return verify


def _model(name: str) -> Algorithm:
    return JWSRegistry.algorithms[name]  # not get_alg: that warns of EdDSA for every token


def _weakness(key: RSAKey | ECKey | OKPKey) -> str:
    if isinstance(key, RSAKey):
        bits = key.raw_value.key_size
        if bits < SMALLEST_RSA:
            return f"the RSA key has {bits} bits, fewer than {SMALLEST_RSA}"
    return ""


def _secret_weakness(size: int, algorithms: tuple[str, ...]) -> str:
    needed = max((smallest_secret(name) for name in algorithms if name.startswith("HS")), default=0)
    if size < needed:
        return f"the secret has {size} bytes, fewer than {needed} (RFC 7518 section 3.2): it can be guessed"
    return ""
