"""Add signed sets of machine patches."""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanText, Number64, UtcTime

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "patch_sets",
        sa.Column("room_id", CleanText(), nullable=False),
        sa.Column("image_id", CleanText(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("machine_count", Number64, nullable=False),
        sa.Column("bundle", sa.LargeBinary(), nullable=False),
        sa.Column("changed_at", UtcTime(), nullable=False),
        sa.Column("changed_by", CleanText(), nullable=False),
        sa.ForeignKeyConstraint(
            ["room_id"], ["rooms.room_id"], name=op.f("fk_patch_sets_room_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("room_id", "image_id", name=op.f("pk_patch_sets")),
    )
