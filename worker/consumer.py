"""Celery's consumer, made safe and tuned for batches."""

from collections.abc import Callable, Mapping
from typing import Any

from celery.worker import consumer as celery_consumer
from kombu import Message

from worker.message import is_attributable
from worker.task import BatchTask

#: Events that go out in one message, if one turn of the loop brings so many; Celery's 24 cost a round trip each.
_EVENTS_AT_ONCE = 1000


class Consumer(celery_consumer.Consumer):  # type: ignore[misc]  # Celery has no types
    """A consumer that no message can stop."""

    def start(self) -> None:
        """Consume until the worker stops, with the window that the pool asks for; Celery counts processes."""
        self.initial_prefetch_count = self.max_prefetch_count
        super().start()

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        """Celery's handler, for messages that it can look at without harm."""
        handle = super().create_task_handler(*args, **kwargs)
        if self.event_dispatcher is not None:
            self.event_dispatcher.buffer_limit = _EVENTS_AT_ONCE

        def on_task_received(message: Message) -> None:
            headers = message.headers
            task = self.app.tasks.get(headers.get("task")) if isinstance(headers, Mapping) else None
            if isinstance(task, BatchTask) and not is_attributable(headers.get("id")):
                self.on_unknown_message(None, message)  # nobody to answer
            else:
                handle(message)

        return on_task_received
