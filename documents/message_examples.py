"""Messages by example: what stands in Redis when the seed's example is asked for, refused, and fails."""

import json
from typing import Any

from aries_images import contract, examples
from aries_images.contract import Code, Reply

_DONE = "2024-03-20T11:30:00.170368+00:00"
_QUEUE = f"{contract.REPLY_QUEUE}.orders"


def update_messages() -> list[dict[str, Any]]:
    """The smallest one, and one with everything that can be said."""
    full = _request(contract.TASK, examples.REQUEST)
    full["headers"] |= {
        "expires": "2024-03-20T11:30:30Z",
        contract.IF_REVISION: examples.REVISION - 1,
        contract.TRACEPARENT: examples.TRACEPARENT,
        "argsrepr": "()",
        "kwargsrepr": "{'id': 1, ...}",
    }
    full["properties"] = {"reply_to": _QUEUE, "correlation_id": "4711"}
    small = _request(contract.TASK, {"id": 1, "description": ""})
    return [_named("smallest", small), _named("full", full)]


def settle_messages() -> list[dict[str, Any]]:
    """A settlement has an id of its own."""
    request_id = f"settle-{examples.REQUEST_ID}"
    fields = {"request_id": examples.REQUEST_ID}
    return [_named("settlement", _request(contract.SETTLE_TASK, fields, request_id))]


def reply_messages() -> list[dict[str, Any]]:
    """One of each type of event."""
    return [_named(name, _event(reply)) for name, reply in _replies().items()]


def results() -> list[dict[str, Any]]:
    """One of each state, and a refusal, which is a success of Celery's."""
    return [_named(name, _result(reply)) for name, reply in _replies().items()]


def _replies() -> dict[str, Reply]:
    return {
        "updated": examples.success(),
        "refused": examples.refused(contract.INVALID_PARAMETER),
        "failed": examples.refused(contract.INTERNAL_ERROR),
    }


def _named(name: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "payload": payload}


def _request(task: str, fields: dict[str, Any], request_id: str = examples.REQUEST_ID) -> dict[str, Any]:
    return {
        "body": json.dumps([[], fields, {}], ensure_ascii=False),
        "content-type": "application/json",
        "headers": {"task": task, "id": request_id, contract.AUTHORIZATION: "Bearer eyJhbGciOi.eyJzdWIiOi.c2lnbmF0"},
    }


def _event(reply: Reply) -> dict[str, Any]:
    return {
        "body": contract.reply_event(reply, examples.MOMENT),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "replayed": False,
            "attempt": 1,
            "queue_ms": 5,
            "commit_ms": 9,
            "worker": "celery@host",
            contract.TRACEPARENT: None,
        },
        "properties": {
            "correlation_id": examples.REQUEST_ID,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": _QUEUE},
            "priority": 0,
            "delivery_tag": "34151fbf-a6ec-498f-a594-dcca7c09ab1c",
        },
    }


def _result(reply: Reply) -> dict[str, Any]:
    fault: Code = contract.INTERNAL_ERROR
    failed = {"exc_type": fault.name, "exc_message": [fault.message], "exc_module": "aries_images.errors"}
    return {
        "status": "FAILURE" if reply.code == fault.name else "SUCCESS",
        "result": failed if reply.code == fault.name else reply.document,
        "traceback": None,
        "children": [],
        "date_done": _DONE,
        "task_id": reply.request_id,
    }
