"""Add the machine patches on machines' disks to the history."""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanText

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Add the column."""
    op.add_column(
        "cast_machines", sa.Column("patch_id", CleanText(), nullable=False, server_default=sa.text("''"))
    )
