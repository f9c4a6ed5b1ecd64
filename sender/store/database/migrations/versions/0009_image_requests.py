"""Add requests of machines to be imaged, which technicians make at their consoles."""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanText, UtcTime

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "image_requests",
        sa.Column("machine_id", CleanText(), nullable=False),
        *(
            sa.Column(name, CleanText(), nullable=False)
            for name in ("code", "image_id", "image_name", "disk", "address")
        ),
        sa.Column("asked_at", UtcTime(), nullable=False),
        *(sa.Column(name, CleanText(), nullable=False) for name in ("state", "cast_id", "decided_by")),
        sa.ForeignKeyConstraint(
            ["machine_id"],
            ["machines.machine_id"],
            name=op.f("fk_image_requests_machine_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("machine_id", name=op.f("pk_image_requests")),
    )
    op.create_index(op.f("ix_image_requests_state_asked_at"), "image_requests", ["state", "asked_at"])
