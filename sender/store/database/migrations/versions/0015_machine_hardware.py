"""Add the hardware of machines."""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanJson, CleanText, UtcTime

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "machine_hardware",
        sa.Column("machine_id", CleanText(), nullable=False),
        sa.Column("hardware", CleanJson(), nullable=False),
        sa.Column("search_text", CleanText(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["machine_id"],
            ["machines.machine_id"],
            name=op.f("fk_machine_hardware_machine_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("machine_id", name=op.f("pk_machine_hardware")),
    )
