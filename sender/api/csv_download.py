"""Lists as CSV that a spreadsheet can open without running what a machine called itself; streamed page by page, so that
years of history need no memory.
"""

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
from sender.http_server import AnswerCutError

CSV_TYPE: Final = "text/csv; charset=utf-8"
PAGE_ROWS: Final = 500
FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What makes Excel, LibreOffice or Google Sheets read a cell as a formula (OWASP, CSV injection)."""

FetchPage = Callable[[str | None, int], Awaitable[tuple[Sequence[Any], str | None]]]

_log = structlog.get_logger("diskcast.api")


async def csv_download(record: type, name: str, fetch: FetchPage) -> StreamingResponse:
    """All of a list as an attachment.

    The first page is fetched before the answer begins, so that an error then is an error. One that comes later cuts the
    answer, which clients notice: a list that ends early isn't taken for a whole one.

    Args:
        record: the dataclass of its rows; the columns are its fields.
        name: of the file, without ``.csv``.
        fetch: a page of it, after a cursor, of so many rows.
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
            raise AnswerCutError from error


def _lines(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


def csv_cell(value: object) -> str:
    """The text of a cell; text that a spreadsheet would take for a formula begins with an apostrophe."""
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
