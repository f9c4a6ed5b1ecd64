"""Add the templates of rooms and the variables of machines."""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanJson, CleanText, UtcTime

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "room_templates",
        sa.Column("room_id", CleanText(), nullable=False),
        sa.Column("text", CleanText(), nullable=False),
        sa.Column("changed_at", UtcTime(), nullable=False),
        sa.Column("changed_by", CleanText(), nullable=False),
        sa.ForeignKeyConstraint(
            ["room_id"], ["rooms.room_id"], name=op.f("fk_room_templates_room_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("room_id", name=op.f("pk_room_templates")),
    )
    op.create_table(
        "machine_variables",
        sa.Column("machine_id", CleanText(), nullable=False),
        sa.Column("variables", CleanJson(), nullable=False),
        sa.Column("changed_at", UtcTime(), nullable=False),
        sa.Column("changed_by", CleanText(), nullable=False),
        sa.ForeignKeyConstraint(
            ["machine_id"],
            ["machines.machine_id"],
            name=op.f("fk_machine_variables_machine_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("machine_id", name=op.f("pk_machine_variables")),
    )
