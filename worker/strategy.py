"""From a message to a request in the pool: Celery's strategy for a `BatchTask`, which decodes each body once."""

from collections.abc import Callable, Mapping
from typing import Any

from celery import signals
from celery.utils.time import timezone
from celery.worker.request import create_request_cls
from celery.worker.state import task_reserved, task_scheduled
from kombu import Message
from kombu.asynchronous.timer import to_timestamp
from kombu.utils.imports import symbol_by_name

from worker.message import read_message
from worker.task import BatchTask

Promise = Callable[..., Any]


def strategy(task: BatchTask, app: Any, consumer: Any, **_: Any) -> Callable[..., None]:
    """Celery's hook: the handler of each message for `task`.

    Like Celery's own, in the same order, but for three things. The body is decoded here, strictly, and handed on
    decoded, so that nothing behind this point reads JSON again. What is expired or revoked goes to the task, which
    answers it. And nothing is logged of a request before its outcome is known.
    """
    eventer = consumer.event_dispatcher
    sends_events = bool(eventer and eventer.enabled and task.send_events)
    request_class = create_request_cls(
        symbol_by_name(task.Request), task, consumer.pool, consumer.hostname, eventer, app=app
    )

    def handle(message: Message, _body: None, ack: Promise, reject: Promise, callbacks: list[Promise] | None) -> None:
        headers, body = read_message(message)
        request = request_class(
            message,
            on_ack=ack,
            on_reject=reject,
            app=app,
            hostname=consumer.hostname,
            eventer=eventer,
            task=task,
            connection_errors=consumer.connection_errors,
            body=body,
            headers=headers,
            decoded=True,
        )
        if signals.task_received.receivers:
            signals.task_received.send(sender=consumer, request=request)
        if sends_events:
            eventer.send("task-received", **_received(request))
        bucket = None if consumer.disable_rate_limits else consumer.task_buckets[task.name]
        if request.eta:
            _schedule(consumer, request, bucket)
        elif bucket:
            consumer._limit_task(request, bucket, 1)  # noqa: SLF001  # Celery's own strategy does so
        else:
            task_reserved(request)
            for callback in callbacks or ():
                callback(request)
            consumer.on_task_request(request)

    return handle


def _received(request: Any) -> Mapping[str, Any]:
    """The fields of Celery's `task-received` event."""
    return {
        "uuid": request.id,
        "name": request.name,
        "args": request.argsrepr,
        "kwargs": request.kwargsrepr,
        "root_id": request.root_id,
        "parent_id": request.parent_id,
        "retries": request.request_dict.get("retries", 0),
        "eta": request.eta and request.eta.isoformat(),
        "expires": request.expires and request.expires.isoformat(),
    }


def _schedule(consumer: Any, request: Any, bucket: Any) -> None:
    """Hold the request until its ETA; the message stays leased, and the window grows by one meanwhile."""
    due = to_timestamp(timezone.to_system(request.eta))  # the timer's clock is not the calendar's
    consumer.qos.increment_eventually()
    if bucket:
        entry = consumer.timer.call_at(due, consumer._limit_post_eta, (request, bucket, 1), priority=6)  # noqa: SLF001
    else:
        entry = consumer.timer.call_at(due, consumer.apply_eta_task, (request,), priority=6)
    request._eta_timer_entry = entry  # noqa: SLF001
    task_scheduled(request)
