"""The queues as an AsyncAPI 3 document: who sends what where, and how it is answered."""

from typing import Any

from aries_images import contract
from documents import message_examples, messages
from documents.schema_files import moved

Part = dict[str, Any]

_DESCRIPTION = f"""\
Requests to change the metadata of operating system images wait in a queue of Redis. A worker checks each one, applies
it **exactly once** in a database transaction, and answers it twice: in the result database, for whoever waits, and with
an event on a reply queue.

In this order nothing is missed:

1. `SUBSCRIBE {contract.RESULT_KEY_PREFIX}<request id>` on the result database;
2. `LPUSH {contract.QUEUE} <message>` on the broker;
3. wait for the message on the channel: it is the result;
4. if none comes, `GET` the key of the same name, once, before giving up.

No answer? Send the same message again, under the same request id, at any time and as often as you like: it is never
applied twice, and if it was answered you get that answer again. Or settle it.

Redis knows no headers: those of a message are in the entry, as `headers`. Its body is JSON in a string: UTF-8, at most
{contract.MAX_BODY_BYTES} bytes and {contract.MAX_NESTING} levels deep, without `NaN` and without a key twice. Through
RabbitMQ go the same body and the same headers, as a message's own.

Compare `code` and `reason`, never `message`. More of them may come; none will be renamed.
"""


def document() -> Part:
    """The whole document."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "aries-images",
            "version": contract.VERSION,
            "description": _DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": _servers(),
        "channels": _channels(),
        "operations": _operations(),
        "components": {
            "messages": _messages(),
            "schemas": moved(messages.definitions(), "#/components/schemas/"),
            "correlationIds": _CORRELATION_IDS,
            "securitySchemes": _SECURITY_SCHEMES,
        },
    }


def _ref(*path: str) -> Part:
    return {"$ref": "#/" + "/".join(path)}


# --- where ---


def _servers() -> Part:
    redis = {
        "host": "127.0.0.1:6379",
        "protocol": "redis",
        "security": [_ref("components", "securitySchemes", "redis")],
    }
    return {
        "broker": redis
        | {"pathname": "/0", "description": "Where requests wait and reply events go (ARIES_BROKER_URL)."},
        "results": redis | {"pathname": "/1", "description": "Where results are (ARIES_RESULT_URL)."},
    }


_SECURITY_SCHEMES: Part = {
    "redis": {"type": "userPassword", "description": "A user of Redis, if the operator has made some."},
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": f"In the message's header `{contract.AUTHORIZATION}`: who is calling (`sub`), with the scope"
        " `image:update`. Each request proves itself, whoever may reach Redis.",
    },
}


def _channel(address: str, description: str, *names: str, server: str = "broker", **parameters: Part) -> Part:
    channel = {
        "address": address,
        "description": description,
        "servers": [_ref("servers", server)],
        "messages": {name: _ref("components", "messages", name) for name in names},
    }
    return channel | {"parameters": parameters} if parameters else channel


def _channels() -> Part:
    caller = {"description": "`sub` of the caller's token; `anonymous` where authentication is off."}
    own = "A list of the caller's own, if he names it in `reply_to`."
    return {
        "requests": _channel(contract.QUEUE, "A list: LPUSH. Somebody waits for the answer.", "update", "settle"),
        "bulkRequests": _channel(
            contract.BULK_QUEUE, "A list: LPUSH. Nobody waits: taken after what is in the other one.", "update"
        ),
        "results": _channel(
            contract.RESULT_KEY_PREFIX + "{requestId}",
            "A pub/sub channel: SUBSCRIBE. The same text stays under the key of this name for a while: GET.",
            "result",
            server="results",
            requestId={"description": "The id of the message that was sent.", "location": "$message.payload#/task_id"},
        ),
        "replies": _channel(
            contract.REPLY_QUEUE,
            "A list: BRPOP. For events of whoever names no queue; each goes to one reader.",
            "reply",
        ),
        "repliesOfCaller": _channel(f"{contract.REPLY_QUEUE_PREFIX}{{caller}}", own, "reply", caller=caller),
        "repliesOfCallerByName": _channel(
            f"{contract.REPLY_QUEUE_PREFIX}{{caller}}.{{name}}",
            own,
            "reply",
            caller=caller,
            name={"description": "Letters, digits and `. _ : -`, as he likes."},
        ),
    }


# --- what ---


def _messages() -> Part:
    return {
        "update": _message("UpdateMessage", contract.TASK, "headers", message_examples.update_messages()),
        "settle": _message("SettleMessage", contract.SETTLE_TASK, "headers", message_examples.settle_messages()),
        "result": _message("Result", "result", "task", message_examples.results()),
        "reply": _message("ReplyMessage", "reply event", "properties", message_examples.reply_messages()),
    }


_CORRELATION_IDS: Part = {
    "headers": {"description": "The request id.", "location": "$message.payload#/headers/id"},
    "task": {"description": "The request id.", "location": "$message.payload#/task_id"},
    "properties": {
        "description": "What the request has there, else the request id.",
        "location": "$message.payload#/properties/correlation_id",
    },
}


def _message(schema: str, name: str, correlation_id: str, examples: list[Part]) -> Part:
    return {
        "name": name,
        "contentType": "application/json",
        "correlationId": _ref("components", "correlationIds", correlation_id),
        "payload": _ref("components", "schemas", schema),
        "examples": examples,
    }


# --- how ---


def _operations() -> Part:
    """The worker's: it receives requests and sends replies."""
    return {
        "update": _asked("requests", "update", "Change an image, and wait for the answer."),
        "updateInBulk": _asked("bulkRequests", "update", "Change an image when there is time."),
        "settle": _asked("requests", "settle", "Learn what became of a request, or make sure that it never applies."),
        "reply": _told("replies", "How a request ended whose caller names no queue."),
        "replyToCaller": _told("repliesOfCaller", "How a request ended whose caller names this queue."),
        "replyToCallerByName": _told("repliesOfCallerByName", "The same; a caller may have many."),
    }


def _asked(channel: str, message: str, summary: str) -> Part:
    return {
        "action": "receive",
        "summary": summary,
        "channel": _ref("channels", channel),
        "messages": [_ref("channels", channel, "messages", message)],
        "security": [_ref("components", "securitySchemes", "token")],
        "reply": {
            "channel": _ref("channels", "results"),
            "messages": [_ref("channels", "results", "messages", "result")],
        },
    }


def _told(channel: str, summary: str) -> Part:
    return {
        "action": "send",
        "summary": summary,
        "channel": _ref("channels", channel),
        "messages": [_ref("channels", channel, "messages", "reply")],
    }
