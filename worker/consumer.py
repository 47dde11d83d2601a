"""Celery's consumer, made safe and tuned for batches: no message stops it, and none vanishes."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from celery.utils.log import get_logger
from celery.worker import consumer as celery_consumer
from kombu import Message

from aries_images import contract
from aries_images.contract import Refusal, Reply
from worker import amqp
from worker.group_commit import Pool
from worker.intake import LEASING_SCHEMES
from worker.message import is_attributable
from worker.task import Answer, Delivery

logger = get_logger(__name__)

#: Seconds that Celery's events wait for others to go out with, and how many of them at most.
_EVENTS_SECONDS = 0.1
_EVENTS_AT_ONCE = 2000
#: A message that is delivered more often has ended as many workers, and may be why.
_DELIVERIES_MAX = 5


class Consumer(celery_consumer.Consumer):  # type: ignore[misc]  # Celery has no types
    """A consumer that no message can stop: what cannot be run is answered, if that can be, and kept for a human."""

    _events_due = False

    class Blueprint(celery_consumer.Consumer.Blueprint):  # type: ignore[misc]
        """Celery's, without what delays messages on RabbitMQ with 28 queues of its own: an ETA is waited for here."""

        default_steps = tuple(
            step for step in celery_consumer.Consumer.Blueprint.default_steps if "delayed_delivery" not in step
        )

    def start(self) -> None:
        """Consume until the worker stops, with the window that the pool asks for; Celery counts processes."""
        self.initial_prefetch_count = self.max_prefetch_count
        self._has_leases = self.app.conf.broker_url.startswith(LEASING_SCHEMES)
        self._speaks_amqp = self.app.conf.broker_url.startswith(amqp.SCHEMES)
        super().start()

    def ensure_connected(self, conn: Any) -> Any:
        """Celery's; the loop stands still meanwhile, and is not to be taken for dead."""
        with self.app.health.paused():
            return super().ensure_connected(conn)

    def call_soon_ack(self, p: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Acknowledge at once where that is only bookkeeping (the intake's leases) and the loop is awake to go on."""
        if self._has_leases and isinstance(self.pool, Pool):
            return p(*args, **kwargs)
        return super().call_soon_ack(p, *args, **kwargs)

    def on_send_event_buffered(self) -> None:
        """Events go out together a moment later; one by one they would hold up the requests that they speak of."""
        if self.hub and not self._events_due:
            self._events_due = True
            self.timer.call_after(_EVENTS_SECONDS, self._flush_events)

    def _flush_events(self) -> None:
        self._events_due = False
        super()._flush_events()

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Reconnect, and keep the leases: what is under way will be answered, so nobody else should start on it."""
        if self.task_consumer is not None:
            self.task_consumer.channel.do_restore = False
        super().on_connection_error_after_connected(exc)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        """Celery's handler, with a net under it."""
        handle = super().create_task_handler(*args, **kwargs)
        if self.event_dispatcher is not None:
            self.event_dispatcher.buffer_limit = _EVENTS_AT_ONCE

        def on_task_received(message: Message) -> None:
            try:
                if self._speaks_amqp:
                    amqp.count_deliveries(message)
                if self._is_fit(message):
                    handle(message)
            except Exception as error:
                # Kombu counts a KeyError as a lost connection; here it is a message that Celery stumbled over.
                if isinstance(error, self.connection_errors) and not isinstance(error, KeyError):
                    raise
                logger.exception("a message cannot be handled")
                self.give_up(message, "not_deliverable", contract.malformed("the message cannot be handled"))

        return on_task_received

    def _is_fit(self, message: Message) -> bool:
        headers = message.headers
        if not isinstance(headers, Mapping) or not is_attributable(headers.get("id")):
            self.give_up(message, "no_id")
        elif not isinstance(headers.get("task"), str):
            self.on_unknown_message(None, message)
        elif headers.get("deliveries", 1) > _DELIVERIES_MAX:
            self.give_up(message, "delivered_too_often", Refusal(contract.INTERNAL_ERROR))
        else:
            return True
        return False

    # What Celery drops, by its own hooks.

    def on_unknown_message(self, body: Any, message: Message) -> None:  # noqa: ARG002  # Celery's signature
        """It names no task."""
        self.give_up(message, "no_task", contract.malformed("the message names no task"))

    def on_unknown_task(self, body: Any, message: Message, exc: Exception) -> None:  # noqa: ARG002
        """It names a task that is not here."""
        self.give_up(message, "unknown_task", contract.malformed("the message names a task that is not known here"))

    def on_invalid_task(self, body: Any, message: Message, exc: Exception) -> None:  # noqa: ARG002
        """Celery cannot make a request of it."""
        self.give_up(message, "invalid_task", contract.malformed("the message is not a request of its task"))

    def on_decode_error(self, message: Message, exc: Exception) -> None:  # noqa: ARG002
        """Its body cannot be decoded."""
        self.give_up(message, "not_decodable", contract.malformed("the body cannot be decoded"))

    def give_up(self, message: Message, reason: str, refusal: Refusal | None = None) -> None:
        """Answer the caller with `refusal`, if he can be found, and put the message with the dead letters.

        In this order: killed in between, the message is delivered again and this is done again.
        """
        request_id = message.headers.get("id") if isinstance(message.headers, Mapping) else None
        request_id = str(request_id) if is_attributable(request_id) else None
        if refusal is not None and request_id is not None:
            self.app.backend.send_answers([self._answer(message, refusal, request_id)])
        if self._has_leases:
            message.channel.bury(message.delivery_tag, reason, request_id)
            message.ack()
        elif self._speaks_amqp:
            amqp.bury(self.app, message, reason, request_id)
            message.ack_log_error(logger, self.connection_errors)
        else:
            message.reject_log_error(logger, self.connection_errors)  # into the broker's own dead letters, if any

    def _answer(self, message: Message, refusal: Refusal, request_id: str) -> Answer:
        now = time.time()
        properties = message.properties if isinstance(message.properties, Mapping) else {}
        delivery = Delivery(
            request_id=request_id,
            args=(),
            kwargs={},
            headers={**message.headers, "delivery_info": message.delivery_info},
            reply_to=properties.get("reply_to"),
            correlation_id=properties.get("correlation_id"),
            attempt=message.headers.get("deliveries", 1),
            worker=self.hostname,
            received_at=now,
        )
        reply = Reply.refused(request_id, None, refusal, stored=False)
        return Answer(reply, self.app.door.queue_for(delivery), delivery, now, now)
