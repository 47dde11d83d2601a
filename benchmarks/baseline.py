"""The baseline: the worker that the tutorials of Celery and SQLAlchemy lead to. One message, one session, one commit.

Run with `celery -A benchmarks.baseline worker`.
"""

from datetime import UTC, datetime
from typing import Any

from celery import Celery
from celery.signals import worker_process_init
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from models import AnsweredRequest, Image, ImageRevision
from worker.settings import load_settings

SETTINGS = load_settings()
FIELDS = ("name", "os_type", "os_name", "description")

app = Celery("baseline", broker=SETTINGS.broker_url, backend=SETTINGS.result_url)
app.conf.update(task_default_queue="image.update", task_acks_late=True, worker_send_task_events=True)
engine = create_engine(SETTINGS.database_url)


@worker_process_init.connect
def after_fork(**_: Any) -> None:
    """Each child opens connections of its own."""
    engine.dispose(close=False)


@app.task(name="image.update", bind=True)
def update_image(self: Any, id: int, **changes: str) -> dict[str, Any]:  # noqa: A002  # the message's name
    """Answered before? Lock the row, look whether the name is free, change it, write it down, commit."""
    with Session(engine) as session:
        if answered := session.get(AnsweredRequest, self.request.id):
            return {"status": 200, "again": answered.reply}
        image = session.scalars(select(Image).where(Image.id == id).with_for_update()).one_or_none()
        if image is None:
            return {"status": 404}
        name = changes.get("name", image.name)
        if session.scalars(select(Image.id).where(Image.name == name, Image.id != id)).first() is not None:
            return {"status": 400}
        before = {field: getattr(image, field) for field in FIELDS}
        for field, value in changes.items():
            setattr(image, field, value)
        image.revision += 1
        image.updated_at = datetime.now(UTC)
        after = {field: getattr(image, field) for field in FIELDS}
        session.add(
            ImageRevision(
                image_id=id, revision=image.revision, before=before, after=after, request_id=self.request.id,
                caller="baseline", at=image.updated_at,
            )
        )  # fmt: skip
        session.add(
            AnsweredRequest(request_id=self.request.id, caller="baseline", reply="{}", answered_at=image.updated_at)
        )
        session.commit()
        return {"status": 200, "image": {"id": id, **after}}
