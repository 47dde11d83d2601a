"""The images themselves: one row each, the name unique."""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.metadata import Moment, Table


class Image(Table):
    """An operating system image, as the last committed update left it.

    The unique constraint on the name decides who gets a name (seed, note 1), whatever was looked up before.
    """

    __tablename__ = "images"
    __table_args__ = (CheckConstraint("os_type IN ('linux', 'windows')", name="os_type"),)

    # SQLite numbers rows by itself only where the type is spelt INTEGER.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    os_type: Mapped[str] = mapped_column(String(16))
    os_name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str] = mapped_column(Text)
    source_path: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Moment)
    updated_at: Mapped[datetime] = mapped_column(Moment)
    #: Grows by one with every change; an adopted table starts at 1.
    revision: Mapped[int] = mapped_column(BigInteger, server_default="1")
