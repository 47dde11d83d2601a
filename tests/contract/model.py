"""Effect, reply and event (sections 3 to 5): what must come of a message, after what was sent before it."""

import re
import unicodedata
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.contract.reading import Claims, Message
from tests.contract.rules import FIELDS, Detail, Document, is_request_id, is_text, wrong_with_fields

Row = dict[str, Any]

#: Status, message and retry of each code, and whether the ledger keeps it.
CODES = {
    "InvalidParameter": (400, "参数无效", "no", True),
    "ImageNotFound": (404, "镜像不存在", "no", True),
    "ImageNameExists": (400, "镜像名称已存在", "no", True),
    "InternalError": (500, "内部错误", "backoff", False),
    "Unauthorized": (401, "未认证", "no", False),
    "Forbidden": (403, "无权限", "no", False),
    "PreconditionFailed": (412, "前置条件不满足", "no", True),
    "TooManyRequests": (429, "请求过于频繁", "backoff", False),
    "DeadlineExceeded": (504, "请求已过期", "new_request", True),
}
MALFORMED: tuple[Detail, ...] = ((None, "malformed_message", None),)
REUSED: tuple[Detail, ...] = ((None, "request_id_reused", "this request id was used before, with another body"),)
FOREIGN: Detail = ("reply_to", "reply_to_not_allowed", "reply_to names a queue that is not the caller's")
_KEPT = ("source_path", "created_at", "updated_at")


@dataclass
class Line:
    """A line of the ledger."""

    caller: str
    digest: str | None
    document: Document


@dataclass
class Expected:
    """What must come of one message."""

    #: None: nobody can be told.
    request_id: str | None
    document: Document = field(default_factory=dict)
    stored: bool = False
    replayed: bool = False
    queue: str = "image.replies"
    wants_result: bool = True
    #: Whether it ends with the dead letters, to the byte.
    is_dead: bool = False
    correlation_id: str = ""
    traceparent: str | None = None


class Refused(Exception):
    """It is, and the answer is no."""

    def __init__(self, code: str, details: tuple[Detail, ...] = (), *, stored: bool = True) -> None:
        super().__init__(code)
        self.code, self.details, self.stored = code, details, stored and CODES[code][3]


def refusal(request_id: str, digest: str | None, code: str, details: tuple[Detail, ...]) -> Document:
    status, message, retry, _ = CODES[code]
    listed = [{"field": name, "reason": reason, "message": said} for name, reason, said in details]
    error = {"code": code, "message": message, "retry": retry, "details": listed}
    return {"request_id": request_id, "digest": digest, "status": status, "error": error}


class World:
    """Images, ledger and revisions as the messages so far must have left them."""

    def __init__(self, images: list[Row], tokens: dict[str, Claims]) -> None:
        self.images = {row["id"]: dict(row) for row in images}
        self.ledger: dict[str, Line] = {}
        #: Image, revision, request id and caller of each change.
        self.revisions: set[tuple[int, int, str, str]] = set()
        self.tokens = tokens

    def expect(self, entry: bytes, changed_at: str) -> Expected:
        """What must come of `entry`, which is next; `changed_at` is when an image is changed, if one is."""
        message = Message(entry, self.tokens)
        if message.request_id is None:
            return Expected(None, is_dead=True)
        trace, wanted = message.headers.get("traceparent"), message.properties.get("correlation_id")
        is_trace = isinstance(trace, str) and re.fullmatch(
            "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", trace, re.ASCII
        )
        expected = Expected(
            message.request_id,
            queue=(message.reply_queue or "image.replies") if message.caller else "image.replies",
            wants_result=message.headers.get("ignore_result") is not True,
            traceparent=trace if is_trace else None,
            is_dead=message.is_too_large,
        )
        if message.task == "image.settle":
            self._settle(message, expected)
        elif message.task == "image.update":
            self._update(message, expected, changed_at)
        else:
            expected.is_dead, expected.wants_result = True, True
            expected.document = refusal(message.request_id, None, "InvalidParameter", MALFORMED)
        expected.correlation_id = wanted if wanted and is_text(wanted) else expected.document["request_id"]
        return expected

    def _update(self, message: Message, expected: Expected, changed_at: str) -> None:
        request_id, caller = message.request_id or "", message.caller
        try:
            if message.malformed and (caller is None or not is_request_id(request_id)):
                raise Refused("InvalidParameter", MALFORMED, stored=False)
            if caller is None:
                raise Refused("Unauthorized")
            if self._replay(request_id, caller, message.digest, expected):
                return
            document = self._apply(message, caller, changed_at)
        except Refused as no:
            document = refusal(request_id, message.digest, no.code, no.details)
            if not no.stored or caller is None:
                expected.document = document
                return
        self.ledger[request_id] = Line(caller.caller, message.digest, document)
        expected.document, expected.stored = document, True

    def _replay(
        self, request_id: str, caller: Claims, digest: str | None, expected: Expected, *, settles: bool = False
    ) -> bool:
        line = self.ledger.get(request_id)
        if line is None:
            return False
        if line.caller != caller.caller:
            raise Refused("Forbidden")
        is_fence = line.digest is None and line.document.get("error", {}).get("code") == "DeadlineExceeded"
        if not settles and not is_fence and line.digest != digest:
            raise Refused("InvalidParameter", REUSED, stored=False)
        expected.document, expected.stored, expected.replayed = line.document, True, True
        return True

    def _settle(self, message: Message, expected: Expected) -> None:
        kwargs, caller = message.kwargs or {}, message.caller
        about = kwargs.get("request_id")
        names_one = (
            list(kwargs) == ["request_id"] and is_request_id(about) and not message.malformed and not message.args
        )
        about = about if names_one else message.request_id
        try:
            if not names_one:
                raise Refused("InvalidParameter", MALFORMED, stored=False)
            if caller is None:
                raise Refused("Unauthorized")
            if not caller.may_update:
                raise Refused("Forbidden")
            if message.reply_queue is None:
                raise Refused("InvalidParameter", (FOREIGN,), stored=False)
            if not self._replay(about, caller, None, expected, settles=True):
                fence = refusal(about, None, "DeadlineExceeded", ())
                self.ledger[about] = Line(caller.caller, None, fence)
                expected.document, expected.stored = fence, True
        except Refused as no:
            expected.document = refusal(about, None, no.code, no.details)

    def _apply(self, message: Message, caller: Claims, changed_at: str) -> Document:
        if message.malformed:
            raise Refused("InvalidParameter", MALFORMED)
        kwargs, headers = message.kwargs or {}, message.headers
        if not caller.may_update:
            raise Refused("Forbidden")
        wrong = wrong_with_fields(kwargs)
        at_revision = headers.get("if_revision")
        if at_revision is not None and type(at_revision) is not int:
            wrong.append(("if_revision", "wrong_type", "if_revision must be a JSON integer"))
        if message.reply_queue is None:
            wrong.append(FOREIGN)
        if wrong:
            raise Refused("InvalidParameter", tuple(wrong))
        if message.deadline is not None and message.deadline < datetime.now(UTC):
            raise Refused("DeadlineExceeded")
        image = self.images.get(kwargs["id"])
        if image is None or (caller.images is not None and image["id"] not in caller.images):
            raise Refused("ImageNotFound")
        if at_revision not in (None, image["revision"]):
            raise Refused("PreconditionFailed")
        self._change(image, kwargs, message, caller, changed_at)
        shown = {name: image[name] for name in (*FIELDS, *_KEPT)}
        return {
            "request_id": message.request_id, "digest": message.digest, "status": 200,
            "image": shown, "revision": image["revision"],
        }  # fmt: skip

    def _change(self, image: Row, kwargs: Document, message: Message, caller: Claims, changed_at: str) -> None:
        asked = {name: kwargs[name] for name in FIELDS[1:] if name in kwargs}
        asked = {name: unicodedata.normalize("NFC", value) for name, value in asked.items()}
        name = asked.get("name")
        if any(other["name"] == name and other is not image for other in self.images.values()):
            raise Refused("ImageNameExists", (("name", "taken", f"name '{name}' is used by another image"),))
        if all(image[field] == value for field, value in asked.items()):
            return
        image.update(asked)
        image["revision"] += 1
        image["updated_at"] = max(changed_at, image["updated_at"])
        self.revisions.add((image["id"], image["revision"], message.request_id or "", caller.caller))
