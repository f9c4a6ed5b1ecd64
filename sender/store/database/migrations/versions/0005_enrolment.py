"""Add enrolment: machines' secrets, rooms' rules, rooms of tokens, and the keys of casts' tickets.

Known machines keep their rows and enrol at their next check-in with a valid token.
"""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanText, UtcTime

revision = "0005"
down_revision = "0004"

_MACHINE_TEXTS = {
    "enrolment": "'new'",
    "enrolled_by": "''",
    "approval_code": "''",
    "claimed_from": "''",
    "secret_hash": "''",
    "holder_hash": "''",
    "claimant_hash": "''",
}


def upgrade() -> None:
    """Add the columns and the table; no machine has a secret yet."""
    op.add_column("rooms", _text("enrolment", "''"))
    for name, default in _MACHINE_TEXTS.items():
        op.add_column("machines", _text(name, default))
    for name in ("enrolled_at", "claimed_at"):
        op.add_column("machines", sa.Column(name, UtcTime(), nullable=True))
    op.create_index(op.f("ix_machines_secret_hash"), "machines", ["secret_hash"])
    op.add_column("tokens", sa.Column("room_id", CleanText(), nullable=True))
    op.add_column("casts", _text("control_pin", "''"))
    op.create_table(
        "cast_keys",
        sa.Column("cast_id", CleanText(), nullable=False),
        sa.Column("join_key", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cast_id"], ["casts.cast_id"], name=op.f("fk_cast_keys_cast_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cast_id", name=op.f("pk_cast_keys")),
    )


def _text(name: str, default: str) -> sa.Column[str]:
    return sa.Column(name, CleanText(), nullable=False, server_default=sa.text(default))
