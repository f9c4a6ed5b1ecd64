"""Add signatures: those of images, the signed version of a cast's image, and lines that allowed an unsigned image.

Images of earlier versions are unsigned until an operator signs them.
"""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanText, UtcTime

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the columns and the table."""
    for table, names in {
        "images": ("signer", "signed_name", "version"),
        "casts": ("image_signer", "image_version"),
    }.items():
        for name in names:
            op.add_column(table, sa.Column(name, CleanText(), nullable=False, server_default=sa.text("''")))
    op.add_column(
        "cast_machines",
        sa.Column("unsigned_allowed", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.create_table(
        "image_signatures",
        sa.Column("image_id", CleanText(), nullable=False),
        sa.Column("signed", sa.LargeBinary(), nullable=False),
        sa.Column("public_key", CleanText(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("image_id", name=op.f("pk_image_signatures")),
    )
    op.create_index(op.f("ix_image_signatures_at_image_id"), "image_signatures", ["at", "image_id"])
