"""The keys that tokens are checked with: a JWKS file or URL, read anew when it changes, and kept while it is away."""

import json
import logging
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import jwt

logger = logging.getLogger(__name__)

#: Seconds between two readings of a URL, and between two for the sake of a key that is not known.
_PERIOD, _UNKNOWN_PERIOD = 300.0, 60.0
#: Seconds between two looks at whether a file has changed.
_LOOK_EVERY = 1.0
#: Seconds that a URL may take, and bytes that it may send.
_FETCH_SECONDS, _FETCH_BYTES = 3.0, 1 << 20
#: Bits that an RSA key must have.
_RSA_BITS = 2048

#: One algorithm for each type of key, so that a token cannot choose how it is checked.
_ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
SHARED = "HS256"
ALGORITHMS = frozenset(_ALGORITHMS.values()) | {SHARED}


class Key(NamedTuple):
    """A key, and the one algorithm it is for."""

    id: str | None
    algorithm: str
    material: Any


class Keys:
    """The keys at `source` (a file's path or a URL; may be empty) and a shared secret (may be empty)."""

    def __init__(self, source: str, secret: str) -> None:
        self._source = source
        self._is_url = source.startswith(("http://", "https://"))
        self._shared = (Key(None, SHARED, secret),) if secret else ()
        self._keys: tuple[Key, ...] = ()
        self._lock = threading.Lock()
        self._read_at = self._looked_at = self._searched_at = float("-inf")
        self._stamp: tuple[int, int] | None = None
        #: Grows when the keys are read: what was checked with the old ones must be checked again.
        self.generation = 0

    def check(self) -> None:
        """See whether there is a key to start with; a URL that is away may come back.

        Raises:
            ValueError: there is none, or the file cannot be read.
        """
        if self._is_url or not self._source:
            return
        try:
            keys = read_keys(json.loads(self._load()))
        except (OSError, ValueError) as error:
            raise ValueError(f"it can't be read: {error}") from error
        if not keys:
            raise ValueError("it has no key that tokens can be checked with: RSA of 2048 bits, P-256 or Ed25519")
        self._stamp = None  # read by whoever asks for a key first

    def read_now(self) -> list[Key]:
        """What there is at the source at this moment.

        Raises:
            OSError: it can't be read.
            ValueError: it is no JWKS document.
        """
        return read_keys(json.loads(self._fetch() if self._is_url else self._load()))

    def find(self, key_id: str | None, algorithm: str) -> list[Key]:
        """The keys that a token with this header may be checked with."""
        if algorithm == SHARED:
            return list(self._shared)
        self.keep_fresh()
        found = self._matching(key_id, algorithm)
        if not found and self._source and self._may_search():
            self._read()
            found = self._matching(key_id, algorithm)
        return found

    def _matching(self, key_id: str | None, algorithm: str) -> list[Key]:
        return [key for key in self._keys if key.algorithm == algorithm and key_id in (None, key.id)]

    def _may_search(self) -> bool:
        """Whether it is worth reading the source for a key that is not there: at most once a minute."""
        with self._lock:
            if time.monotonic() - max(self._searched_at, self._read_at) < _UNKNOWN_PERIOD:
                return False
            self._searched_at = time.monotonic()
            return True

    def keep_fresh(self) -> None:
        """Read the source again if it has changed, or may have: a file at once, a URL beside everything else."""
        if not self._source:
            return
        now = time.monotonic()
        if self._is_url and self._keys:
            if now - max(self._read_at, self._looked_at) > _PERIOD:
                self._looked_at = now
                threading.Thread(target=self._read, name="keys", daemon=True).start()
        elif now - self._looked_at > (_UNKNOWN_PERIOD if self._is_url else _LOOK_EVERY):
            self._looked_at = now
            if self._is_url or self._has_changed():
                self._read()

    def _has_changed(self) -> bool:
        try:
            status = Path(self._source).stat()
        except OSError as error:
            logger.warning("ARIES_JWT_KEYS can't be read, the keys it had are kept: %s", error)
            return False
        return self._stamp != (status.st_mtime_ns, status.st_size)

    def _read(self) -> None:
        try:
            text = self._fetch() if self._is_url else self._load()
            keys = tuple(read_keys(json.loads(text)))
        except (OSError, ValueError) as error:
            logger.warning("ARIES_JWT_KEYS can't be read, the keys it had are kept: %s", error)
            return
        with self._lock:
            self._read_at = time.monotonic()
            self._keys = keys
            self.generation += 1

    def _load(self) -> bytes:
        path = Path(self._source)
        status = path.stat()
        self._stamp = (status.st_mtime_ns, status.st_size)
        return path.read_bytes()

    def _fetch(self) -> bytes:
        with urllib.request.urlopen(self._source, timeout=_FETCH_SECONDS) as response:  # noqa: S310  # http(s), see above
            text: bytes = response.read(_FETCH_BYTES)
        return text


def read_keys(document: Any) -> list[Key]:
    """The keys of a JWKS document that tokens may be checked with; others in it are passed over.

    Raises:
        ValueError: it is no JWKS document.
    """
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("it is no JWKS document: an object with a list of keys")  # noqa: TRY004  # read from outside
    read = [_read_key(entry) for entry in document["keys"] if isinstance(entry, dict)]
    return [key for key in read if key is not None]


def _read_key(entry: dict[str, Any]) -> Key | None:
    algorithm = _ALGORITHMS.get((entry.get("kty", ""), entry.get("crv")))
    if algorithm is None or entry.get("alg", algorithm) != algorithm or entry.get("use", "sig") != "sig":
        return None
    try:
        material = jwt.PyJWK.from_dict(entry, algorithm).key
    except jwt.PyJWTError as error:
        logger.warning("ARIES_JWT_KEYS has a key that can't be read: %s", error)
        return None
    if getattr(material, "key_size", _RSA_BITS) < _RSA_BITS and algorithm == "RS256":
        logger.warning("ARIES_JWT_KEYS has an RSA key of less than %d bits, which is not used", _RSA_BITS)
        return None
    key_id = entry.get("kid")
    return Key(key_id if isinstance(key_id, str) else None, algorithm, material)
