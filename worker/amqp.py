"""What RabbitMQ does otherwise than our Redis transport: deliveries are counted by it, and confirmed one by one."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from amqp import Channel, Message
from amqp.exceptions import PreconditionFailed
from kombu import Connection, Queue
from kombu.message import Message as Received
from kombu.transport import pyamqp

from aries_images import contract

logger = logging.getLogger(__name__)

#: Kombu's names of the transports that these take the place of.
TRANSPORTS = {
    "amqp": "worker.amqp:Transport",
    "amqps": "worker.amqp:SSLTransport",
    "pyamqp": "worker.amqp:Transport",
}
SCHEMES = tuple(f"{scheme}://" for scheme in TRANSPORTS)
#: Where messages wait that were given up on.
DEAD_QUEUE = "image.update.dead"
#: Seconds that RabbitMQ may take to confirm what it was sent.
_CONFIRM_SECONDS = 5.0


class _AsItCame(pyamqp.Message):  # type: ignore[misc]  # kombu has no types
    """A message whose body stays compressed: half a megabyte can be two gigabytes, and kombu would have a look."""

    def __init__(self, msg: Message, channel: Channel | None = None, **kwargs: Any) -> None:
        if "compression" in (msg.headers or {}):
            error = contract.MalformedMessageError("compressed messages are not accepted")
            self.errors = [(type(error), error, None)]
        super().__init__(msg, channel, **kwargs)


class _Channel(pyamqp.Channel):  # type: ignore[misc]
    Message = _AsItCame


class _Connection(pyamqp.Connection):  # type: ignore[misc]
    Channel = _Channel


class Transport(pyamqp.Transport):  # type: ignore[misc]
    """For `amqp://`."""

    Connection = _Connection


class SSLTransport(pyamqp.SSLTransport):  # type: ignore[misc]
    """For `amqps://`."""

    Connection = _Connection


class NotConfirmedError(ConnectionError):
    """RabbitMQ did not confirm all that it was sent; it may have it nevertheless."""


class Outgoing(NamedTuple):
    """A message on its way to a queue."""

    queue: str
    body: str
    properties: Mapping[str, Any]


def count_deliveries(message: Received) -> None:
    """Write down which delivery of its message this is, whatever its sender has written there.

    RabbitMQ counts the earlier ones, of a quorum queue, in a header of its own.
    """
    info = message.delivery_info
    earlier = message.headers.get("x-delivery-count") if info.get("redelivered") else 0
    message.headers["deliveries"] = 1 + (earlier if isinstance(earlier, int) else bool(info.get("redelivered")))


def bury(app: Any, message: Received, reason: str, request_id: str | None) -> None:
    """Put a message with the dead letters, as it came; headers say why, and which queue it is from."""
    known = {"request_id": request_id, "reason": reason}
    logger.error("a message is put with the dead letters: %s", reason.replace("_", " "), extra=known)
    limit = app.settings.dead_letters_max
    arguments = contract.AMQP_ARGUMENTS | {"x-max-length": limit}
    queue = Queue(DEAD_QUEUE, queue_arguments=arguments)
    with app.producer_or_acquire() as producer:
        producer.publish(
            message.body,
            routing_key=DEAD_QUEUE,
            declare=[queue],
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers={
                "message-headers": message.headers,
                "reason": reason,
                "list": message.delivery_info["routing_key"],
            },
            retry=True,
            retry_policy={"max_retries": 3},
        )


def send(connection: Connection, messages: Iterable[Outgoing], queues: Mapping[str, Mapping[str, Any]]) -> None:
    """Send all of `messages` and wait until they are confirmed, together.

    Args:
        connection: to RabbitMQ; one that is broken is made anew, once.
        messages: what to send.
        queues: what each of the queues is declared with, where nobody has declared it.

    Raises:
        NotConfirmedError: it can't be reached, or did not confirm everything.
    """
    # The library stumbles over its own missing parts when a connection is lost at certain moments.
    errors = (*connection.connection_errors, *connection.channel_errors, AttributeError)
    for is_last in (False, True):
        try:
            connection.connect()
            with connection.channel() as channel:
                for name, arguments in queues.items():
                    _declare(connection, name, arguments)
                _send_and_wait(channel, list(messages))
        except errors as error:
            connection.collect()  # an idle one may have been closed from the other side
            if is_last:
                raise NotConfirmedError(str(error) or type(error).__name__) from error
        else:
            return


def _declare(connection: Connection, name: str, arguments: Mapping[str, Any]) -> None:
    """Each time, for that keeps a queue alive that vanishes when nobody uses it."""
    try:
        with connection.channel() as channel:
            Queue(name, channel=channel, **arguments).declare()
    except PreconditionFailed:
        pass  # its reader has declared it, to his own taste


def _send_and_wait(channel: Channel, messages: list[Outgoing]) -> None:
    open_tags = set(range(1, len(messages) + 1))

    def confirmed(tag: int, multiple: bool) -> None:  # noqa: FBT001  # amqp's signature
        open_tags.difference_update([one for one in open_tags if one <= tag] if multiple else [tag])

    channel.events["basic_ack"].add(confirmed)
    channel.confirm_select()
    for message in messages:
        body = Message(message.body, **message.properties)
        channel._basic_publish(body, routing_key=message.queue)  # noqa: SLF001  # the one that does not wait each time
    while open_tags:
        channel.connection.drain_events(timeout=_CONFIRM_SECONDS)
