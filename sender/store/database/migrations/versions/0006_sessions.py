"""Sessions of the dashboard: until now the cookie held the token itself."""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanText, UtcTime

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the table; browsers log in again once."""
    op.create_table(
        "sessions",
        sa.Column("session_id", CleanText(), nullable=False),
        sa.Column("secret_hash", CleanText(), nullable=False),
        sa.Column("token_id", CleanText(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["token_id"],
            ["tokens.token_id"],
            name=op.f("fk_sessions_token_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_secret_hash"), "sessions", ["secret_hash"], unique=True)
    op.create_index(op.f("ix_sessions_token_id"), "sessions", ["token_id"])
