"""Who is calling: the token of a request, checked once, and what its caller may do."""

import hashlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import jwt

from aries_images import contract
from aries_images.contract import MalformedMessageError, Refusal
from worker.keys import ALGORITHMS, Keys
from worker.settings import Settings
from worker.task import Caller, Delivery

logger = logging.getLogger(__name__)

#: What a token must allow for an update, and for settling one.
SCOPE = "image:update"
#: Seconds that the clocks of the issuer and of the worker may be apart.
LEEWAY = 5
_REQUIRED = ["aud", "exp", "nbf", "sub"]
_BEARER = re.compile(r"bearer ([A-Za-z0-9_.-]{1,8192})", re.ASCII | re.IGNORECASE)
#: Tokens, and callers, that are remembered.
_TOKENS, _CALLERS = 1000, 10_000


class _Rejected(Exception):
    """The token is not good; the text is for the log alone."""


#: What a token can be rejected with: ours, PyJWT's, and what Python says of a header that is no sensible JSON.
_REJECTIONS = (_Rejected, jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)


class _Token(NamedTuple):
    """A token whose signature and claims are right, from `begins` to `ends` (Unix time, seconds)."""

    caller: Caller
    begins: float
    ends: float
    #: The one request that it is good for, if it is bound to one, and the digest of its arguments.
    request_id: str | None
    digest: str | None
    generation: int


class Door:
    """Where requests come in: tells who is calling, and whether he may."""

    def __init__(self, settings: Settings) -> None:
        self._is_open = settings.auth == "off"
        self._keys = Keys(settings.jwt_keys, settings.jwt_secret.get_secret_value())
        self._settings = settings
        self._tokens: OrderedDict[bytes, _Token] = OrderedDict()
        self._lock = threading.Lock()
        self._rates = Rates(settings.rate_per_caller)

    def check(self) -> None:
        """See whether there are keys to start with.

        Raises:
            ValueError: there are none; the text says what to set.
        """
        if self._is_open:
            return
        if not self._settings.jwt_keys and not self._settings.jwt_secret.get_secret_value():
            raise ValueError(
                "must name a JWKS file or URL to check tokens with; or set ARIES_AUTH=off, to trust whoever can reach"
                " the queue"
            )
        self._keys.check()

    def admit(self, delivery: Delivery) -> Caller | Refusal:
        """Who sent it, as its token proves; or the refusal of one who is not known, or asks for too much.

        The refusal does not say what is wrong with the token; the log does.
        """
        try:
            caller = self._identify(delivery)
        except _REJECTIONS as rejected:
            logger.warning("unauthorized: %s", rejected, extra={"request_id": delivery.request_id})
            return Refusal(contract.UNAUTHORIZED)
        if not delivery.tries and not self._rates.allow(caller.name):
            return Refusal(contract.TOO_MANY_REQUESTS)
        return caller

    def queue_for(self, delivery: Delivery) -> str:
        """Where the reply event goes: the queue that the caller names, if it is his, else the common one."""
        if delivery.reply_to in (None, "", contract.REPLY_QUEUE):
            return contract.REPLY_QUEUE
        try:
            caller = self._identify(delivery)
        except _REJECTIONS:
            return contract.REPLY_QUEUE
        return contract.reply_queue(delivery.reply_to, caller.name) or contract.REPLY_QUEUE

    # --- the token ---

    def _identify(self, delivery: Delivery) -> Caller:
        if self._is_open:
            return Caller(contract.ANONYMOUS)
        sent = delivery.headers.get(contract.AUTHORIZATION)
        bearer = _BEARER.fullmatch(sent) if isinstance(sent, str) else None
        if bearer is None:
            raise _Rejected("there is no bearer token")
        token = self._checked(bearer[1])
        now = time.time()
        if not token.begins - LEEWAY <= now < token.ends + LEEWAY:
            raise _Rejected("the token is not valid now")
        self._check_binding(token, delivery)
        return token.caller

    def _checked(self, text: str) -> _Token:
        """The token, checked; one that was checked before, with the same keys, is known by its digest."""
        self._keys.keep_fresh()
        digest = hashlib.sha256(text.encode()).digest()
        with self._lock:
            token = self._tokens.get(digest)
            if token is not None and token.generation == self._keys.generation:
                self._tokens.move_to_end(digest)
                return token
        token = self._check(text)
        with self._lock:
            self._tokens[digest] = token
            while len(self._tokens) > _TOKENS:
                self._tokens.popitem(last=False)
        return token

    def _check(self, text: str) -> _Token:
        header = jwt.get_unverified_header(text)
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS or "crit" in header:
            raise _Rejected("its algorithm, or an extension, is not accepted")
        keys = self._keys.find(key_id, algorithm)
        generation = self._keys.generation
        if not keys:
            raise _Rejected("no key that is known fits it")
        for key in keys:
            try:
                claims = jwt.decode(
                    text,
                    key.material,
                    algorithms=[key.algorithm],
                    audience=self._settings.jwt_audience,
                    issuer=self._settings.jwt_issuer or None,
                    leeway=LEEWAY,
                    options={"require": _REQUIRED},
                )
            except jwt.InvalidSignatureError as error:
                failure: jwt.PyJWTError = error
            else:
                return _read_claims(claims, generation)
        raise failure

    def _check_binding(self, token: _Token, delivery: Delivery) -> None:
        if token.request_id is None and token.digest is None and not self._settings.jwt_bound:
            return
        if token.request_id != delivery.request_id and (token.request_id is not None or self._settings.jwt_bound):
            raise _Rejected("the token is for another request")
        if token.digest is not None or self._settings.jwt_bound:
            try:
                digest = contract.digest_of(delivery.kwargs)
            except MalformedMessageError:
                digest = None
            if delivery.malformed is not None or digest != token.digest:
                raise _Rejected("the token is for another body")


def _read_claims(claims: Mapping[str, Any], generation: int) -> _Token:
    name, scope, images = claims["sub"], claims.get("scope", ""), claims.get("images")
    if not isinstance(name, str) or contract.CALLER_FORM.fullmatch(name) is None:
        raise _Rejected("its sub is no name of a caller")
    scopes = scope.split() if isinstance(scope, str) else scope
    bound = claims.get("rid"), claims.get("dig")
    if not isinstance(scopes, list) or not all(value is None or isinstance(value, str) for value in bound):
        raise _Rejected("its scope, rid or dig is not what it should be")
    if images is not None and not (isinstance(images, list) and all(type(image) is int for image in images)):
        raise _Rejected("its images are no list of ids")
    caller = Caller(name, SCOPE in scopes, None if images is None else frozenset(images))
    return _Token(caller, float(claims["nbf"]), float(claims["exp"]), *bound, generation)


class Rates:
    """A bucket for each caller: `rate` requests a second, as many of them at once; 0 for no limit."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(rate, 1.0)
        self._lock = threading.Lock()
        #: By caller: what was left in his bucket, and when (monotonic clock).
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allow(self, caller: str) -> bool:
        """Whether there is one left for him, which is then taken."""
        if not self._rate:
            return True
        now = time.monotonic()
        with self._lock:
            left, at = self._buckets.pop(caller, (self._most, now))
            left = min(self._most, left + (now - at) * self._rate)
            self._buckets[caller] = (left - 1 if left >= 1 else left, now)
            while len(self._buckets) > _CALLERS:
                self._buckets.popitem(last=False)
        return left >= 1
