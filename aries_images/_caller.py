"""What both clients have in common: who calls, where the servers are, and the message that a call becomes."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from aries_images import contract
from aries_images._credentials import Credentials, Signs
from aries_images._request import ABSENT, Outgoing, compose

#: Environment variables, with the defaults of the two servers.
BROKER_URL = ("ARIES_BROKER_URL", "redis://127.0.0.1:6379/0")
RESULT_URL = ("ARIES_RESULT_URL", "redis://127.0.0.1:6379/1")
TOKEN_VARIABLE = "ARIES_TOKEN"  # noqa: S105 - a name


def body_of(id_: object, **given: object) -> dict[str, Any]:
    """The seed's body, without the fields that are `ABSENT`."""
    return {"id": id_} | {field: value for field, value in given.items() if value is not ABSENT}


def headers_of(if_revision: int | None, traceparent: str | None) -> dict[str, Any]:
    """The message headers that a call can set."""
    return {contract.IF_REVISION: if_revision, contract.TRACEPARENT: traceparent}


class Caller:
    """A client without its connections; the arguments are those of `ImageClient`."""

    def __init__(  # noqa: PLR0913, PLR0917 - as many as a client has
        self,
        broker_url: str | None,
        result_url: str | None,
        token: str | Callable[[], str] | None,
        key: Signs | None,
        reply_to: str | None,
        transport_options: Mapping[str, Any] | None,
    ) -> None:
        self.broker_url = broker_url or os.environ.get(*BROKER_URL)
        self.result_url = result_url or os.environ.get(*RESULT_URL)
        self.options = transport_options or {}
        self._credentials = Credentials(token or (None if key else os.environ.get(TOKEN_VARIABLE)), key)
        self._reply_to = reply_to

    def compose(  # noqa: PLR0913 - the parts of a message
        self,
        request_id: str,
        kwargs: Mapping[str, Any],
        *,
        own_id: bool,
        headers: Mapping[str, Any],
        timeout: float,
        settles: str | None = None,
        credentials: Credentials | None = None,
        queue: str = contract.QUEUE,
    ) -> Outgoing:
        """The message of one call; `credentials` take the place of the caller's own.

        Raises:
            InvalidParameter: it can't be written as a message.
        """
        return compose(
            request_id,
            kwargs,
            own_id=own_id,
            timeout=timeout,
            headers=headers,
            reply_to=self._reply_to,
            credentials=credentials or self._credentials,
            settles=settles,
            queue=queue,
        )
