"""Celery's settings: each departure from a default, with its reason."""

from kombu import Exchange, Queue

from aries_images import contract
from worker.settings import load_settings

SETTINGS = load_settings()
SPEAKS_AMQP = SETTINGS.broker_url.startswith(("amqp://", "amqps://", "pyamqp://"))

broker_url = SETTINGS.broker_url
result_backend = SETTINGS.result_url
include = ["tasks.update_image", "tasks.settle_request", "tasks.prune_ledger"]

# Two queues: one named like the task, and one for what can wait. Without an exchange of their own: nothing to lose on
# the way into them.
task_queues = [
    Queue(name, Exchange(""), routing_key=name, queue_arguments=contract.AMQP_ARGUMENTS if SPEAKS_AMQP else None)
    for name in contract.QUEUES
]
task_default_queue = task_default_routing_key = contract.QUEUE
task_default_exchange = ""

# JSON alone: pickle and YAML run code.
accept_content = result_accept_content = ["json"]
task_serializer = result_serializer = "json"
event_serializer = "orjson"  # JSON too, written faster

# A request is acknowledged when it is answered; killed before that, it is delivered again and answered from the
# ledger. A lost pool child is tried again a few times, never for ever, and then answered InternalError.
task_acks_late = True
task_acks_on_failure_or_timeout = True
task_reject_on_worker_lost = False
task_retry_on_worker_lost = True
task_annotations = {name: {"max_retries": 3, "default_retry_delay": 1} for name in ("image.update", "image.settle")}
# Work takes milliseconds; only a database that is away takes longer, and then it is waited for this long.
task_time_limit = SETTINGS.retry_seconds + 30

# Whatever is waiting runs as one batch. One batch at a time is enough: the second would wait for the first one's
# locks, and both for the interpreter.
worker_pool = "worker.group_commit:Pool"
worker_concurrency = 1
worker_consumer = "worker.consumer:Consumer"
worker_prefetch_multiplier = 1
worker_send_task_events = True
task_send_sent_event = False
worker_hijack_root_logger = True
worker_cancel_long_running_tasks_on_connection_loss = False

# Every result expires, faults too; a result store that is away is waited for, but not for ever.
result_expires = SETTINGS.result_ttl
result_backend_always_retry = True
result_backend_max_retries = 20
result_backend_max_sleep_between_retries_ms = 500
result_backend_thread_safe = True
redis_socket_timeout = 3
redis_socket_connect_timeout = 3
redis_socket_keepalive = True
redis_retry_on_timeout = True

# Redis away, failing over or full is a reason to try again, never to exit.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
broker_channel_error_retry = True
broker_transport_options = {
    "lease_seconds": SETTINGS.lease_seconds,
    "dead_letters_max": SETTINGS.dead_letters_max,
    "dead_letters_warn": SETTINGS.dead_letters_warn,
    # `send_task("image.update", …)` of a stock caller who names no queue: taken from Celery's default list, which may
    # be another application's, so nothing else is.
    "strays_list": "celery",
    "strays_task": contract.TASK,
    "strays_queue": contract.QUEUE,
    # What is taken after everything else, and leaves it its room.
    "queues_behind": (contract.BULK_QUEUE,),
    "unacked_restore_interval": 1,
    # A connection that is dead without either end knowing is found out in twice this time.
    "health_check_interval": 3,
    "socket_timeout": 3,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
}
if SPEAKS_AMQP:
    # Quorum queues: a message is on most of the servers before it is confirmed, and each delivery is counted. What is
    # sent is sent when that is confirmed; the heartbeat ends a connection that nobody hears any more.
    broker_transport_options = {"confirm_publish": True, "read_timeout": 5, "write_timeout": 5}
    broker_heartbeat = 10
    task_create_missing_queue_type = "quorum"
if SETTINGS.sentinel_master:
    broker_transport_options["master_name"] = SETTINGS.sentinel_master
    result_backend_transport_options = {"master_name": SETTINGS.sentinel_master}
