"""Images, their revisions and the request ledger; adopts an `images` table that is already there."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from models.metadata import Moment

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
DOCUMENT = sa.JSON().with_variant(JSONB, "postgresql")


def upgrade() -> None:
    """Create what is missing."""
    if sa.inspect(op.get_bind()).has_table("images"):
        _adopt_images()
    else:
        _create_images()
    op.create_table(
        "image_revisions",
        sa.Column("image_id", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("before", DOCUMENT, nullable=False),
        sa.Column("after", DOCUMENT, nullable=False),
        sa.Column("request_id", sa.String(255), nullable=False),
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("at", Moment, nullable=False),
        sa.Column("traceparent", sa.String(55)),
        sa.PrimaryKeyConstraint("image_id", "revision", name="pk_image_revisions"),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="fk_image_revisions_image_id"),
    )
    op.create_index("ix_image_revisions_request_id", "image_revisions", ["request_id"])
    op.create_table(
        "requests",
        sa.Column("request_id", sa.String(255), nullable=False),
        sa.Column("digest", sa.String(64)),
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("reply", sa.Text, nullable=False),
        sa.Column("code", sa.String(32)),
        sa.Column("image_id", sa.BigInteger),
        sa.Column("answered_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_requests"),
    )
    op.create_index("ix_requests_answered_at", "requests", ["answered_at"])


def _create_images() -> None:
    op.create_table(
        "images",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("os_type", sa.String(16), nullable=False),
        sa.Column("os_name", sa.String(255), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("source_path", sa.Text, nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("updated_at", Moment, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
        sa.UniqueConstraint("name", name="uq_images_name"),
        sa.CheckConstraint("os_type IN ('linux', 'windows')", name=op.f("ck_images_os_type")),
    )


def _adopt_images() -> None:
    """The platform's own table: add what we need beside what it has, and refuse what would fail later."""
    inspector = sa.inspect(op.get_bind())
    columns = {column["name"]: column for column in inspector.get_columns("images")}
    needed = ("id", "name", "os_type", "os_name", "description", "source_path", "created_at", "updated_at")
    if missing := [name for name in needed if name not in columns]:
        raise RuntimeError(f"the images table that is there lacks the columns {', '.join(missing)}")
    _refuse_times_without_zone(columns)
    _refuse_rows_out_of_contract(needed)
    with op.batch_alter_table("images") as table:
        if "revision" not in columns:
            table.add_column(sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"))
        if not _name_is_unique(inspector):
            table.create_unique_constraint("uq_images_name", ["name"])


def _refuse_times_without_zone(columns: dict[str, Any]) -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for name in ("created_at", "updated_at"):
        if not getattr(columns[name]["type"], "timezone", False):
            raise RuntimeError(
                f"images.{name} has no time zone: ALTER TABLE images ALTER COLUMN {name} TYPE timestamptz"
                f" USING {name} AT TIME ZONE 'UTC' makes it one, if its times are in UTC"
            )


def _refuse_rows_out_of_contract(needed: tuple[str, ...]) -> None:
    table = sa.table("images", *(sa.column(name) for name in needed))
    empty = sa.or_(*(table.c[name].is_(None) for name in needed))
    wrong = sa.select(table.c.id).where(sa.or_(empty, table.c.os_type.not_in(["linux", "windows"]))).limit(5)
    if ids := [str(row.id) for row in op.get_bind().execute(wrong)]:
        raise RuntimeError(f"images {', '.join(ids)} (and maybe more) have a null, or an os_type but linux or windows")


def _name_is_unique(inspector: sa.Inspector) -> bool:
    if any(unique["column_names"] == ["name"] for unique in inspector.get_unique_constraints("images")):
        return True
    return any(
        index["unique"] and index["column_names"] == ["name"] and not _is_partial(index)
        for index in inspector.get_indexes("images")
    )


def _is_partial(index: Any) -> bool:
    return any(option.endswith("_where") for option in index.get("dialect_options", {}))


def downgrade() -> None:
    """Drop the ledger and the revisions; the images, which may be the platform's, stay."""
    op.drop_table("requests")
    op.drop_table("image_revisions")
