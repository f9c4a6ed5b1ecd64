"""Give audit entries a unique key, so that an entry that is written again after a lost answer is recorded once."""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanText

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the key; existing entries have none."""
    op.add_column("audit", sa.Column("entry_key", CleanText(), nullable=True))
    op.create_index(op.f("ix_audit_entry_key"), "audit", ["entry_key"], unique=True)
