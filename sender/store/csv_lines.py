"""Records as lines of CSV that a spreadsheet can open without running what a machine called itself."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What makes Excel, LibreOffice or Google Sheets read a cell as a formula (OWASP, CSV injection)."""


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


def csv_lines(record: type[Any], records: Iterable[Any]) -> Iterator[str]:
    """A header with the record's field names, then a line (with its line end) for each of ``records``."""
    names = [field.name for field in dataclasses.fields(record)]
    buffer = io.StringIO()
    writer = csv.writer(buffer)

    def line(cells: Iterable[str]) -> str:
        writer.writerow(cells)
        text = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        return text

    yield line(names)
    for item in records:
        yield line(csv_cell(getattr(item, name)) for name in names)
