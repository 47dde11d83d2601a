"""A message as the contract has it (section 1): what of it can be read, and who proves to have sent it."""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from tests.contract.rules import Document, Malformed, canonical, is_request_id, is_text, parts_of

#: Bytes of a message that is read at all.
_MOST = 1 << 20


class Claims(NamedTuple):
    """What a token proves."""

    caller: str
    may_update: bool = True
    images: frozenset[int] | None = None
    #: The one request, and the one body, that it is good for.
    rid: str | None = None
    dig: str | None = None


def _moment(value: Any) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise Malformed("no moment")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise Malformed("no moment") from error
    return moment.replace(tzinfo=moment.tzinfo or UTC)


class Message:
    """An entry of a queue, as far as it can be read."""

    def __init__(self, entry: bytes, tokens: dict[str, Claims]) -> None:
        self.headers, self.properties, self.envelope = self._read(entry)
        self.is_too_large = len(entry) > _MOST
        if self.is_too_large:  # it is not read; only its id is looked for
            self.headers = {"task": "image.update", "id": self.headers.get("id")}
            self.properties, self.envelope = {}, {}
        sent = self.headers.get("id")
        is_number = type(sent) is int
        self.request_id = str(sent) if is_number or (is_text(sent) and 0 < len(sent) <= 255) else None
        self.kwargs: Document | None = None
        self.args: list[Any] = []
        self.digest: str | None = None
        self.malformed = False
        self.deadline: datetime | None = None
        try:
            self._open()
        except Malformed:
            self.malformed = True
        self.caller = self._identify(tokens)

    @staticmethod
    def _read(entry: bytes) -> tuple[Document, Document, Document]:
        try:
            envelope = json.loads(entry)
        except (ValueError, RecursionError):
            return {}, {}, {}
        if not isinstance(envelope, dict) or not isinstance(envelope.get("headers"), dict):
            return {}, {}, {}
        properties = envelope.get("properties")
        return envelope["headers"], properties if isinstance(properties, dict) else {}, envelope

    def _open(self) -> None:
        if not is_request_id(self.headers.get("id")) or self.headers.get("compression") is not None:
            raise Malformed("id or compression")
        if self.envelope.get("content-type") != "application/json":
            raise Malformed("content type")
        if str(self.envelope.get("content-encoding") or "utf-8").lower() not in ("utf-8", "utf8", "binary"):
            raise Malformed("encoding")
        self.deadline = _moment(self.headers.get("expires"))
        eta = _moment(self.headers.get("eta"))
        if eta is not None and eta > datetime.now(UTC) + timedelta(hours=1):
            raise Malformed("a worker would hold it too long")
        body = self.envelope.get("body")
        if self.properties.get("body_encoding") == "base64" and isinstance(body, str):
            try:
                body = base64.b64decode(body)
            except ValueError as error:
                raise Malformed("base64") from error
        args, kwargs, _ = parts_of(body)
        self.digest = hashlib.sha256(canonical(kwargs)).hexdigest()
        self.args, self.kwargs = args, kwargs
        if args and self.task == "image.update":
            raise Malformed("positional arguments")

    @property
    def task(self) -> Any:
        return self.headers.get("task")

    def _identify(self, tokens: dict[str, Claims]) -> Claims | None:
        proof = self.headers.get("authorization")
        words = proof.split(" ") if isinstance(proof, str) else []
        claims = tokens.get(words[1]) if len(words) == 2 and words[0].lower() == "bearer" else None
        if claims is None or claims.rid not in (None, self.request_id):
            return None
        # A token for one body is no good where that cannot be read, if only because of what else is wrong.
        whole = self.digest if self.kwargs is not None else None
        return None if claims.dig is not None and claims.dig != whole else claims

    @property
    def reply_queue(self) -> str | None:
        """Where it wants its reply; None where it may not."""
        name = self.properties.get("reply_to")
        if name in (None, "") or (
            isinstance(name, str) and re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name)
        ):
            return "image.replies"
        own = f"image.replies.{self.caller.caller}" if self.caller else "image.replies"
        fits = isinstance(name, str) and re.fullmatch("[A-Za-z0-9._:-]{1,200}", name, re.ASCII)
        return (
            name if fits and (name in ("image.replies", own) or (self.caller and name.startswith(own + "."))) else None
        )
