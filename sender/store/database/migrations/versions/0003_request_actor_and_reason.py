"""Record actor and reason of a requested command, for the summary of its cast."""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanText

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add both columns; requests of older daemons count as an operator's, without a reason."""
    for name, default in (("actor", "the operator"), ("reason", sa.text("''"))):
        op.add_column("cast_requests", sa.Column(name, CleanText(), nullable=False, server_default=default))
