"""The application that Flower runs as: it only watches, so it needs the broker's address and none of our code."""

import os

from celery import Celery
from kombu import Connection, Queue

BROKER_URL = os.environ.get("ARIES_BROKER_URL", "redis://127.0.0.1:6379/0")

app = Celery("flower", broker=BROKER_URL)
# What the broker tab shows until a worker has said what it takes from.
app.conf.task_queues = [Queue("image.update"), Queue("image.update.bulk")]
app.conf.task_default_queue = "image.update"
# Whoever reads from a broker also gives back what other readers seem to have died over, by its own idea of how long
# that takes. With keys of its own Flower never sees the requests that workers hold.
app.conf.broker_transport_options = {
    "unacked_key": "flower:unacked",
    "unacked_index_key": "flower:unacked.index",
    "unacked_mutex_key": "flower:unacked.mutex",
}
if master := os.environ.get("ARIES_SENTINEL_MASTER"):
    app.conf.broker_transport_options["master_name"] = master
# The broker tab looks for certificates here, and not in the URL.
app.conf.broker_use_ssl = Connection(BROKER_URL).ssl
