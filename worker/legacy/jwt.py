"""Signed assertions, for APIs that want a client to sign instead of knowing a secret (RFC 7523). Pure but for time."""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import SecretStr

from worker.errors import RoutesInvalid

__all__ = ["signed_jwt"]

Alg = Literal["RS256", "RS384", "ES256", "ES384", "HS256"]
Signer = Callable[[bytes], bytes]
_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {"256": hashes.SHA256(), "384": hashes.SHA384()}
_CURVES: Final = {"ES256": ("secp256r1", 32), "ES384": ("secp384r1", 48)}


def signed_jwt(
    key: SecretStr, alg: Alg, claims: Mapping[str, str], *, kid: str = "", valid_s: int = 60
) -> Callable[[], str]:
    """Return what makes a new assertion each time it is called: for `client_assertion` of an `OAuth2` form.

    Args:
        key: the private key in PEM, or for HS256 the shared secret.
        alg: how it signs.
        claims: as the vendor's page shows them: iss, sub, aud. `iat`, `exp` and a new `jti` are added.
        kid: names the key, where the vendor knows several.
        valid_s: how long an assertion is good, in seconds; vendors take at most a few minutes.

    Raises:
        RoutesInvalid: the key is none for this way of signing.
    """
    sign = _signer(key.get_secret_value().encode(), alg)
    header = _part({"alg": alg, "typ": "JWT", **({"kid": kid} if kid else {})})

    def make() -> str:
        now = int(time.time())
        times = {"iat": now, "exp": now + valid_s, "jti": secrets.token_hex(16)}
        signed = header + b"." + _part({**claims, **times})
        return (signed + b"." + _encoded(sign(signed))).decode()

    return make


def _signer(key: bytes, alg: Alg) -> Signer:
    if alg == "HS256":
        return lambda data: hmac.digest(key, data, "sha256")
    digest = _HASHES[alg[2:]]
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError):
        raise RoutesInvalid(f"{alg}: the key should be a private key in PEM, without a password") from None
    if isinstance(private, rsa.RSAPrivateKey) and alg.startswith("RS"):
        return lambda data: private.sign(data, padding.PKCS1v15(), digest)
    if isinstance(private, ec.EllipticCurvePrivateKey) and alg in _CURVES:
        curve, size = _CURVES[alg]
        if private.curve.name == curve:
            return lambda data: _raw(private.sign(data, ec.ECDSA(digest)), size)
    raise RoutesInvalid(f"{alg}: the key is of another kind")


def _raw(signature: bytes, size: int) -> bytes:
    """Turn DER into what JWS wants: both numbers, each `size` bytes (RFC 7518, 3.4)."""
    return b"".join(number.to_bytes(size, "big") for number in decode_dss_signature(signature))


def _part(content: Mapping[str, object]) -> bytes:
    return _encoded(json.dumps(content, separators=(",", ":")).encode())


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
