"""What each change of an image changed, when, for whom and by which request."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.metadata import Moment, Table

_Document = JSON().with_variant(JSONB, "postgresql")


class ImageRevision(Table):
    """One recorded change; written in the transaction that makes it.

    Its line is never deleted: the request id in it is why a request from long ago is not applied a second time. What
    is pruned is what it changed: `before` and `after` are then empty.
    """

    __tablename__ = "image_revisions"
    __table_args__ = (
        # Those that are not pruned, by time.
        Index(
            "ix_image_revisions_at",
            "at",
            postgresql_where=text("after <> '{}'::jsonb"),
            sqlite_where=text("after <> '{}'"),
        ),
    )

    image_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("images.id"), primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    #: The four updatable fields as they were, and as they are from this revision on; both empty when pruned.
    before: Mapped[dict[str, Any]] = mapped_column(_Document)
    after: Mapped[dict[str, Any]] = mapped_column(_Document)
    request_id: Mapped[str] = mapped_column(String(255), index=True)
    caller: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime] = mapped_column(Moment)
    traceparent: Mapped[str | None] = mapped_column(String(55))
