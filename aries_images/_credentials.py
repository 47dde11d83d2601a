"""What a caller proves himself with: a token he was given, or a key that tokens are made with."""

from collections.abc import Callable
from typing import Protocol

#: Seconds that a token outlives the deadline of its request, so that one that comes late is told that it is late.
_AFTER_DEADLINE = 60.0


class Signs(Protocol):
    """A `SigningKey`: it is not imported here, since it needs packages that most callers do without."""

    def token_for(self, request_id: str, digest: str, seconds: float) -> str:
        """A token for one request alone."""


class Credentials:
    """The token of each request.

    Raises:
        ValueError: both a token and a key are given.
    """

    def __init__(self, token: str | Callable[[], str] | None, key: Signs | None) -> None:
        if token and key:
            raise ValueError("give a token or a key, not both")
        self._token = token
        self._key = key

    def header(self, request_id: str, digest: str, timeout: float) -> str | None:
        """The value of the header `authorization`; None where there is nothing to prove."""
        if self._key is not None:
            return f"Bearer {self._key.token_for(request_id, digest, timeout + _AFTER_DEADLINE)}"
        token = self._token() if callable(self._token) else self._token
        return f"Bearer {token}" if token else None
