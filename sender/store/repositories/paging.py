"""Pages of a list: opaque cursors that mark the end of a page, and the query that continues there."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from sender.store.database.column_types import UtcTime, clean_text
from sender.store.database.errors import CursorError

LIMIT_MAX = 1000
"""Rows of a page: the largest room fits, and an answer stays below a few MB."""
CURSOR_BYTES_MAX = 2048
_INTEGER_MAX = 2**63 - 1

_T = TypeVar("_T")


def encode_cursor(values: Sequence[object]) -> str:
    """Return the cursor of a row whose sort columns have these values."""
    data = [value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value for value in values]
    return base64.urlsafe_b64encode(json.dumps(data).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, columns: Sequence[sa.ColumnElement[Any]]) -> list[Any]:
    """Return the sort columns' values in ``cursor``; raise :class:`CursorError` for one of another list."""
    try:
        if len(cursor) > CURSOR_BYTES_MAX:
            raise ValueError("too long")
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        data = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if not isinstance(data, list) or len(data) != len(columns):
            raise ValueError("other columns")
        return [_value(part, column) for part, column in zip(data, columns, strict=True)]
    except (ValueError, OverflowError, binascii.Error, RecursionError) as error:
        raise CursorError("the cursor isn't one of this list; start again without a cursor") from error


def _value(part: object, column: sa.ColumnElement[Any]) -> object:
    if isinstance(column.type, UtcTime):
        time = datetime.fromisoformat(part) if isinstance(part, str) else None
        if time is None or time.tzinfo is None:
            raise ValueError("no time")
        return time.astimezone(UTC)
    if isinstance(column.type, sa.Integer):
        if isinstance(part, bool) or not isinstance(part, int) or not 0 <= part <= _INTEGER_MAX:
            raise ValueError("no number")
        return part
    if not isinstance(part, str):
        raise ValueError("no text")
    return clean_text(part)


def read_page(
    connection: sa.Connection,
    query: sa.Select[Any],
    columns: Sequence[sa.ColumnElement[Any]],
    after: str | None,
    limit: int,
    record: Callable[[sa.RowMapping], _T],
    *,
    newest_first: bool = False,
) -> tuple[list[_T], str | None]:
    """Return a page and the cursor of the next one, None at the end.

    Args:
        connection: connection to read with.
        query: selects the rows, with all of ``columns`` among its columns, unsorted.
        columns: sort order; together unique, so that no row is repeated or left out.
        after: cursor, or None for the first page.
        limit: rows at most; silently cut to :data:`LIMIT_MAX`.
        record: turns a row into a record.
        newest_first: sort in descending order.
    """
    limit = max(1, min(limit, LIMIT_MAX))
    if after is not None:
        values = decode_cursor(after, columns)
        here = sa.tuple_(*columns)
        there = sa.tuple_(
            *(sa.literal(value, column.type) for value, column in zip(values, columns, strict=True))
        )
        query = query.where(here < there if newest_first else here > there)
    order = [column.desc() if newest_first else column.asc() for column in columns]
    rows = connection.execute(query.order_by(*order).limit(limit + 1)).mappings().all()
    cursor = None
    if len(rows) > limit:
        rows = rows[:limit]
        cursor = encode_cursor([rows[-1][column] for column in columns])
    return [record(row) for row in rows], cursor
