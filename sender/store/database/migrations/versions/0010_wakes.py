"""Add wakes, and the size and distance of a room's waves.

Rooms of earlier versions use the daemon's.
"""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanJson, CleanText, UtcTime

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the columns and the table."""
    op.add_column("rooms", sa.Column("wake_wave_size", sa.Integer(), nullable=True))
    op.add_column("rooms", sa.Column("wake_pause_s", sa.Double(), nullable=True))
    op.create_table(
        "wakes",
        sa.Column("wake_id", CleanText(), nullable=False),
        sa.Column("room_id", CleanText(), nullable=True),
        sa.Column("cast_id", CleanText(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("created_by", CleanText(), nullable=False),
        sa.Column("wave_size", sa.Integer(), nullable=False),
        sa.Column("pause_s", sa.Double(), nullable=False),
        sa.Column("machines", CleanJson(), nullable=False),
        sa.Column("interfaces", CleanJson(), nullable=False),
        sa.Column("problem", CleanText(), nullable=False),
        sa.Column("ended_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("wake_id", name=op.f("pk_wakes")),
    )
    op.create_index(op.f("ix_wakes_created_at_wake_id"), "wakes", ["created_at", "wake_id"])
