"""Add boots over the network: boot tokens, rules of rooms for them, and the last boot of each machine.

Rooms keep their behaviour: unknown machines boot from their disks, unless the daemon's configuration says otherwise.
"""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanText, UtcTime

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the columns and the table."""
    op.add_column("rooms", _text("unknown_machines"))
    op.add_column("rooms", sa.Column("boot_menu", sa.Boolean(), nullable=False, server_default=sa.true()))
    for name in ("uuid", "next_boot", "boot_action", "boot_text", "boot_firmware"):
        op.add_column("machines", _text(name))
    op.add_column("machines", sa.Column("booted_at", UtcTime(), nullable=True))
    op.create_index(op.f("ix_machines_uuid"), "machines", ["uuid"])
    op.create_table(
        "boot_tokens",
        sa.Column("token_hash", CleanText(), nullable=False),
        sa.Column("mac", CleanText(), nullable=False),
        sa.Column("machine_id", CleanText(), nullable=True),
        sa.Column("room_id", CleanText(), nullable=True),
        sa.Column("needs_approval", sa.Boolean(), nullable=False),
        sa.Column("issued_at", UtcTime(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.Column("issued_by", CleanText(), nullable=False),
        sa.Column("run_hash", CleanText(), nullable=False),
        sa.Column("used_at", UtcTime(), nullable=True),
        sa.Column("misused_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_boot_tokens")),
    )
    op.create_index(op.f("ix_boot_tokens_mac_issued_at"), "boot_tokens", ["mac", "issued_at"])
    op.create_index(op.f("ix_boot_tokens_issued_at"), "boot_tokens", ["issued_at"])


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, CleanText(), nullable=False, server_default=sa.text("''"))
