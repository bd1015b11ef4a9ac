"""JSON Web Tokens: what is taken, and a table of what is refused."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable

import pytest
from auth_support import NOW, SECRET, Clock, b64, claims, ec, ed, key_set, rsa, sign, token, tools
from joserfc.jwk import OctKey

from fastapi_mesh.api_gateway.auth import CredentialError, ExpiredCredentialError, JWTAuthProvider, Principal
from fastapi_mesh.exceptions import ConfigurationError

pytestmark = pytest.mark.anyio

OTHER = OctKey.import_key("another-secret-another-secret-another")
STRICT = {"issuer": "https://id.example", "audience": "shop"}


async def principal_for(credential: str, clock: Clock | None = None, **settings: object) -> Principal:
    """What a provider makes of a token; by SECRET unless the settings have another key."""
    if not {"jwks", "public_key", "secret_key"} & set(settings):
        settings["secret_key"] = SECRET
    async with tools(clock) as made:
        verifier = JWTAuthProvider(**settings).open(made)  # type: ignore[arg-type]
        try:
            return await verifier.authenticate(credential)
        finally:
            await verifier.aclose()


# What is taken.


@pytest.mark.spec("S-050", "X-27", "B9")
@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("HS256", lambda: OctKey.import_key("x" * 64)),
        ("HS384", lambda: OctKey.import_key("x" * 64)),
        ("HS512", lambda: OctKey.import_key("x" * 64)),
        ("RS256", rsa),
        ("RS384", rsa),
        ("RS512", rsa),
        ("PS256", rsa),
        ("PS384", rsa),
        ("PS512", rsa),
        ("ES256", ec),
        ("ES384", lambda: ec("ec3", "P-384")),
        ("ES512", lambda: ec("ec5", "P-521")),
        ("EdDSA", ed),
        ("Ed25519", ed),
    ],
)
async def test_a_token_of_the_provider_s_algorithm_is_taken(algorithm: str, key: Callable[[], OctKey]) -> None:
    made = key()
    source: dict[str, object] = (
        {"secret_key": "x" * 64} if algorithm.startswith("HS") else {"public_key": made.as_pem(private=False).decode()}
    )

    principal = await principal_for(token(key=made, algorithm=algorithm), algorithm=algorithm, **source)

    assert (principal.subject, principal.provider, principal.expires) == ("alice", "test", NOW + 600)


@pytest.mark.spec("B9")
async def test_scopes_and_roles_come_from_the_claims_that_the_settings_name() -> None:
    body = claims(scope="read write", realm_access={"roles": ["admin"]}, **{"https://x.example/roles": ["boss"]})
    plain = await principal_for(token(body), roles_claim="realm_access.roles")
    listed = await principal_for(token(claims(scp=["a", "b"])), roles_claim="https://x.example/roles")
    named = await principal_for(token(body), roles_claim="https://x.example/roles", scopes_claim="realm_access.roles")

    assert (plain.scopes, plain.roles) == ({"read", "write"}, {"admin"})
    assert (listed.scopes, listed.roles) == ({"a", "b"}, frozenset())
    assert (named.scopes, named.roles) == ({"admin"}, {"boss"})
    assert plain.claims["scope"] == "read write"


@pytest.mark.spec("B9")
@pytest.mark.parametrize(
    ("body", "settings"),
    [
        (claims(aud="shop", iss="https://id.example"), STRICT),
        (claims(aud=["other", "shop"], iss="https://id.example"), STRICT),
        (claims(aud="anything"), {"audience": "*"}),
        (claims(exp=NOW - 20), {"leeway": 30}),
        (claims(nbf=NOW + 20, iat=NOW + 20), {"leeway": 30}),
        (claims(exp=NOW + 0.5), {}),
        (claims(exp=...), {"required_claims": []}),
        (claims(sub=..., user_id=7), {"subject_claim": "user_id"}),
        (claims(tenant="a"), {"required_claims": ["exp", "tenant"]}),
    ],
)
async def test_claims_that_are_as_the_settings_want_them_are_taken(body: dict[str, object], settings: dict) -> None:
    assert (await principal_for(token(body), **settings)).provider == "test"


@pytest.mark.parametrize(
    ("header", "settings"),
    [
        ({"typ": ...}, {}),
        ({"typ": "jwt"}, {}),
        ({"typ": "at+jwt"}, {}),
        ({"typ": "application/at+jwt"}, {"token_type": "at+jwt"}),
        ({"x5t": "abc", "custom": {"a": 1}}, {}),
    ],
)
async def test_headers_that_mean_no_harm_are_taken(header: dict[str, object], settings: dict[str, object]) -> None:
    assert (await principal_for(token(**header), **settings)).subject == "alice"  # type: ignore[arg-type]


async def test_a_certificate_is_a_public_key_too() -> None:
    import trustme

    authority = trustme.CA()
    pem = authority.cert_pem.bytes().decode()
    provider = JWTAuthProvider(public_key=pem)

    assert repr(provider) == "<JWTAuthProvider 'jwt', ES256>"


# What is refused.


def spoiled(part: int, change: Callable[[str], str], made: str | None = None) -> str:
    parts = (made or token()).split(".")
    parts[part] = change(parts[part])
    return ".".join(parts)


def unsigned(algorithm: object, tail: str = "") -> str:
    return f"{b64({'alg': algorithm, 'typ': 'JWT'})}.{b64(claims())}.{tail}"


def hmac_by(secret: bytes, kid: str | None = None) -> str:
    """HS256 over a key that everybody knows: the public one."""
    header = {"alg": "HS256"} | ({} if kid is None else {"kid": kid})
    signed = f"{b64(header)}.{b64(claims())}"
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def raw_payload(text: str) -> str:
    """A token with this very payload; LATER stands for a good `exp`."""
    return token(text.replace("LATER", str(NOW + 600)))


def raw_header(text: str) -> str:
    return sign(b64(text), b64(claims()), OctKey.import_key(SECRET), "HS256")


def last_bits(part: str) -> str:
    """Another spelling of the same bytes: bits that nobody reads are set."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(part) % 4, "a part without unused bits"
    return part[:-1] + letters[letters.index(part[-1]) + 1]


def nested(depth: int) -> str:
    return '{"sub":"alice","exp":LATER,"x":' + "[" * depth + "]" * depth + "}"


REFUSED: dict[str, Callable[[], str]] = {
    # the algorithm
    "alg none": lambda: unsigned("none"),
    "alg None": lambda: unsigned("None"),
    "alg nOnE": lambda: unsigned("nOnE"),
    "alg NONE with a signature": lambda: unsigned("NONE", b64(b"x")),
    "alg none with the true signature": lambda: unsigned("none", token().rsplit(".", 1)[1]),
    "alg empty": lambda: unsigned("", b64(b"x")),
    "alg null": lambda: unsigned(None, b64(b"x")),
    "alg a number": lambda: unsigned(256, b64(b"x")),
    "alg a list": lambda: unsigned(["HS256"], b64(b"x")),
    "alg missing": lambda: token(alg=...),
    "alg of another case": lambda: token(alg="hs256"),
    "alg with a space": lambda: token(alg="HS256 "),
    "alg of the same family": lambda: token(algorithm="HS512"),
    "alg said to be stronger than it is": lambda: token(alg="HS512"),
    "alg RS256 by an unknown key": lambda: token(key=rsa(), algorithm="RS256"),
    "alg dir (JWE)": lambda: token(alg="dir", enc="A128GCM"),
    # keys that the token brings
    "jwk in the header": lambda: token(key=OTHER, jwk=OTHER.as_dict()),
    "jku": lambda: token(jku="https://evil.example/keys"),
    "x5u": lambda: token(x5u="https://evil.example/cert"),
    "x5c": lambda: token(x5c=["MIIB"]),
    # the header
    "crit": lambda: token(crit=["exp"]),
    "crit empty": lambda: token(crit=[]),
    "b64 false": lambda: token(b64=False, crit=["b64"]),
    "b64 false without crit": lambda: token(b64=False),
    "zip": lambda: token(zip="DEF"),
    "kid a number": lambda: token(kid=1),
    "kid null": lambda: token(kid=None),
    "kid empty": lambda: token(kid=""),
    "kid a table": lambda: token(kid={"a": 1}),
    "kid huge": lambda: token(kid="k" * 2000),
    "typ of something else": lambda: token(typ="logout+jwt"),
    "typ a proof of possession": lambda: token(typ="dpop+jwt"),
    "typ a number": lambda: token(typ=1),
    "typ JOSE": lambda: token(typ="JOSE"),
    "header with alg twice": lambda: raw_header('{"alg":"none","alg":"HS256"}'),
    "header an array": lambda: raw_header('["HS256"]'),
    "header a text": lambda: raw_header('"HS256"'),
    "header with a comment": lambda: raw_header('{"alg":"HS256"/**/}'),
    "header with a byte order mark": lambda: raw_header('\ufeff{"alg":"HS256"}'),
    "header of UTF-16": lambda: sign(
        b64('{"alg":"HS256"}'.encode("utf-16")), b64(claims()), OctKey.import_key(SECRET), "HS256"
    ),
    # the form
    "empty": lambda: "",
    "dots": lambda: "..",
    "two parts": lambda: token().rsplit(".", 1)[0],
    "two parts and a dot": lambda: token().rsplit(".", 1)[0] + ".",
    "four parts": lambda: token() + ".x",
    "five parts (JWE)": lambda: token() + ".x.y",
    "a part empty": lambda: "." + token().split(".", 1)[1],
    "padding": lambda: token() + "=",
    "padding inside": lambda: spoiled(0, lambda part: part + "="),
    "a space before": lambda: " " + token(),
    "a line break after": lambda: token() + "\n",
    "a NUL after": lambda: token() + "\0",
    "a line break inside": lambda: spoiled(1, lambda part: part[:4] + "\n" + part[4:]),
    "the other base64 alphabet": lambda: spoiled(2, lambda part: "+/" + part[2:]),
    "an impossible length": lambda: spoiled(2, lambda part: part + "AA" if len(part) % 4 == 3 else part + "A" * 2),
    "unused bits set": lambda: spoiled(2, last_bits),
    "trailing bytes": lambda: spoiled(2, lambda part: part + "AAAA"),
    "a Kelvin sign for K": lambda: spoiled(1, lambda part: "\u212a" + part[1:]),
    "full width letters": lambda: "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in token()),
    "a right-to-left mark": lambda: token() + "\u200f",
    "16 KiB": lambda: token(claims(x="x" * 16_384)),
    "JSON serialization": lambda: json.dumps({"payload": b64(claims()), "signatures": []}),
    # the signature
    "another secret": lambda: token(key=OTHER),
    "one bit": lambda: spoiled(1, lambda part: b64(claims(sub="mallory"))),
    "no signature": lambda: spoiled(2, lambda part: ""),
    "half a signature": lambda: spoiled(2, lambda part: part[:22]),
    "a signature of zeros": lambda: spoiled(2, lambda part: b64(bytes(32))),
    "another token's signature": lambda: spoiled(2, lambda part: token(claims(sub="bob")).rsplit(".", 1)[1]),
    # the payload
    "a claim twice": lambda: raw_payload('{"sub":"alice","sub":"mallory","exp":LATER}'),
    "a claim twice, once escaped": lambda: raw_payload('{"sub":"alice","s\\u0075b":"mallory","exp":LATER}'),
    "exp twice": lambda: raw_payload('{"sub":"alice","exp":1,"exp":LATER}'),
    "a claim twice, deep inside": lambda: raw_payload('{"sub":"a","exp":LATER,"x":{"y":1,"y":2}}'),
    "payload an array": lambda: raw_payload("[]"),
    "payload a token (nested)": lambda: token(token().encode(), cty="JWT"),
    "payload no JSON": lambda: raw_payload("sub=alice"),
    "payload with more behind it": lambda: raw_payload(json.dumps(claims()) + "{}"),
    "payload of invalid UTF-8": lambda: token(b'{"sub":"\xff","exp":1800000000}'),
    "nested too deeply": lambda: raw_payload(nested(4000)),
    # dates
    "exp missing": lambda: token(claims(exp=...)),
    "exp null": lambda: token(claims(exp=None)),
    "exp a text": lambda: token(claims(exp=str(NOW + 600))),
    "exp true": lambda: token(claims(exp=True)),
    "exp a list": lambda: token(claims(exp=[NOW + 600])),
    "exp negative": lambda: token(claims(exp=-1)),
    "exp huge": lambda: token(claims(exp=10**30)),
    "exp in milliseconds": lambda: token(claims(exp=(NOW + 600) * 1000)),
    "exp infinite": lambda: raw_payload('{"sub":"alice","exp":1e999}'),
    "exp Infinity": lambda: raw_payload('{"sub":"alice","exp":Infinity}'),
    "exp NaN": lambda: raw_payload('{"sub":"alice","exp":NaN}'),
    "exp of 5000 digits": lambda: raw_payload('{"sub":"alice","exp":' + "9" * 5000 + "}"),
    "expired": lambda: token(claims(exp=NOW - 31)),
    "expired now": lambda: token(claims(exp=NOW - 30)),
    "nbf later": lambda: token(claims(nbf=NOW + 31)),
    "nbf a text": lambda: token(claims(nbf="0")),
    "nbf NaN": lambda: raw_payload('{"sub":"alice","exp":LATER,"nbf":NaN}'),
    "iat later": lambda: token(claims(iat=NOW + 31)),
    "iat a text": lambda: token(claims(iat=str(NOW))),
    "iat huge": lambda: token(claims(iat=10**20)),
    # the rest
    "sub missing": lambda: token(claims(sub=...)),
    "sub empty": lambda: token(claims(sub="")),
    "sub a number": lambda: token(claims(sub=7)),
    "sub a list": lambda: token(claims(sub=["alice"])),
    "sub huge": lambda: token(claims(sub="a" * 1025)),
    "sub half a surrogate pair": lambda: raw_payload('{"sub":"\\ud800","exp":LATER}'),
    "aud for a provider that has none": lambda: token(claims(aud="shop")),
    "aud empty": lambda: token(claims(aud="")),
    "aud an empty list": lambda: token(claims(aud=[])),
    "aud a number": lambda: token(claims(aud=7)),
    "aud a list with a number": lambda: token(claims(aud=["shop", 7])),
    "scope a table": lambda: token(claims(scope={"read": True})),
    "scope a list of numbers": lambda: token(claims(scope=[1])),
    "roles a table": lambda: token(claims(roles={"admin": True})),
    "roles a list of lists": lambda: token(claims(roles=[["admin"]])),
    "bound to a key (cnf)": lambda: token(claims(cnf={"jkt": "x"})),
}


@pytest.mark.spec("X-27", "B9")
@pytest.mark.parametrize("trick", REFUSED)
async def test_a_token_that_is_not_exactly_right_is_refused(trick: str) -> None:
    with pytest.raises(CredentialError):
        await principal_for(REFUSED[trick]())


def test_the_table_has_the_size_that_it_claims() -> None:
    assert len(REFUSED) >= 100


@pytest.mark.spec("X-27", "B9")
@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "https://evil.example"},
        {"iss": "https://id.example/"},
        {"iss": "https://ID.example"},
        {"iss": ["https://id.example"]},
        {"iss": None},
        {"iss": ...},
        {"aud": "other"},
        {"aud": ["other", "more"]},
        {"aud": "shop,other"},
        {"aud": "Shop"},
        {"aud": None},
        {"aud": ...},
        {"aud": {"shop": 1}},
    ],
)
async def test_a_token_of_another_issuer_or_for_somebody_else_is_refused(changed: dict[str, object]) -> None:
    body = claims(**{"iss": "https://id.example", "aud": "shop", **changed})

    with pytest.raises(CredentialError):
        await principal_for(token(body), **STRICT)  # type: ignore[arg-type]


PEM = rsa().as_pem(private=False)
DER = rsa().as_der(private=False)


@pytest.mark.spec("X-27", "B9")
@pytest.mark.parametrize(
    "secret",
    [PEM, PEM.rstrip(), PEM.replace(b"\n", b""), PEM.replace(b"\n", b"\r\n"), DER, b"", b"\0", b"rsa"],
)
@pytest.mark.parametrize("kid", [None, "rsa", "other"])
@pytest.mark.parametrize("algorithm", ["RS256", ["RS256", "PS256"]])
async def test_a_public_key_is_never_a_secret(secret: bytes, kid: str | None, algorithm: object) -> None:
    for source in ({"public_key": PEM.decode()}, {"jwks": key_set(rsa())}):
        with pytest.raises(CredentialError):
            await principal_for(hmac_by(secret, kid), algorithm=algorithm, **source)


@pytest.mark.spec("X-27")
@pytest.mark.parametrize(
    "kid",
    [
        "../../../../dev/null",
        "/dev/null",
        "' OR '1'='1",
        "x' UNION SELECT 'secret",
        "$(id)",
        "|cat /etc/passwd",
        "https://evil.example/keys",
        "\u0000",
        "RSA",
        " rsa",
        "rsa\n",
        "a" * 1024,
    ],
)
async def test_a_kid_is_a_name_and_nothing_else(kid: str) -> None:
    with pytest.raises(CredentialError):
        await principal_for(token(key=rsa(), algorithm="RS256", kid=kid), jwks=key_set(rsa(), rsa("second")))


@pytest.mark.spec("X-27")
async def test_without_a_kid_there_must_be_no_choice() -> None:
    nameless = token(key=rsa(), algorithm="RS256", kid=...)

    assert (await principal_for(nameless, jwks=key_set(rsa(), ec()))).subject == "alice", "the other is no RSA key"
    with pytest.raises(CredentialError):
        await principal_for(nameless, jwks=key_set(rsa(), rsa("second")))


@pytest.mark.spec("X-27")
async def test_two_keys_of_one_kid_are_no_key() -> None:
    twins = {
        "keys": [{**rsa().as_dict(private=False), "kid": "a"}, {**rsa("second").as_dict(private=False), "kid": "a"}]
    }

    with pytest.raises(CredentialError):
        await principal_for(token(key=rsa(), algorithm="RS256", kid="a"), jwks=twins)


@pytest.mark.spec("X-27")
@pytest.mark.parametrize(
    "changed",
    [{"use": "enc"}, {"key_ops": ["encrypt"]}, {"key_ops": "verify"}, {"alg": "RS512"}, {"kid": 7}, {"kty": "rsa"}],
)
async def test_a_key_that_is_for_something_else_checks_nothing(changed: dict[str, object]) -> None:
    other = {**ec().as_dict(private=False), "alg": "ES256"}
    listed = {"keys": [{**rsa().as_dict(private=False), **changed}, other, rsa("second").as_dict(private=False)]}

    with pytest.raises(CredentialError):
        await principal_for(token(key=rsa(), algorithm="RS256"), jwks=listed)


@pytest.mark.spec("X-27")
async def test_a_key_of_another_curve_or_kind_does_not_fit() -> None:
    for key, algorithm in ((ec("k", "P-384"), "ES384"), (ed("k"), "EdDSA"), (rsa("k"), "PS256")):
        with pytest.raises(CredentialError):
            await principal_for(token(key=key, algorithm=algorithm), jwks=key_set(key, ec()), algorithm="ES256")


@pytest.mark.spec("X-27")
async def test_a_signature_of_zeros_is_none_on_a_curve_either() -> None:
    parts = token(key=ec(), algorithm="ES256").split(".")
    for zeros in (bytes(64), bytes(63) + b"\1", b"\xff" * 64, bytes(0) + b"\0", bytes(128)):
        with pytest.raises(CredentialError):
            await principal_for(f"{parts[0]}.{parts[1]}.{b64(zeros)}", public_key=ec().as_pem(private=False).decode())


@pytest.mark.spec("B9")
async def test_an_expired_token_is_told_from_a_forged_one_only_when_its_signature_is_good() -> None:
    with pytest.raises(ExpiredCredentialError):
        await principal_for(token(claims(exp=NOW - 3600)))
    with pytest.raises(CredentialError) as forged:
        await principal_for(token(claims(exp=NOW - 3600), key=OTHER))
    assert not isinstance(forged.value, ExpiredCredentialError)


# Settings.


@pytest.mark.spec("B9", "X-27")
@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "has no key: it needs one of secret_key"),
        ({"secret_key": SECRET, "jwks_url": "https://a/keys"}, "jwks_url: is given beside secret_key"),
        ({"secret_key": SECRET, "algorithm": "none"}, "'none' is not one of"),
        ({"secret_key": SECRET, "algorithm": "RS256"}, "RS256 needs a public key, and secret_key is not"),
        ({"secret_key": SECRET, "algorithm": ["HS256", "RS256"]}, "mixes secrets"),
        ({"secret_key": SECRET, "algorithm": []}, "is empty, so no token could be right"),
        ({"secret_key": ""}, "is empty"),
        ({"public_key": PEM.decode(), "algorithm": "HS256"}, "HS256 needs a secret"),
        ({"public_key": PEM.decode(), "algorithm": "ES256"}, "does not fit ES256"),
        ({"public_key": "-----BEGIN PUBLIC KEY-----\nx"}, "is no public key or certificate"),
        ({"public_key": rsa().as_pem(private=True).decode()}, "is a private key"),
        ({"secret_key": PEM.decode()}, "Asymmetric public keys must not be used"),
        ({"secret_key": "-----BEGIN CERTIFICATE-----\nx"}, "is a key in PEM or SSH form"),
        ({"secret_key": "ssh-ed25519 AAAA"}, "is a key in PEM or SSH form"),
        ({"jwks_url": "http://id.example/keys"}, "it is not https"),
        ({"jwks_url": "https://u:p@id.example/keys"}, "it has a user or password"),
        ({"jwks_url": "file:///etc/keys"}, "it is not like"),
        ({"issuer": "not a url"}, "keys are found there"),
        ({"issuer": "http://id.example"}, "it is not https"),
        ({"jwks": {"keys": []}}, "it has no key for RS256"),
        ({"jwks": {}}, "it has no list 'keys'"),
        ({"secret_key_file": "/nowhere/at/all"}, "can't be read"),
        ({"secret_key": SECRET, "leeway": -1}, "too small"),
        ({"secret_key": SECRET, "name": "two words"}, "is not a token"),
    ],
)
def test_settings_that_can_not_be_right_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        JWTAuthProvider(**settings)  # type: ignore[arg-type]

    assert problem in str(refused.value)
    for secret in (SECRET, PEM.decode(), "ssh-ed25519 AAAA"):
        assert secret not in str(refused.value)


@pytest.mark.spec("X-27")
@pytest.mark.parametrize(
    ("settings", "weakness"),
    [
        ({"secret_key": "jwt-secret"}, "the secret has 10 bytes, fewer than 32"),
        ({"secret_key": SECRET, "algorithm": "HS512"}, "fewer than 64"),
        ({"public_key": rsa("weak", 1024).as_pem(private=False).decode()}, "1024 bits, fewer than 2048"),
        ({"jwks": key_set(rsa("weak", 1024), rsa())}, "1024 bits, fewer than 2048 (kid 'weak')"),
        ({"jwks": key_set(rsa(), OctKey.import_key(SECRET))}, "mixes secrets and public keys"),
    ],
)
def test_weak_keys_are_named(settings: dict[str, object], weakness: str) -> None:
    (warning,) = JWTAuthProvider(**settings).warnings()  # type: ignore[arg-type]

    assert weakness in warning


def test_strong_keys_are_no_news() -> None:
    assert JWTAuthProvider(secret_key=SECRET).warnings() == []
    assert JWTAuthProvider(jwks=key_set(rsa(), rsa("second"))).warnings() == []


@pytest.mark.spec("B9")
def test_a_secret_comes_from_a_file_too(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    from_file, given = JWTAuthProvider(secret_key_file=str(path)), JWTAuthProvider(secret_key=SECRET)
    before = from_file.settings

    assert SECRET not in repr(from_file) + repr(given)
    path.write_text("another-" + SECRET)
    assert JWTAuthProvider(secret_key_file=str(path)).settings != before, "a reload sees a new secret"


@pytest.mark.spec("B9", "S-050")
def test_the_token_url_is_for_the_description_and_nothing_else() -> None:
    assert JWTAuthProvider(secret_key=SECRET, token_url="/auth/token").security_scheme() == {
        "type": "oauth2",
        "flows": {"password": {"tokenUrl": "/auth/token", "scopes": {}}},
    }
    assert JWTAuthProvider(secret_key=SECRET).security_scheme()["bearerFormat"] == "JWT"


# What is remembered.


@pytest.mark.spec("X-27")
async def test_a_token_is_checked_once_and_never_remembered_past_its_end() -> None:
    clock = Clock()
    async with tools(clock) as made:
        verifier = JWTAuthProvider(secret_key=SECRET).open(made)
        credential = token(claims(exp=NOW + 100))
        assert verifier.known(credential) is None
        principal = await verifier.authenticate(credential)

        await clock.advance(99.9)
        assert verifier.known(credential) is principal
        await clock.advance(0.1)
        assert verifier.known(credential) is None, "exp is the end, whatever the leeway"
        assert (await verifier.authenticate(credential)).subject == "alice", "the leeway is for clocks, not for memory"
        assert verifier.known(credential) is None
        await clock.advance(30)
        with pytest.raises(ExpiredCredentialError):
            await verifier.authenticate(credential)


@pytest.mark.spec("X-27")
async def test_what_was_refused_is_not_remembered_and_the_memory_is_bounded() -> None:
    async with tools(cache_size=3) as made:
        verifier = JWTAuthProvider(secret_key=SECRET).open(made)
        with pytest.raises(CredentialError):
            await verifier.authenticate(token(key=OTHER))
        credentials = [token(claims(sub=str(number))) for number in range(5)]
        for credential in credentials:
            await verifier.authenticate(credential)

        assert [verifier.known(each) is not None for each in credentials] == [False, False, True, True, True]
