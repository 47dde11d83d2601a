"""Tokens that a caller makes himself, with a private key, each good for one request alone. Needs PyJWT[crypto]."""

import hashlib
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

#: What a token says by default that it is for, and allows.
AUDIENCE = "aries-images"
SCOPE = "image:update"

_KINDS: tuple[tuple[Any, str, Any], ...] = (
    (Ed25519PrivateKey, "EdDSA", OKPAlgorithm),
    (EllipticCurvePrivateKey, "ES256", ECAlgorithm),
    (RSAPrivateKey, "RS256", RSAAlgorithm),
)
#: What of a public key its thumbprint is made from (RFC 7638), by its type.
_OF_THUMBPRINT = {"OKP": ("crv", "kty", "x"), "EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n")}


class SigningKey:
    """A caller's private key.

    Args:
        pem: the key: Ed25519, EC P-256 or RSA, as unencrypted PEM.
        caller: the caller's name, which becomes `sub`.
        issuer: what becomes `iss`, where the worker asks for one.
        audience: what becomes `aud`.

    Raises:
        ValueError: it is no such key.
    """

    def __init__(self, pem: str | bytes, caller: str, *, issuer: str = "", audience: str = AUDIENCE) -> None:
        self._key = load_pem_private_key(pem.encode() if isinstance(pem, str) else pem, password=None)
        kinds = [(algorithm, jwk) for kind, algorithm, jwk in _KINDS if isinstance(self._key, kind)]
        if not kinds:
            raise ValueError("the key must be Ed25519, EC P-256 or RSA")
        [(self._algorithm, self._jwk)] = kinds
        self._claims = {"sub": caller, "aud": audience, **({"iss": issuer} if issuer else {})}
        self._id = self.public_jwk["kid"]

    @property
    def public_jwk(self) -> dict[str, Any]:
        """The public half, as an entry of the worker's JWKS; its `kid` is its thumbprint (RFC 7638)."""
        public = self._key.public_key()
        jwk: dict[str, Any] = self._jwk.to_jwk(public, as_dict=True)
        jwk = {name: value for name, value in jwk.items() if name in ("kty", "crv", "x", "y", "n", "e")}
        canonical = json.dumps({name: jwk[name] for name in _OF_THUMBPRINT[jwk["kty"]]}, separators=(",", ":"))
        thumbprint = jwt.utils.base64url_encode(hashlib.sha256(canonical.encode()).digest()).decode()
        return {**jwk, "alg": self._algorithm, "use": "sig", "kid": thumbprint}

    def token(self, seconds: float, **claims: Any) -> str:
        """A token that is good for so many seconds, with more claims: `scope`, `images`, `rid`, `dig`."""
        now = int(time.time())
        times = {"iat": now, "nbf": now, "exp": now + max(int(seconds), 1)}
        # PyJWT has no one type for the keys that it takes.
        key: Any = self._key
        return jwt.encode({**self._claims, **times, "scope": SCOPE, **claims}, key, self._algorithm, {"kid": self._id})

    def token_for(self, request_id: str, digest: str, seconds: float) -> str:
        """A token that is good for one request alone: of this id, with arguments of this digest."""
        return self.token(seconds, rid=request_id, dig=digest)
