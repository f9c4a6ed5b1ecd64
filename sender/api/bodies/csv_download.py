"""Lists as CSV downloads, streamed page by page, with cells that a spreadsheet can't run as formulas."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from starlette.responses import StreamingResponse

from protocol.errors import DiskcastError
from sender.http.server import ResponseAbortedError

CSV_TYPE: Final = "text/csv; charset=utf-8"
PAGE_ROWS: Final = 500
FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""First characters by which Excel, LibreOffice or Google Sheets read a cell as a formula (OWASP, CSV injection)."""

FetchPage = Callable[[str | None, int], Awaitable[tuple[Sequence[Any], str | None]]]

_log = structlog.get_logger("diskcast.api")


async def csv_download(record: type, name: str, fetch: FetchPage) -> StreamingResponse:
    """Return a whole list as an attachment.

    The first page is fetched before the response starts, so that its error gets an error response. A later error cuts
    the response off, which clients notice: a partial list isn't mistaken for a complete one.

    Args:
        record: the dataclass of the rows; its fields are the columns.
        name: the file's name without ``.csv``.
        fetch: returns a page after a cursor, of at most this many rows.
    """
    columns = [field.name for field in dataclasses.fields(record)]
    first = await fetch(None, PAGE_ROWS)
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return StreamingResponse(_rows(columns, first, fetch), media_type=CSV_TYPE, headers=headers)


async def _rows(
    columns: list[str], first: tuple[Sequence[Any], str | None], fetch: FetchPage
) -> AsyncIterator[bytes]:
    items, cursor = first
    yield _lines([columns])
    while True:
        yield _lines([csv_cell(getattr(item, column)) for column in columns] for item in items)
        if cursor is None:
            return
        try:
            items, cursor = await fetch(cursor, PAGE_ROWS)
        except DiskcastError as error:
            _log.warning("download_cut", reason=str(error))
            raise ResponseAbortedError from error


def _lines(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


def csv_cell(value: object) -> str:
    """Return the text of a cell; an apostrophe precedes text that a spreadsheet would run as a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, int | float):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    text = json.dumps(value, ensure_ascii=False, sort_keys=True) if isinstance(value, dict) else str(value)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
