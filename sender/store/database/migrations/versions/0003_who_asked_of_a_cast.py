"""What is asked of a cast by way of the database says who asked and why, so that the cast's account can."""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanText

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add both; what a daemon of before asks, or has asked, is an operator's without a reason."""
    for name, default in (("actor", "the operator"), ("reason", sa.text("''"))):
        op.add_column("cast_requests", sa.Column(name, CleanText(), nullable=False, server_default=default))
