"""The contract: names on the wire, the request, the image, the reply and its codes."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

#: The seed's version of the interface.
VERSION = "v1"
#: Name of the Celery task, and of the two queues that requests wait in: a worker takes from the first one first.
TASK = "image.update"
QUEUE = "image.update"
BULK_QUEUE = "image.update.bulk"
QUEUES = (QUEUE, BULK_QUEUE)
#: What both are declared with on RabbitMQ, by whoever declares them.
AMQP_ARGUMENTS = {"x-queue-type": "quorum"}
#: The task that finds out what became of a request, on the same queue. Its only argument is `request_id`.
SETTLE_TASK = "image.settle"
#: The queue of reply events for callers who name none of their own.
REPLY_QUEUE = "image.replies"
#: A caller's own reply queues are called `image.replies.<caller>` or `image.replies.<caller>.<anything>`.
REPLY_QUEUE_PREFIX = REPLY_QUEUE + "."
#: The caller's name while authentication is off.
ANONYMOUS = "anonymous"
#: Where Celery's Redis backend keeps the result of a request, and the channel it announces it on.
RESULT_KEY_PREFIX = "celery-task-meta-"

#: Message headers beside Celery's own.
AUTHORIZATION = "authorization"
IF_REVISION = "if_revision"
TRACEPARENT = "traceparent"
SENT_AT = "sent_at"

#: Limits of the message body, in bytes and in levels of JSON arrays and objects.
MAX_BODY_BYTES = 64 * 1024
MAX_NESTING = 32

#: The seed's body: what a caller may send, and what of it can be changed.
FIELDS = ("id", "name", "os_type", "os_name", "description")
UPDATABLE = FIELDS[1:]
#: Kept by the system; a caller who sends one is refused (seed: the source file can't be changed).
READ_ONLY = frozenset({"source_path", "created_at", "updated_at", "revision"})

REQUEST_ID_RULE = "the id must be 1 to 255 characters of A-Z a-z 0-9 . _ : -"
#: The forms of names and headers, each for the whole of it, in what Python and JSON Schema have in common.
REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._:-]{1,255}")
CALLER_FORM = re.compile(r"[A-Za-z0-9_-]{1,64}")
REPLY_QUEUE_FORM = re.compile(r"[A-Za-z0-9._:-]{1,200}")
TRACEPARENT_FORM = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)


# --- codes -----------------------------------------------------------------------------------------------------------

#: What can be wrong with one field of a request, and with the request as a whole: stable tokens.
FieldReason = Literal[
    "missing",
    "wrong_type",
    "out_of_range",
    "too_short",
    "too_long",
    "white_space",
    "bad_character",
    "value_not_allowed",
    "null_not_allowed",
    "read_only",
    "unknown_field",
    "reply_to_not_allowed",
]
RequestReason = Literal["malformed_message", "request_id_reused"]
#: All of them, with the one of a name that another image has.
Reason = Literal[FieldReason, RequestReason, "taken"]


@dataclass(frozen=True, slots=True)
class Code:
    """One way in which an update can end other than well (contract 4, table)."""

    name: str
    status: int
    #: The seed's wording.
    message: str
    #: Whether the ledger keeps the reply, so that a resend gets it again.
    stored: bool = True
    retry: Literal["no", "backoff", "new_request"] = "no"
    #: What its details can say; a code without any has no details.
    reasons: tuple[Reason, ...] = ()


INVALID_PARAMETER = Code(
    "InvalidParameter", 400, "参数无效", reasons=(*get_args(FieldReason), *get_args(RequestReason))
)
IMAGE_NOT_FOUND = Code("ImageNotFound", 404, "镜像不存在")
IMAGE_NAME_EXISTS = Code("ImageNameExists", 400, "镜像名称已存在", reasons=("taken",))
INTERNAL_ERROR = Code("InternalError", 500, "内部错误", stored=False, retry="backoff")
UNAUTHORIZED = Code("Unauthorized", 401, "未认证", stored=False)
FORBIDDEN = Code("Forbidden", 403, "无权限", stored=False)
PRECONDITION_FAILED = Code("PreconditionFailed", 412, "前置条件不满足")
TOO_MANY_REQUESTS = Code("TooManyRequests", 429, "请求过于频繁", stored=False, retry="backoff")
DEADLINE_EXCEEDED = Code("DeadlineExceeded", 504, "请求已过期", retry="new_request")

#: Every code by its name, in the order of the published table.
CODES = {
    code.name: code
    for code in (
        INVALID_PARAMETER,
        IMAGE_NOT_FOUND,
        IMAGE_NAME_EXISTS,
        INTERNAL_ERROR,
        UNAUTHORIZED,
        FORBIDDEN,
        PRECONDITION_FAILED,
        TOO_MANY_REQUESTS,
        DEADLINE_EXCEEDED,
    )
}


class Detail(NamedTuple):
    """What is wrong with one field, or with none in particular: a stable token and an English sentence."""

    field: str | None
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A no, and why: the caller must change the request."""

    code: Code
    details: tuple[Detail, ...] = ()


def malformed(why: str) -> Refusal:
    """The refusal of a message that is not a request at all."""
    return Refusal(INVALID_PARAMETER, (Detail(None, "malformed_message", why),))


# --- the request -----------------------------------------------------------------------------------------------------

#: General categories refused in names: control, format, surrogate, private use, unassigned, line separators.
_NOT_IN_NAMES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_NOT_IN_DESCRIPTIONS = frozenset({"Cc", "Cs"})
_DESCRIPTION_CONTROLS = frozenset("\t\n\r")


def _nfc(value: Any) -> Any:
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


def _name_characters(value: str) -> str:
    if value[0].isspace() or value[-1].isspace():
        raise PydanticCustomError("white_space", "white_space")
    plain = value.isascii() and value.isprintable()
    if not plain and any(unicodedata.category(character) in _NOT_IN_NAMES for character in value):
        raise PydanticCustomError("bad_character", "bad_character")
    return value


def _description_characters(value: str) -> str:
    if value.isprintable():
        return value
    for character in value:
        if unicodedata.category(character) in _NOT_IN_DESCRIPTIONS and character not in _DESCRIPTION_CONTROLS:
            raise PydanticCustomError("bad_character", "bad_character")
    return value


ImageId = Annotated[int, Field(ge=1, le=2**63 - 1, description="镜像ID")]
Name = Annotated[str, BeforeValidator(_nfc), Field(min_length=1, max_length=255), AfterValidator(_name_characters)]
OsType = Literal["linux", "windows"]
Description = Annotated[str, BeforeValidator(_nfc), Field(max_length=4096), AfterValidator(_description_characters)]


class UpdateRequest(BaseModel):
    """What a caller asks for: the seed's body. A field that is not set keeps its stored value."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    id: ImageId
    name: Name = Field(default="", description="镜像名称")
    os_type: OsType = Field(default="linux", description="操作系统类型(linux/windows)")
    os_name: Name = Field(default="", description="操作系统名称")
    description: Description = Field(default="", description="镜像描述信息")

    @property
    def changes(self) -> dict[str, str]:
        """The fields that the caller named, with their values after NFC."""
        return {field: getattr(self, field) for field in UPDATABLE if field in self.model_fields_set}


#: pydantic's error types -> our stable tokens. Only errors that the model above can raise.
_REASONS: dict[str, FieldReason] = {
    "missing": "missing",
    "int_type": "wrong_type",
    "string_type": "wrong_type",
    "string_unicode": "bad_character",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "too_short": "too_short",
    "too_long": "too_long",
    "literal_error": "value_not_allowed",
    "white_space": "white_space",
    "bad_character": "bad_character",
}

_SENTENCES: dict[FieldReason, str] = {
    "missing": "{field} is required",
    "wrong_type": "{field} must be a JSON {type}",
    "out_of_range": "{field} must be from 1 to 9223372036854775807",
    "too_short": "{field} must have at least 1 character",
    "too_long": "{field} must have at most {limit} characters",
    "white_space": "{field} must not begin or end with white space",
    "bad_character": "{field} contains a character that is not allowed",
    "value_not_allowed": "{field} must be 'linux' or 'windows'",
    "null_not_allowed": "{field} must not be null; leave it out to keep the stored value",
    "read_only": "{field} can't be changed",
    "unknown_field": "{field} is not a field of an image update",
}


def _detail(field: str, reason: FieldReason) -> Detail:
    kind = "integer" if field == "id" else "string"
    limit = 4096 if field == "description" else 255
    return Detail(field, reason, _SENTENCES[reason].format(field=field[:255], type=kind, limit=limit))


def _field_error(error: ErrorDetails) -> Detail:
    field, kind, value = str(error["loc"][0]), error["type"], error["input"]
    if kind != "missing" and value is None:
        return _detail(field, "null_not_allowed")
    if kind == "literal_error" and not isinstance(value, str):
        return _detail(field, "wrong_type")
    return _detail(field, _REASONS[kind])


def validate(kwargs: Mapping[str, Any]) -> UpdateRequest | Refusal:
    """The request that `kwargs` make, or every field error at once (contract 2)."""
    others = sorted(name for name in kwargs if name not in FIELDS)
    try:
        request = UpdateRequest.model_validate({name: kwargs[name] for name in FIELDS if name in kwargs})
        errors = []
    except ValidationError as exception:
        errors = [_field_error(error) for error in exception.errors(include_url=False, include_context=False)]
        errors.sort(key=lambda error: FIELDS.index(error.field or ""))
    errors += [_detail(name, "read_only" if name in READ_ONLY else "unknown_field") for name in others]
    return Refusal(INVALID_PARAMETER, tuple(errors)) if errors else request


class MalformedMessageError(ValueError):
    """The message is not a request; `str()` says why in words fit for the caller."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        raise MalformedMessageError("the body has a JSON object with the same key twice")
    return read


def _constant(name: str) -> NoReturn:
    raise MalformedMessageError(f"the body has {name}, which is not JSON")


def _nesting(value: Any, limit: int) -> bool:
    """Whether `value` is nested deeper than `limit`."""
    level = [value]
    for _ in range(limit):
        level = [
            child for node in level if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]  # fmt: skip
        if not level:
            return False
    return any(isinstance(node, dict | list) for node in level)


_read = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant).decode


def read_json(text: bytes | str) -> Any:
    """Plain JSON as RFC 8259 has it: no duplicate keys, no NaN, no revived objects, bounded in size and depth.

    Raises:
        MalformedMessageError: it is anything else.
    """
    try:
        raw = text.encode() if isinstance(text, str) else text
        if len(raw) > MAX_BODY_BYTES:
            raise MalformedMessageError(f"the body has more than {MAX_BODY_BYTES} bytes")
        value = _read(raw.decode())
    except MalformedMessageError:
        raise
    except UnicodeError:
        raise MalformedMessageError("the body is not UTF-8") from None
    except (ValueError, RecursionError):
        raise MalformedMessageError("the body is not JSON that can be read") from None
    if raw.count(b"[") + raw.count(b"{") > MAX_NESTING and _nesting(value, MAX_NESTING):
        raise MalformedMessageError(f"the body is nested deeper than {MAX_NESTING} levels")
    return value


def read_body(body: bytes | str) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """The three parts of a Celery protocol-2 body: positional arguments, keyword arguments, embedded options.

    Raises:
        MalformedMessageError: the body is not `[args, kwargs, embed]` in plain JSON.
    """
    match read_json(body):
        case [list(args), dict(kwargs), (dict() | None) as embed]:
            return args, kwargs, embed or {}
        case _:
            raise MalformedMessageError("the body is not [args, kwargs, embed]")


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def digest_of(kwargs: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the canonical JSON of `kwargs` as received: what one request id stands for (contract 3).

    Raises:
        MalformedMessageError: `kwargs` can't be written as JSON, a lone surrogate for one.
    """
    try:
        canonical = _canonical(kwargs).encode()
    except (TypeError, ValueError, RecursionError):
        raise MalformedMessageError("the arguments can't be written as JSON") from None
    return hashlib.sha256(canonical).hexdigest()


def is_text(value: object) -> bool:
    """Whether `value` is a string that can be written as UTF-8: JSON can also spell lone surrogates, which can't."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_request_id(value: object) -> bool:
    """Whether `value` may serve as request id, task id and idempotency key."""
    return isinstance(value, str) and REQUEST_ID_FORM.fullmatch(value) is not None


def is_traceparent(value: object) -> bool:
    """Whether `value` is a W3C trace context that can be passed on."""
    return isinstance(value, str) and TRACEPARENT_FORM.fullmatch(value) is not None


def reply_queue(reply_to: object, caller: str) -> str | None:
    """The queue for `caller`'s reply event, or None where `reply_to` names one that is not his (contract 5).

    A bare UUID is what stock Celery puts there for nobody to read: it means that none is named.
    """
    if reply_to is None or reply_to == "" or (isinstance(reply_to, str) and _UUID.fullmatch(reply_to)):
        return REPLY_QUEUE
    if not isinstance(reply_to, str) or REPLY_QUEUE_FORM.fullmatch(reply_to) is None:
        return None
    own = REPLY_QUEUE_PREFIX + caller
    return reply_to if reply_to in (REPLY_QUEUE, own) or reply_to.startswith(own + ".") else None


# --- the reply -------------------------------------------------------------------------------------------------------


class Image(BaseModel):
    """An operating system image as the last committed update left it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int = Field(description="镜像ID")
    name: str = Field(description="镜像名称")
    os_type: OsType = Field(description="操作系统类型")
    os_name: str = Field(description="操作系统名称")
    description: str = Field(description="镜像描述")
    source_path: str = Field(description="镜像源文件路径")
    created_at: datetime = Field(description="创建时间")
    updated_at: datetime = Field(description="更新时间")
    #: Grows by one with every change; for `if_revision`.
    revision: int


def rfc3339(moment: datetime) -> str:
    """`moment` in UTC, to whole seconds (floor), as the seed writes times."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").removesuffix("+00:00") + "Z"


def image_document(image: Mapping[str, Any]) -> dict[str, Any]:
    """The seed's eight keys, from a row or mapping whose times are aware datetimes."""
    return {
        "id": image["id"],
        "name": image["name"],
        "os_type": image["os_type"],
        "os_name": image["os_name"],
        "description": image["description"],
        "source_path": image["source_path"],
        "created_at": rfc3339(image["created_at"]),
        "updated_at": rfc3339(image["updated_at"]),
    }


# Encoders are made once: `json.dumps` makes a new one for each call that asks for anything but its defaults.
_serialise = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Reply:
    """The document that answers one request, serialised once, with what is needed to send it."""

    request_id: str
    #: The reply document: JSON, as kept in the ledger, the result backend and the event.
    text: str
    #: The code's name, or None for success.
    code: str | None
    #: Whether the ledger holds it.
    stored: bool
    image_id: int | None = None
    replayed: bool = False

    @classmethod
    def success(cls, request_id: str, digest: str, image: Mapping[str, Any], revision: int) -> Self:
        """The image as it is now."""
        document = {
            "request_id": request_id,
            "digest": digest,
            "status": 200,
            "image": image_document(image),
            "revision": revision,
        }
        return cls(request_id, _serialise(document), None, stored=True, image_id=image["id"])

    @classmethod
    def refused(
        cls, request_id: str, digest: str | None, refusal: Refusal, image_id: int | None = None, *, stored: bool = True
    ) -> Self:
        """A no in the contract's form; `stored=False` keeps out of the ledger what the code alone would store."""
        code = refusal.code
        error = {
            "code": code.name,
            "message": code.message,
            "retry": code.retry,
            "details": [detail._asdict() for detail in refusal.details],
        }
        document = {"request_id": request_id, "digest": digest, "status": code.status, "error": error}
        return cls(request_id, _serialise(document), code.name, stored and code.stored, image_id)

    @property
    def document(self) -> dict[str, Any]:
        """The reply document, read back."""
        document: dict[str, Any] = json.loads(self.text)
        return document

    @property
    def event_type(self) -> str:
        """The CloudEvents type of this reply."""
        return event_type(self.code)


#: The CloudEvents source of every reply event.
EVENT_SOURCE = "/aries/images"


def event_type(code: str | None) -> str:
    """The CloudEvents type of a reply with that code, or of a success."""
    if code is None:
        return "aries.image.updated"
    return "aries.image.update_failed" if code == INTERNAL_ERROR.name else "aries.image.update_refused"


def reply_event(reply: Reply, moment: datetime) -> str:
    """The CloudEvents 1.0 document that carries `reply` (contract 5); JSON text."""
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": reply.request_id,
        "source": EVENT_SOURCE,
        "type": reply.event_type,
    }
    if reply.image_id is not None:
        attributes["subject"] = f"image/{reply.image_id}"
    attributes["time"] = rfc3339(moment)
    attributes["datacontenttype"] = "application/json"
    return f'{_serialise(attributes)[:-1]},"data":{reply.text}}}'
