"""An index of the revisions by time, for export and for pruning; of those that are not pruned."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the index; while it is built, on a long table some seconds, changes wait."""
    op.create_index(
        "ix_image_revisions_at",
        "image_revisions",
        ["at"],
        postgresql_where=sa.text("after <> '{}'::jsonb"),
        sqlite_where=sa.text("after <> '{}'"),
    )


def downgrade() -> None:
    """Drop the index."""
    op.drop_index("ix_image_revisions_at", "image_revisions")
