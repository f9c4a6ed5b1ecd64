"""Rename limiter to bottleneck, in machines' results and in casts' timelines."""

import json
import zlib

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_ROWS_AT_ONCE = 16
"""Timelines in memory at a time: each unpacks to a few hundred kilobytes."""


def upgrade() -> None:
    """Rename the column, then the key of every point of every timeline."""
    op.alter_column("cast_machines", "limiter", new_column_name="bottleneck")
    timelines = sa.table("cast_timelines", sa.column("cast_id"), sa.column("points"))
    connection = op.get_bind()
    cast_ids = connection.execute(sa.select(timelines.c.cast_id)).scalars().all()
    for start in range(0, len(cast_ids), _ROWS_AT_ONCE):
        some = cast_ids[start : start + _ROWS_AT_ONCE]
        rows = connection.execute(sa.select(timelines).where(timelines.c.cast_id.in_(some))).all()
        for cast_id, packed in rows:
            renamed = _renamed(packed)
            if renamed is not None:
                connection.execute(
                    sa.update(timelines).where(timelines.c.cast_id == cast_id).values(points=renamed)
                )


def _renamed(packed: bytes) -> bytes | None:
    """Return the packed points with the new key; None for unreadable ones, which stay as they are."""
    try:
        # As Casts.timeline reads them: a stream without its end is readable as long as its text is complete.
        points = json.loads(zlib.decompressobj().decompress(packed))
        for point in points:
            if "limiter" in point:
                point["bottleneck"] = point.pop("limiter")
    except (zlib.error, ValueError, TypeError, AttributeError):
        return None
    return zlib.compress(json.dumps(points, separators=(",", ":")).encode())
