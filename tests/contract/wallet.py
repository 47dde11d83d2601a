"""Tokens of every kind, with what each proves: good ones, forged ones, ones for something else."""

import base64
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt

from aries_images.signing import SigningKey
from tests.contract.reading import Claims
from worker.commands.token import PRIVATE, PUBLIC, make_keys

#: What bears no token at all: the header as it stands, or None for none.
NO_TOKENS = (None, "", "Bearer", "Bearer ", "Bearer  x", "Basic eDp5", "bearer x.y.z", 7, True, ["Bearer"], "\ud800")
#: Tokens that prove something, and tokens that prove nothing.
GOOD = ("orders", "orders again", "billing", "of some images", "without the scope")
BAD = (
    "expired",
    "early",
    "another key",
    "no algorithm",
    "the public key as secret",
    "another audience",
    "no name",
    "cut",
    "changed",
)
#: Made for each request anew.
BOUND = ("bound", "bound to another id", "bound to another body")


class Wallet:
    """Keys, and the tokens made with them."""

    def __init__(self, folder: Path) -> None:
        make_keys(folder)
        (folder / "other").mkdir()
        make_keys(folder / "other")
        self.public = folder / PUBLIC
        self._key = self._of("orders", folder)
        #: What each token proves; one that is not here proves nothing.
        self.proofs: dict[str, Claims] = {}
        self._kept = self._good(folder) | self._bad(folder)

    @staticmethod
    def _of(caller: str, folder: Path) -> SigningKey:
        return SigningKey((folder / PRIVATE).read_bytes(), caller)

    def _good(self, folder: Path) -> dict[str, str]:
        day, orders, billing = 86_400, self._key, self._of("billing", folder)
        made = {
            "orders": (orders.token(day), Claims("orders")),
            "orders again": (orders.token(day, scope=["a", "image:update"]), Claims("orders")),
            "billing": (billing.token(day, scope="b image:update c"), Claims("billing")),
            "of some images": (orders.token(day, images=[1, 2, 99]), Claims("orders", images=frozenset({1, 2, 99}))),
            "without the scope": (orders.token(day, scope="image:updates"), Claims("orders", may_update=False)),
        }
        self.proofs |= dict(made.values())
        return {name: token for name, (token, _) in made.items()}

    def _bad(self, folder: Path) -> dict[str, str]:
        now, orders = int(time.time()), self._key
        good = orders.token(86_400, images=[1])
        claims = {"sub": "orders", "aud": "aries-images", "nbf": now, "exp": now + 86_400, "scope": "image:update"}
        head, _, tail = good.split(".")
        changed = _base64(json.dumps(claims).encode())
        made = {
            "expired": orders.token(1, nbf=now - 100, exp=now - 50),
            "early": orders.token(86_400, nbf=now + 40_000),
            "another key": self._of("orders", folder / "other").token(86_400),
            "no algorithm": jwt.encode(claims, None, algorithm="none"),
            "the public key as secret": _with_secret(claims, self.public.read_bytes()),
            "another audience": orders.token(86_400, aud="aries-servers"),
            "no name": orders.token(86_400, sub="or ders"),
            "cut": good.rpartition(".")[0] + ".",
            "changed": f"{head}.{changed}.{tail}",
        }
        return {name: made[name] for name in BAD}

    def token(self, kind: str, request_id: str, digest: str | None) -> str:
        """The token of a kind, for a request."""
        if kind not in BOUND:
            return self._kept[kind]
        rid = request_id + "-" if kind == "bound to another id" else request_id
        dig = digest if digest and kind != "bound to another body" else "0" * 64
        token = self._key.token_for(rid, dig, 86_400)
        self.proofs[token] = Claims("orders", rid=rid, dig=dig)
        return token


def _base64(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def _with_secret(claims: dict[str, Any], secret: bytes) -> str:
    """A token of HS256; PyJWT would not be talked into using a public key for it."""
    signed = ".".join(_base64(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return f"{signed}.{_base64(hmac.digest(secret, signed.encode(), 'sha256'))}"
