"""Add the contents of images that were read."""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanJson, CleanText, UtcTime

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "image_contents",
        sa.Column("image_id", CleanText(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("contents", CleanJson(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("image_id", name=op.f("pk_image_contents")),
    )
