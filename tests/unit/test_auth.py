"""The door, without a queue: which tokens it takes, and what it takes from them."""

import base64
import hashlib
import hmac
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from aries_images import contract
from aries_images.contract import Refusal, digest_of
from aries_images.signing import SigningKey
from worker import auth, keys
from worker.auth import Door
from worker.settings import Settings
from worker.task import Caller, Delivery

KWARGS = {"id": 1, "name": "new"}
#: Bits of an RSA key that nobody should have.
WEAK = 1024
SECRET = "a shared secret of more than 32 characters"


def pem_of(private: Any) -> bytes:
    pem: bytes = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem


ED25519 = pem_of(ed25519.Ed25519PrivateKey.generate())
PEMS = {
    "EdDSA": ED25519,
    "ES256": pem_of(ec.generate_private_key(ec.SECP256R1())),
    "RS256": pem_of(rsa.generate_private_key(65537, 2048)),
}
KEYS = {name: SigningKey(pem, "orders") for name, pem in PEMS.items()}
KEY = KEYS["EdDSA"]
STRANGER = SigningKey(pem_of(ed25519.Ed25519PrivateKey.generate()), "orders")


@pytest.fixture
def jwks(tmp_path: Path) -> Path:
    return written(tmp_path / "jwks.json", *KEYS.values())


def written(path: Path, *signing: SigningKey) -> Path:
    path.write_text(json.dumps({"keys": [key.public_jwk for key in signing]}))
    return path


def a_door(jwks: Path | str = "", **settings: Any) -> Door:
    return Door(Settings(jwt_keys=str(jwks), **settings))


@pytest.fixture
def door(jwks: Path) -> Door:
    return a_door(jwks)


def sent(token: Any, *, prefix: str = "Bearer ", **fields: Any) -> Delivery:
    header = {} if token is None else {"authorization": f"{prefix}{token}" if isinstance(token, str) else token}
    given: dict[str, Any] = {"request_id": "r-1", "args": (), "kwargs": KWARGS, "headers": header}
    return Delivery(**given | fields)


def code(outcome: Caller | Refusal) -> str:
    return outcome.code.name if isinstance(outcome, Refusal) else "admitted"


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    given = {
        "sub": "orders",
        "aud": "aries-images",
        "nbf": now,
        "exp": now + 60,
        "scope": "image:update",
    } | changes
    return {name: value for name, value in given.items() if value is not None}


def signed(given: dict[str, Any], algorithm: str = "EdDSA", **header: Any) -> str:
    return jwt.encode(given, PEMS[algorithm], algorithm, {"kid": KEYS[algorithm].public_jwk["kid"]} | header)


# --- what is taken ---


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_good_token_tells_who_is_calling(door: Door, algorithm: str) -> None:
    assert door.admit(sent(KEYS[algorithm].token(60))) == Caller("orders", may_update=True, images=None)


@pytest.mark.parametrize("prefix", ["Bearer ", "bearer ", "BEARER "])
def test_the_scheme_may_be_written_in_any_case(door: Door, prefix: str) -> None:
    assert code(door.admit(sent(KEY.token(60), prefix=prefix))) == "admitted"


def test_a_token_without_a_key_id_is_checked_with_the_keys_of_its_kind(door: Door) -> None:
    assert code(door.admit(sent(jwt.encode(claims(), PEMS["ES256"], "ES256")))) == "admitted"


@pytest.mark.parametrize("scope", ["image:update", "a image:update b", ["image:update"]])
def test_the_scope_may_be_one_of_several(door: Door, scope: Any) -> None:
    assert door.admit(sent(signed(claims(scope=scope)))) == Caller("orders")


@pytest.mark.parametrize("scope", [None, "", "image:updates", "image", [], "IMAGE:UPDATE"])
def test_without_the_scope_the_caller_is_known_and_may_not(door: Door, scope: Any) -> None:
    assert door.admit(sent(signed(claims(scope=scope)))) == Caller("orders", may_update=False)


def test_images_are_those_of_the_claim(door: Door) -> None:
    caller = door.admit(sent(signed(claims(images=[1, 7]))))
    assert isinstance(caller, Caller)
    assert caller.images == {1, 7}


def test_with_a_shared_secret_hs256_is_taken() -> None:
    assert code(a_door(jwt_secret=SECRET).admit(sent(jwt.encode(claims(), SECRET, "HS256")))) == "admitted"


def test_switched_off_everybody_is_anonymous() -> None:
    assert a_door(auth="off").admit(sent(None)) == Caller("anonymous")


# --- what is not ---

NOW = int(time.time())
FORGED: dict[str, Callable[[], Any]] = {
    "none at all": lambda: None,
    "empty": lambda: "",
    "no token": lambda: "x",
    "a number": lambda: 5,
    "a list": lambda: [KEY.token(60)],
    "10 kB long": lambda: "a" * 10_000,
    "with a NUL": lambda: KEY.token(60) + "\0",
    "another's key": lambda: STRANGER.token(60),
    "another's key under a known id": lambda: signed_by_stranger(),  # noqa: PLW0108 - it is defined below
    "no algorithm": lambda: jwt.encode(claims(), None, "none"),  # type: ignore[arg-type]
    "no algorithm, by hand": lambda: unsigned({"alg": "none"}),
    "no algorithm, in capitals": lambda: unsigned({"alg": "NONE"}),
    "HS256 with the public key": lambda: confused(),  # noqa: PLW0108
    "HS256 without a shared secret": lambda: jwt.encode(claims(), SECRET, "HS256"),
    "an algorithm that is a list": lambda: unsigned({"alg": ["EdDSA"]}),
    "a header nested deep": lambda: base64.urlsafe_b64encode(b'{"alg":' + b"[" * 4000).decode().rstrip("=") + ".e30.x",
    "ES256 with an Ed25519 key": lambda: unsigned({"alg": "ES256", "kid": KEY.public_jwk["kid"]}),
    "a critical extension": lambda: signed(claims(), crit=["b64"], b64=False),
    "an altered payload": lambda: altered(),  # noqa: PLW0108
    "expired": lambda: signed(claims(exp=NOW - 60)),
    "not valid yet": lambda: signed(claims(nbf=NOW + 3600, exp=NOW + 7200)),
    "issued in the future": lambda: signed(claims(iat=NOW + 3600)),
    "no exp": lambda: signed(claims(exp=None)),
    "no nbf": lambda: signed(claims(nbf=None)),
    "no sub": lambda: signed(claims(sub=None)),
    "no aud": lambda: signed(claims(aud=None)),
    "another audience": lambda: signed(claims(aud="images")),
    "a sub of 65 characters": lambda: signed(claims(sub="a" * 65)),
    "a sub with a dot": lambda: signed(claims(sub="orders.x")),
    "an empty sub": lambda: signed(claims(sub="")),
    "a sub with a line break": lambda: signed(claims(sub="orders\n")),
    "exp that is text": lambda: signed(claims(exp="tomorrow")),
    "exp that is infinite": lambda: signed(claims(exp=float("inf"))),
    "a scope that is a number": lambda: signed(claims(scope=5)),
    "images that are no list": lambda: signed(claims(images="1")),
    "images that are not numbers": lambda: signed(claims(images=["1"])),
    "bound to another id": lambda: KEY.token_for("r-2", digest_of(KWARGS), 60),
    "bound to another body": lambda: KEY.token_for("r-1", digest_of({"id": 2}), 60),
    "bound to a number": lambda: signed(claims(rid=1)),
}


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def unsigned(header: dict[str, Any]) -> str:
    return f"{part(header)}.{part(claims())}."


def signed_by_stranger() -> str:
    header, payload, _ = KEY.token(60).split(".")
    return ".".join([header, payload, STRANGER.token(60).split(".")[2]])


def altered() -> str:
    header, _, signature = KEY.token(60).split(".")
    return f"{header}.{part(claims(sub='admin'))}.{signature}"


def confused() -> str:
    """Signed with a public key as if it were a shared secret."""
    public = (
        load_pem_private_key(PEMS["RS256"], None)
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    text = f"{part({'alg': 'HS256', 'kid': KEYS['RS256'].public_jwk['kid']})}.{part(claims())}"
    signature = hmac.new(public, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_not_admitted_and_not_told_why(door: Door, forge: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    token = forge()
    refused = door.admit(sent(token))
    assert refused == Refusal(contract.UNAUTHORIZED)
    assert "unauthorized: " in caplog.text, "the log says why"
    assert not (isinstance(token, str) and len(token) > 3 and token in caplog.text), "but not the token"


@pytest.mark.parametrize("prefix", ["", "Basic ", "Bearer", "Bearer  ", "JWT "])
def test_another_scheme_is_none(door: Door, prefix: str) -> None:
    assert code(door.admit(sent(KEY.token(60), prefix=prefix))) == "Unauthorized"


def test_the_issuer_must_fit_where_one_is_set(jwks: Path) -> None:
    door = a_door(jwks, jwt_issuer="idp")
    assert code(door.admit(sent(KEY.token(60)))) == "Unauthorized"
    assert code(door.admit(sent(SigningKey(ED25519, "orders", issuer="other").token(60)))) == "Unauthorized"
    assert code(door.admit(sent(SigningKey(ED25519, "orders", issuer="idp").token(60)))) == "admitted"


def test_a_short_rsa_key_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = SigningKey(pem_of(rsa.generate_private_key(65537, WEAK)), "orders")
    door = a_door(written(tmp_path / "jwks.json", key))
    with pytest.warns(match="below"):
        token = key.token(60)
    assert code(door.admit(sent(token))) == "Unauthorized"
    assert "less than 2048 bits" in caplog.text


def test_a_shared_secret_must_be_long() -> None:
    with pytest.raises(ValueError, match="at least 32 characters"):
        a_door(jwt_secret="x" * 31)


# --- bound tokens ---


def test_a_bound_token_is_good_for_its_request_alone(door: Door) -> None:
    token = KEY.token_for("r-1", digest_of(KWARGS), 60)
    assert code(door.admit(sent(token))) == "admitted"
    for other in ({"request_id": "r-2"}, {"kwargs": {"id": 2}}, {"kwargs": {"id": "\ud800"}}, {"malformed": "it is"}):
        assert code(door.admit(replace(sent(token), **other))) == "Unauthorized"  # type: ignore[arg-type]


def test_where_it_is_demanded_others_are_refused(jwks: Path) -> None:
    door = a_door(jwks, jwt_bound=True)
    assert code(door.admit(sent(KEY.token_for("r-1", digest_of(KWARGS), 60)))) == "admitted"
    for token in (KEY.token(60), KEY.token(60, rid="r-1"), KEY.token(60, dig=digest_of(KWARGS))):
        assert code(door.admit(sent(token))) == "Unauthorized"


# --- what is remembered ---


def test_one_token_is_checked_once(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = []
    decode = jwt.decode
    monkeypatch.setattr(jwt, "decode", lambda *args, **kwargs: checks.append(1) or decode(*args, **kwargs))
    token = KEY.token(60)
    for _ in range(5):
        assert code(door.admit(sent(token))) == "admitted"
    assert len(checks) == 1


def test_what_is_remembered_expires_with_the_token(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    token = KEY.token(60)
    assert code(door.admit(sent(token))) == "admitted"
    monkeypatch.setattr(auth, "time", Clock(61 + auth.LEEWAY))
    assert code(door.admit(sent(token))) == "Unauthorized"


class Clock:
    """`time`, some seconds later."""

    def __init__(self, later: float) -> None:
        self._later = later

    def time(self) -> float:
        return time.time() + self._later

    def monotonic(self) -> float:
        return time.monotonic() + self._later


def test_memory_is_bounded(jwks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_TOKENS", 3)
    door = a_door(jwks)
    for number in range(5):
        door.admit(sent(KEY.token(60, jti=str(number))))
    assert len(door._tokens) == 3


# --- keys ---


def test_a_key_that_is_taken_out_of_the_file_is_not_good_any_more(
    jwks: Path, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, other = KEY.token(60), KEYS["RS256"].token(60)
    assert code(door.admit(sent(token))) == code(door.admit(sent(other))) == "admitted"
    written(jwks, KEYS["RS256"])
    monkeypatch.setattr(keys, "time", Clock(2))
    assert code(door.admit(sent(token))) == "Unauthorized"
    assert code(door.admit(sent(other))) == "admitted"


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"keys": 5}', None])
def test_a_file_that_cannot_be_read_leaves_the_keys_as_they_were(
    jwks: Path, door: Door, monkeypatch: pytest.MonkeyPatch, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert code(door.admit(sent(KEY.token(60)))) == "admitted"
    jwks.write_text(text) if text is not None else jwks.unlink()
    monkeypatch.setattr(keys, "time", Clock(2))
    assert code(door.admit(sent(KEY.token(60)))) == "admitted"
    assert "the keys it had are kept" in caplog.text


def test_other_entries_of_a_jwks_are_passed_over(tmp_path: Path) -> None:
    entries = [
        5,
        {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode()},
        {**KEYS["RS256"].public_jwk, "use": "enc"},
        {**KEYS["ES256"].public_jwk, "alg": "ES512"},
        {"kty": "OKP", "crv": "Ed25519", "x": "%%%"},
        KEY.public_jwk,
    ]
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": entries}))
    door = a_door(path)
    assert code(door.admit(sent(KEY.token(60)))) == "admitted"
    for token in (KEYS["RS256"].token(60), KEYS["ES256"].token(60), jwt.encode(claims(), SECRET, "HS256")):
        assert code(door.admit(sent(token))) == "Unauthorized"


class Issuer(http.server.ThreadingHTTPServer):
    """Serves a JWKS document, and counts how often."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.keys: list[SigningKey] = [KEY]
        self.asked = 0
        self.away = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/jwks"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        issuer = self.server
        assert isinstance(issuer, Issuer)
        issuer.asked += 1
        self.send_response(503 if issuer.away else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"keys": [key.public_jwk for key in issuer.keys]}).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as issuer:
        thread = threading.Thread(target=issuer.serve_forever, args=(0.01,))
        thread.start()
        yield issuer
        issuer.shutdown()
        thread.join()


def test_a_url_is_read_once_and_again_for_a_new_key(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    door, new = a_door(issuer.url), KEYS["ES256"]
    for _ in range(3):
        assert code(door.admit(sent(KEY.token(60)))) == "admitted"
    assert issuer.asked == 1
    issuer.keys.append(new)
    assert code(door.admit(sent(new.token(60)))) == "Unauthorized", "within a minute it is not asked again"
    monkeypatch.setattr(keys, "time", Clock(61))
    assert code(door.admit(sent(new.token(60)))) == "admitted"
    for _ in range(20):
        assert code(door.admit(sent(STRANGER.token(60)))) == "Unauthorized"
    assert issuer.asked == 2


def test_while_a_url_is_away_the_keys_it_had_are_kept(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    door = a_door(issuer.url)
    assert code(door.admit(sent(KEY.token(60)))) == "admitted"
    issuer.away = True
    monkeypatch.setattr(keys, "time", Clock(301))
    assert code(door.admit(sent(KEY.token(60)))) == "admitted"
    until(lambda: issuer.asked == 2)
    assert code(door.admit(sent(KEYS["RS256"].token(60)))) == "Unauthorized"
    assert code(door.admit(sent(KEY.token(60)))) == "admitted"


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- rates, and queues ---


def test_a_caller_who_asks_too_fast_is_held_back(jwks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door = a_door(jwks, rate_per_caller=5)
    other = SigningKey(ED25519, "other")
    codes = [code(door.admit(sent(KEY.token(60)))) for _ in range(7)]
    assert codes == ["admitted"] * 5 + ["TooManyRequests"] * 2
    assert code(door.admit(sent(other.token(60)))) == "admitted"
    assert code(door.admit(sent(KEY.token(60), tries=1))) == "admitted", "what was counted before"
    assert code(door.admit(sent(KEY.token(60), attempt=2))) == "TooManyRequests", "which a sender can claim"
    monkeypatch.setattr(auth, "time", Clock(0.5))
    assert [code(door.admit(sent(KEY.token(60)))) for _ in range(3)] == ["admitted"] * 2 + ["TooManyRequests"]


def test_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_CALLERS", 3)
    rates = auth.Rates(1.0)
    for number in range(5):
        rates.allow(str(number))
    assert len(rates._buckets) == 3


HOSTILE = [
    "image.update",
    "celery",
    "image.update.leases",
    "image.update.dead",
    "celery-task-meta-r-1",
    "image.replies.other",
    "image.replies.ordersx",
    "image.replies.orders.\0",
    "image.replies.orders\n",
    "image.replies.orders." + "x" * 10_000,
    "image.replies:unacked",
    "_kombu.binding.image.update",
    7,
    ["image.replies.orders"],
    {"a": 1},
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_event_goes_to_a_queue_that_is_not_the_callers(door: Door, name: Any) -> None:
    assert door.queue_for(sent(KEY.token(60), reply_to=name)) == "image.replies"


def test_events_go_to_a_queue_that_is_proved_to_be_the_callers(door: Door) -> None:
    for name in ("image.replies.orders", "image.replies.orders.x"):
        assert door.queue_for(sent(KEY.token(60), reply_to=name)) == name
        assert door.queue_for(sent(None, reply_to=name)) == "image.replies"
        assert door.queue_for(sent(STRANGER.token(60), reply_to=name)) == "image.replies"
