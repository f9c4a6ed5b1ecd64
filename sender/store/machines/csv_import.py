"""CSV files of machines, as spreadsheets and inventory systems write them."""

from __future__ import annotations

import csv
import dataclasses
import io
import re

from protocol.errors import ConfigurationError
from sender.store.machines.identity import MACS_MAX, normal_mac
from sender.store.records.machines import ImportProblem

IMPORT_LINES_MAX = 10_000
"""Lines of a file: ten times the largest room, a transaction of a few seconds."""
IMPORT_BYTES_MAX = 8 << 20
PROBLEMS_MAX = 100
"""Problems of a file that are reported at once."""
CELL_LETTERS_MAX = 256

_HEADERS = {
    "name": "name hostname host computer computername pc machine machinename devicename",
    "mac": "mac macs macaddress macaddresses hwaddress hardwareaddress ethernet ethernetaddress physicaladdress mac1",
    "serial": "serial serialnumber serialno sn servicetag",
    "asset_tag": "assettag asset assetnumber assetno assetid inventorynumber inventoryno",
    "position": "position place seat location desk slot",
    "note": "note notes comment comments description remark",
}
_COLUMN_OF = {header: column for column, headers in _HEADERS.items() for header in headers.split()}


@dataclasses.dataclass(frozen=True, slots=True)
class ImportRow:
    """A valid line; ``line`` is its number in the file, from 1."""

    line: int
    name: str
    macs: tuple[str, ...]
    serial: str
    asset_tag: str
    position: str
    note: str


def read_rows(text: str) -> tuple[list[ImportRow], list[ImportProblem]]:
    """Return the valid rows of a CSV file, and the problems of the other lines.

    The first line names the columns, in any order and with the usual names (``MAC address``, ``Serial number`` …).
    Other columns are ignored. Cells are separated by commas, semicolons or tabs. A cell can hold several hardware
    addresses, separated by spaces, ``;`` or ``|``.
    """
    if len(text.encode(errors="replace")) > IMPORT_BYTES_MAX:
        return [], [ImportProblem(1, f"the file is larger than {IMPORT_BYTES_MAX >> 20} MiB: split it")]
    text = text.removeprefix("\ufeff")
    first, _, _ = text.lstrip("\r\n").partition("\n")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    rows: list[ImportRow] = []
    problems: list[ImportProblem] = []
    columns: list[str | None] | None = None
    seen: dict[str, int] = {}
    try:
        for cells in reader:
            line = reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns = [_COLUMN_OF.get(re.sub(r"[^a-z0-9]", "", cell.lower())) for cell in cells]
                problem = _header_problem(columns, cells)
                if problem:
                    return [], [ImportProblem(line, problem)]
                continue
            if len(rows) >= IMPORT_LINES_MAX:
                problems.append(ImportProblem(line, f"more than {IMPORT_LINES_MAX} machines: split the file"))
                break
            try:
                rows.append(_row(line, columns, cells, seen))
            except ConfigurationError as error:
                problems.append(ImportProblem(line, str(error)))
            if len(problems) >= PROBLEMS_MAX:
                text = f"the first {PROBLEMS_MAX} problems are shown; fix them first"
                problems.append(ImportProblem(line, text))
                break
    except csv.Error as error:
        problems.append(ImportProblem(reader.line_num, f"this isn't CSV: {error}; check the quotation marks"))
    if columns is None and not problems:
        problems.append(
            ImportProblem(
                1,
                "the file is empty: its first line must name the columns: name,mac,serial,asset_tag,position",
            )
        )
    return rows, problems


def _header_problem(columns: list[str | None], cells: list[str]) -> str:
    known = [column for column in columns if column]
    twice = sorted({column for column in known if known.count(column) > 1})
    if twice:
        return f"two columns stand for {twice[0]}: remove one of them"
    if not {"name", "mac", "serial", "asset_tag"} & set(known):
        shown = ", ".join(cell.strip()[:40] for cell in cells[:6])
        return f"no column identifies machines ({shown}): start with a line like name,mac,serial,asset_tag,position"
    return ""


def _row(line: int, columns: list[str | None], cells: list[str], seen: dict[str, int]) -> ImportRow:
    if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
        raise ConfigurationError(
            f"{len(cells)} cells under {len(columns)} column names: quote cells that contain the separator"
        )
    values = {column: cell.strip() for column, cell in zip(columns, cells, strict=False) if column}
    for column, value in values.items():
        if len(value) > CELL_LETTERS_MAX or any(ord(letter) < 32 for letter in value):
            raise ConfigurationError(
                f"{column}: at most {CELL_LETTERS_MAX} letters, and no control characters or line breaks"
            )
    macs = _macs(values.get("mac", ""))
    name = values.get("name", "") or values.get("asset_tag", "") or values.get("serial", "")
    name = name or (macs[0] if macs else "")
    if not name:
        raise ConfigurationError("the line identifies no machine: add a name or a hardware address")
    for identifier in (*(f"hardware address {mac}" for mac in macs), f"name {name}"):
        if identifier in seen:
            raise ConfigurationError(
                f"{identifier} is in line {seen[identifier]} too: remove one of the lines"
            )
        seen[identifier] = line
    return ImportRow(
        line,
        name,
        macs,
        values.get("serial", ""),
        values.get("asset_tag", ""),
        values.get("position", ""),
        values.get("note", ""),
    )


def _macs(cell: str) -> tuple[str, ...]:
    if not cell:
        return ()
    try:
        return (normal_mac(cell),)
    except ConfigurationError:
        pieces = [piece for piece in re.split(r"[\s;|,/]+", cell) if piece]
        if len(pieces) < 2:
            raise
    macs = tuple(dict.fromkeys(normal_mac(piece) for piece in pieces))
    if len(macs) > MACS_MAX:
        raise ConfigurationError(
            f"{len(macs)} hardware addresses are too many for a machine: give at most {MACS_MAX}"
        )
    return macs
