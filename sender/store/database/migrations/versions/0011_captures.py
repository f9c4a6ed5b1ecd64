"""Add captures: images made of machines' disks over the network."""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanJson, CleanText, Number64, UtcTime

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the table."""
    texts = (
        "machine_name",
        "owner",
        "location",
        "state",
        "created_by",
        "error",
        "disk",
        "disk_model",
        "disk_serial",
    )
    op.create_table(
        "captures",
        sa.Column("capture_id", CleanText(), nullable=False),
        sa.Column("machine_id", CleanText(), nullable=False),
        sa.Column("plan", CleanJson(), nullable=False),
        *(sa.Column(name, CleanText(), nullable=False) for name in texts),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("started_at", UtcTime(), nullable=True),
        sa.Column("ended_at", UtcTime(), nullable=True),
        *(
            sa.Column(name, Number64, nullable=False)
            for name in ("raw_bytes", "done_bytes", "uploaded_bytes", "kept_bytes")
        ),
        sa.Column("image_id", CleanText(), nullable=False),
        sa.Column("secret_hash", CleanText(), nullable=False),
        sa.PrimaryKeyConstraint("capture_id", name=op.f("pk_captures")),
    )
    op.create_index(op.f("ix_captures_created_at_capture_id"), "captures", ["created_at", "capture_id"])
    op.create_index(op.f("ix_captures_image_id"), "captures", ["image_id"])
