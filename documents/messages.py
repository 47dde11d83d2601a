"""How requests, reply events and results stand in Redis, as JSON Schemas beside those of `aries_images.schemas`."""

import re

from aries_images import contract, schemas
from aries_images.schemas import Schema, closed, described, ref, whole
from documents.error_table import WHEN

_JSON = "application/json"
#: Text that is a JSON document itself; validators only take note of what it holds.
_JSON_TEXT: Schema = {"type": "string", "contentMediaType": _JSON}

_REQUEST_HEADERS: Schema = {
    "id": schemas.request_id("The request id, and the idempotency key: the same on every resend."),
    contract.AUTHORIZATION: {
        "description": "The token. A worker with ARIES_AUTH=off needs none.",
        "type": "string",
        "pattern": "^[Bb]earer [A-Za-z0-9_.-]+$",
    },
    "expires": {
        "description": "Deadline, ISO 8601; without a zone it is UTC. Applied before it or never.",
        "type": "string",
    },
    contract.IF_REVISION: {
        "description": "Change the image only if it is still at this revision.",
        "type": "integer",
    },
    contract.TRACEPARENT: {
        "description": "W3C trace context: kept with the revision, given back in the event.",
        "type": "string",
        "pattern": whole(contract.TRACEPARENT_FORM),
    },
    contract.SENT_AT: {"description": "When it was sent: Unix time in seconds.", "type": "number"},
    "ignore_result": {"description": "`true`: no result is stored, the event alone answers.", "type": "boolean"},
    "argsrepr": {"description": "What Flower shows of the arguments.", "type": "string"},
    "kwargsrepr": {"description": "What Flower shows of the fields; keep values out of it.", "type": "string"},
}
_REPLY_HEADERS: Schema = {
    "replayed": {
        "description": "The answer comes from the ledger: this request id was answered before.",
        "type": "boolean",
    },
    "attempt": {"description": "1, or more if workers died with it.", "type": "integer", "minimum": 1},
    "queue_ms": {"description": "Milliseconds from `sent_at` to the begin of its batch.", "type": "integer"},
    "commit_ms": {"description": "Milliseconds that its batch took, to the commit.", "type": "integer"},
    "worker": {"description": "Name of the Celery node.", "type": "string"},
    contract.TRACEPARENT: {
        "description": "The caller's.",
        "type": ["string", "null"],
        "pattern": whole(contract.TRACEPARENT_FORM),
    },
}


def definitions() -> dict[str, Schema]:
    """All schemas by name: these, and those that they are about."""
    known = schemas.definitions()
    for code, (when, _) in WHEN.items():
        known[code]["description"] += f": {when}"
    return known | {
        "UpdateMessage": _request_message(contract.TASK, "UpdateRequest"),
        "SettleMessage": _request_message(contract.SETTLE_TASK, "SettleRequest"),
        "ReplyMessage": _reply_message(),
        "Result": _result(),
        "Fault": _fault(),
    }


def _request_message(task: str, fields: str) -> Schema:
    """What is pushed to a request queue; only what means something here: Celery's clients write more."""
    arguments: Schema = {
        "type": "array",
        "prefixItems": [{"type": "array", "maxItems": 0}, ref(fields), {"type": ["object", "null"]}],
        "minItems": 3,
        "items": False,
    }
    headers = {"task": {"const": task}, **_REQUEST_HEADERS}
    if task == contract.SETTLE_TASK:  # which changes no image
        del headers[contract.IF_REVISION], headers[contract.TRACEPARENT]
    properties = {
        "reply_to": described(
            f"Queue for the reply event: {contract.REPLY_QUEUE}, or one of the caller's.",
            _reply_queue(),
        ),
        "correlation_id": described("Given back with the event; default: the request id.", {"type": "string"}),
    }
    return {
        "description": f"A request for {task} in its queue: a Celery message (protocol 2), as JSON.",
        "type": "object",
        "properties": {
            "body": _JSON_TEXT
            | {
                "description": "JSON in a string: `[[], the fields, {}]`.",
                "maxLength": contract.MAX_BODY_BYTES,
                "contentSchema": arguments,
            },
            "content-type": {"const": _JSON},
            "content-encoding": {"const": "utf-8"},
            "headers": {"type": "object", "properties": headers, "required": ["task", "id"]},
            "properties": {"type": "object", "properties": properties},
        },
        "required": ["body", "content-type", "headers"],
    }


def _reply_queue() -> Schema:
    common, caller = re.escape(contract.REPLY_QUEUE), contract.CALLER_FORM.pattern
    forms = [whole(contract.REPLY_QUEUE_FORM), rf"^{common}($|\.{caller}($|\.))"]
    return {"type": "string", "allOf": [{"pattern": form} for form in forms]}


def _reply_message() -> Schema:
    address = closed(exchange={"const": ""}, routing_key=_reply_queue())
    properties = {
        "correlation_id": described("The caller's, or the request id.", {"type": "string"}),
        "delivery_mode": {"const": 2},
        "delivery_info": address,
        "priority": {"const": 0},
        "delivery_tag": described("Different for each entry.", {"type": "string"}),
    }
    return described(
        "A reply event in a reply queue: a message of kombu's, as JSON.",
        closed(
            body=_JSON_TEXT | {"description": "The event: JSON in a string.", "contentSchema": ref("ReplyEvent")},
            **{"content-encoding": {"const": "utf-8"}, "content-type": {"const": _JSON}},
            headers=closed(**_REPLY_HEADERS),
            properties=closed(**properties),
        ),
    )


def _result() -> Schema:
    fault = contract.INTERNAL_ERROR.name
    decided = [ref(name) for name in ("Success", *contract.CODES) if name != fault]
    record = closed(
        status={"enum": ["SUCCESS", "FAILURE"]},
        result=described(
            "The reply document; of a fault an exception instead.", {"oneOf": [ref("Reply"), ref("Fault")]}
        ),
        traceback={"type": "null"},
        children={"type": "array", "maxItems": 0},
        date_done={"type": "string", "format": "date-time"},
        task_id=described("The id of the message that is answered.", {"type": "string", "minLength": 1}),
    )
    for name in ("group_id", "parent_id"):
        record["properties"][name] = described("Only where the message has it in its headers.", {"type": "string"})
    return described("What Celery keeps of a request, and announces.", record) | {
        "if": {"properties": {"status": {"const": "FAILURE"}}},
        "then": {"properties": {"result": ref("Fault")}},
        "else": {"properties": {"result": {"oneOf": decided}}},
    }


def _fault() -> Schema:
    fault = contract.INTERNAL_ERROR
    error = closed(
        exc_type={"const": fault.name},
        exc_message={"const": [fault.message]},
        exc_module={"const": "aries_images.errors"},
    )
    return described(f"{fault.name} as Celery has it; the reply event has the reply document.", error)
