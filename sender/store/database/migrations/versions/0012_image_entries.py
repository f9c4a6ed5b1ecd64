"""Add entries of images: version numbers, notes, pins and origins.

Known images are numbered per name in the order in which they were first seen.
"""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanJson, CleanText, Number64, UtcTime

revision = "0012"
down_revision = "0011"

_NUMBER_KNOWN = """
INSERT INTO image_entries (image_id, name, number, note, pinned, added_by, origin, changed_at)
SELECT image_id, name, ROW_NUMBER() OVER (PARTITION BY name ORDER BY first_seen_at, image_id), '', {false}, '', NULL,
       first_seen_at
FROM images
"""


def upgrade() -> None:
    """Add the table, and number the known images."""
    op.create_table(
        "image_entries",
        sa.Column("image_id", CleanText(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("number", Number64, nullable=False),
        sa.Column("note", CleanText(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("added_by", CleanText(), nullable=False),
        sa.Column("origin", CleanJson(), nullable=True),
        sa.Column("changed_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("image_id", name=op.f("pk_image_entries")),
    )
    op.create_index(op.f("ix_image_entries_name_number"), "image_entries", ["name", "number"], unique=True)
    op.create_index(op.f("ix_image_entries_changed_at_image_id"), "image_entries", ["changed_at", "image_id"])
    false = "false" if op.get_bind().dialect.name == "postgresql" else "0"
    op.execute(sa.text(_NUMBER_KNOWN.format(false=false)))
