"""The request ledger: every id already answered, with the reply that a resend gets again."""

from datetime import datetime

from sqlalchemy import BigInteger, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.metadata import Moment, Table


class AnsweredRequest(Table):
    """One answered request; its primary key is what makes an update happen at most once."""

    __tablename__ = "requests"

    request_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    #: SHA-256 of the body that was answered, hex; null where the body could not be read.
    digest: Mapped[str | None] = mapped_column(String(64))
    caller: Mapped[str] = mapped_column(String(64))
    #: The reply document, to the byte.
    reply: Mapped[str] = mapped_column(Text)
    code: Mapped[str | None] = mapped_column(String(32))
    image_id: Mapped[int | None] = mapped_column(BigInteger)
    answered_at: Mapped[datetime] = mapped_column(Moment, index=True)
