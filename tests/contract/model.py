"""The contract as a plain model: what must come of a message, read from its bytes, and of what was sent before it.

Written from the contract's sections on request, fields, effect, reply and event; it shares no code with the worker.
"""

import base64
import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, NoReturn

Document = dict[str, Any]
Row = dict[str, Any]
#: Field, reason and sentence of one thing that is wrong; of a malformed message the sentence is free.
Detail = tuple[str | None, str, str | None]

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
FIELDS = ("id", "name", "os_type", "os_name", "description")
READ_ONLY = ("source_path", "created_at", "updated_at", "revision")
KEPT = ("source_path", "created_at", "updated_at")


class Claims(NamedTuple):
    """What a token proves."""

    caller: str
    may_update: bool = True
    images: frozenset[int] | None = None
    #: The one request, and the one body, that it is good for.
    rid: str | None = None
    dig: str | None = None


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


class Malformed(Exception):
    """The message is no request."""


class Refused(Exception):
    """It is, and the answer is no."""

    def __init__(self, code: str, details: tuple[Detail, ...] = (), *, stored: bool = True) -> None:
        super().__init__(code)
        self.code, self.details, self.stored = code, details, stored and CODES[code][3]


# --- section 2: the body and its fields ---


def is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def is_request_id(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[A-Za-z0-9._:-]{1,255}", value, re.ASCII) is not None


def _pairs(pairs: list[tuple[str, Any]]) -> Document:
    if len({name for name, _ in pairs}) < len(pairs):
        raise Malformed("a key twice")
    return dict(pairs)


def _no_number(name: str) -> NoReturn:
    raise Malformed(name)


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def parts_of(body: Any, most: int = 65_536, levels: int = 32) -> list[Any]:
    """`[args, kwargs, embed]`, or it is malformed."""
    if not isinstance(body, str | bytes):
        raise Malformed("no text")
    try:
        raw = body.encode() if isinstance(body, str) else body
        text = raw.decode()
        if len(raw) > most:
            raise Malformed("too large")
        parts = json.loads(text, object_pairs_hook=_pairs, parse_constant=_no_number)
        if _depth(parts) > levels:
            raise Malformed("too deep")
    except (ValueError, RecursionError) as error:
        raise Malformed("no JSON") from error
    good = isinstance(parts, list) and len(parts) == 3 and isinstance(parts[0], list) and isinstance(parts[1], dict)
    if not good or not (parts[2] is None or isinstance(parts[2], dict)):
        raise Malformed("not [args, kwargs, embed]")
    if any((parts[2] or {}).get(name) for name in ("callbacks", "errbacks", "chain", "chord")):
        raise Malformed("canvas")
    return parts


def canonical(kwargs: Document) -> bytes:
    try:
        return json.dumps(kwargs, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # a number beyond all numbers, or a lone surrogate
        raise Malformed("no JSON") from error


def _is_space(character: str) -> bool:
    return unicodedata.category(character) in ("Zs", "Zl", "Zp") or character in "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85"


def _wrong_with_text(value: Any, longest: int, shortest: int, refused: str, allowed: str = "") -> str | None:
    if not isinstance(value, str):
        return "wrong_type"
    value = unicodedata.normalize("NFC", value)
    if len(value) < shortest:
        return "too_short"
    if len(value) > longest:
        return "too_long"
    if shortest and (_is_space(value[0]) or _is_space(value[-1])):
        return "white_space"
    bad = [one for one in value if unicodedata.category(one) in refused.split() and one not in allowed]
    return "bad_character" if bad else None


def _wrong_with_id(value: Any) -> str | None:
    if type(value) is not int:
        return "wrong_type"
    return None if 1 <= value <= 9223372036854775807 else "out_of_range"


def _wrong_with_type(value: Any) -> str | None:
    if not isinstance(value, str):
        return "wrong_type"
    return None if value in ("linux", "windows") else "value_not_allowed"


def _wrong_with(name: str, value: Any) -> str | None:
    if value is None:
        return "null_not_allowed"
    if name == "id":
        return _wrong_with_id(value)
    if name == "os_type":
        return _wrong_with_type(value)
    if name == "description":
        return _wrong_with_text(value, 4096, 0, "Cc Cs", "\t\n\r")
    return _wrong_with_text(value, 255, 1, "Cc Cf Cs Co Cn Zl Zp")


def _sentence(name: str, reason: str) -> str:
    shown = name[:255]
    return {
        "missing": f"{shown} is required",
        "wrong_type": f"{shown} must be a JSON {'integer' if name == 'id' else 'string'}",
        "out_of_range": f"{shown} must be from 1 to 9223372036854775807",
        "too_short": f"{shown} must have at least 1 character",
        "too_long": f"{shown} must have at most {4096 if name == 'description' else 255} characters",
        "white_space": f"{shown} must not begin or end with white space",
        "bad_character": f"{shown} contains a character that is not allowed",
        "value_not_allowed": f"{shown} must be 'linux' or 'windows'",
        "null_not_allowed": f"{shown} must not be null; leave it out to keep the stored value",
        "read_only": f"{shown} can't be changed",
        "unknown_field": f"{shown} is not a field of an image update",
    }[reason]


def wrong_with_fields(kwargs: Document) -> list[Detail]:
    wrong = [] if "id" in kwargs else [("id", "missing")]
    wrong += [(name, reason) for name in FIELDS if name in kwargs and (reason := _wrong_with(name, kwargs[name]))]
    others = sorted(name for name in kwargs if name not in FIELDS)
    wrong += [(name, "read_only" if name in READ_ONLY else "unknown_field") for name in others]
    return [(name, reason, _sentence(name, reason)) for name, reason in wrong]


# --- section 1: the message ---


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
        self.is_too_large = len(entry) > 1 << 20
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
        _moment(self.headers.get("eta"))
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


# --- sections 3 and 4: the effect and the reply ---


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
        shown = {name: image[name] for name in (*FIELDS, *KEPT)}
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


FOREIGN: Detail = ("reply_to", "reply_to_not_allowed", "reply_to names a queue that is not the caller's")
