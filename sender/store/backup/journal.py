"""SQLite's change journal: every confirmed change stands in a second file before it is confirmed.

SQLite's write-ahead log protects from a crash, not from a damaged file. So each transaction's changed rows are appended
to ``DATABASE.changes.NUMBER`` and synced before the transaction commits; a backup begins a new such file. The last
backup and the files since then give every confirmed row again (:mod:`sender.store.backup.backup`).

What changed is noted by temporary triggers of each connection, so no statement can forget it; changes of fleeting
columns alone aren't noted. An entry holds the rows as they are at the end of the transaction, so applying entries twice
does no harm. A line is ``CRC32 JSON``; one that isn't whole was never confirmed.

The order is: sync the entry, then commit. An entry whose commit fails is cut off again; if the power fails between
them, the entry is carried out at the next start, as nobody was told that it had failed.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sender.store.backup.crc_lines import pack_line, unpack_line, write_all
from sender.store.database import tables

LINE_BYTES_MAX = 64 << 20
"""An entry: an import of 10,000 machines takes 10 MB."""
_JOURNALLED = [table for table in tables.metadata.sorted_tables if table is not tables.store_state]
_NOTES = "journal_changes"


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """The row of ``store_state``.

    Attributes:
        database_id: which database this is.
        sequence: number of the last entry that is in the database.
        segment: number of the file that the next entry goes to; the file's entries have this number or a higher one.
    """

    database_id: str
    sequence: int
    segment: int


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A transaction: rows as they were at its end (None: removed), by table and key."""

    sequence: int
    changes: list[tuple[str, list[Any], dict[str, Any] | None]]


@dataclasses.dataclass(slots=True)
class Segment:
    """A file of entries, as read.

    Attributes:
        database_id: whose it is; empty if its first line can't be read.
        revision: of the schema that its entries were written with.
        bad_line_count: lines that can't be read; an unfinished last line isn't one.
    """

    number: int
    path: Path
    database_id: str = ""
    revision: str = ""
    bad_line_count: int = 0


def segment_path(database: Path, number: int) -> Path:
    """The file of the entries from ``number`` on."""
    return database.with_name(f"{database.name}.changes.{number:012d}")


def find_segments(database: Path) -> list[Segment]:
    """The files beside ``database``, in order, with their first lines read."""
    segments = []
    for path in database.parent.glob(f"{database.name}.changes.*"):
        number = path.name.rpartition(".")[2]
        if number.isdigit():
            segment = Segment(int(number), path)
            with path.open("rb") as file:
                header = unpack_line(file.readline(LINE_BYTES_MAX))
            if isinstance(header, dict):
                segment.database_id = str(header.get("database", ""))
                segment.revision = str(header.get("revision", ""))
            segments.append(segment)
    return sorted(segments, key=lambda segment: segment.number)


def read_entries(segment: Segment) -> Iterator[Entry]:
    """The entries of a file that can be read; the others are counted in ``bad_line_count``."""
    with segment.path.open("rb") as file:
        segment.bad_line_count = 0 if segment.database_id else 1
        file.readline(LINE_BYTES_MAX)
        while line := file.readline(LINE_BYTES_MAX):
            if not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
                return
            data = unpack_line(line)
            if not isinstance(data, dict):
                segment.bad_line_count += 1
                continue
            yield Entry(int(data["n"]), [(table, key, _unpack(row)) for table, key, row in data["c"]])


def start_segment(database: Path, state: State, revision: str) -> None:
    """Begin the file of ``state.segment``, so that it survives the power; one that is there is emptied."""
    path = segment_path(database, state.segment)
    header = {"journal": 1, "database": state.database_id, "revision": revision}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, pack_line(header))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(database.parent)


def sync_directory(directory: Path) -> None:
    """Make new and renamed files of a folder survive the power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_state(connection: sa.Connection) -> State:
    """Where the journal stands, as the database says."""
    row = connection.exec_driver_sql("SELECT database_id, sequence, segment FROM store_state").one()
    return State(*row)


def apply_entries(connection: sa.Connection, entries: Iterable[Entry], after: int) -> list[int]:
    """Carry out the entries after number ``after``; returns their numbers, in order.

    Of several entries with the same number the last one counts: the others' transactions failed. The connection has
    foreign keys switched off and is in a transaction.
    """
    chosen: dict[int, Entry] = {}
    for entry in entries:
        if entry.sequence > after:
            chosen[entry.sequence] = entry
    names = {table.name: table for table in _JOURNALLED}
    for _, entry in sorted(chosen.items()):
        changes = [change for change in entry.changes if change[0] in names]
        for name, key, _row in changes:
            where = " AND ".join(f'"{column.name}" = ?' for column in names[name].primary_key)
            connection.exec_driver_sql(f'DELETE FROM "{name}" WHERE {where}', tuple(key))  # noqa: S608
        for name, _key, row in changes:
            if row is not None:
                columns = ", ".join(f'"{column}"' for column in row)
                marks = ", ".join("?" * len(row))
                connection.exec_driver_sql(
                    f'INSERT OR REPLACE INTO "{name}" ({columns}) VALUES ({marks})',  # noqa: S608
                    tuple(row.values()),
                )
        connection.exec_driver_sql("UPDATE store_state SET sequence = ?", (entry.sequence,))
    return sorted(chosen)


class Journal:
    """The writing side, for one open database. Thread-safe, as SQLite has one writer at a time, whose process it is.

    Args:
        database: the file.
        revision: of its schema.
    """

    def __init__(self, database: Path, revision: str) -> None:
        self._database = database
        self._revision = revision
        self._lock = threading.Lock()
        self._descriptor = -1
        self._segment = -1
        self.entries_count = 0
        """Entries that this process wrote and committed."""

    def watch(self, connection: Any, _record: object = None) -> None:
        """Note from now on what a new connection (of the driver) changes."""
        cursor = connection.cursor()
        try:
            cursor.execute(f"CREATE TEMP TABLE {_NOTES} (name TEXT NOT NULL, key TEXT NOT NULL)")
            for table in _JOURNALLED:
                for statement in _triggers(table):
                    cursor.execute(statement)
        finally:
            cursor.close()

    @contextlib.contextmanager
    def written(self, connection: sa.Connection) -> Iterator[None]:
        """Append what the connection's transaction changed; within the block it is committed.

        If the block fails, so that the transaction did, the entry is cut off again. Raises ``OSError``, and then
        nothing was appended.
        """
        noted = connection.exec_driver_sql(f"SELECT DISTINCT name, key FROM {_NOTES}").all()  # noqa: S608
        if not noted:
            yield
            return
        changes = [
            (name, key, _row(connection, tables.metadata.tables[name], key))
            for name, key in ((name, json.loads(key)) for name, key in noted)
        ]
        connection.exec_driver_sql(f"DELETE FROM {_NOTES}")  # noqa: S608
        state = read_state(connection)
        connection.exec_driver_sql("UPDATE store_state SET sequence = sequence + 1")
        with self._lock:
            size = self._append(state, pack_line({"n": state.sequence + 1, "c": changes}))
            try:
                yield
            except BaseException:
                self._cut(size)
                raise
            self.entries_count += 1

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()

    def _append(self, state: State, line: bytes) -> int:
        if len(line) > LINE_BYTES_MAX:
            raise OverflowError(f"one transaction changes {len(line) >> 20} MiB; ask for less at once")
        if self._segment != state.segment or not self._is_there():
            self._close()
            path = segment_path(self._database, state.segment)
            if not path.exists():
                start_segment(self._database, state, self._revision)
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            self._segment = state.segment
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            # What a process that was killed left of its last line.
            line = b"\n" + line
        try:
            write_all(self._descriptor, line)
            os.fsync(self._descriptor)
        except OSError:
            self._cut(size)
            raise
        return size

    def _is_there(self) -> bool:
        """Whether the open file is still the one beside the database."""
        try:
            named = segment_path(self._database, self._segment).stat()
        except FileNotFoundError:
            return False
        opened = os.fstat(self._descriptor)
        return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)

    def _cut(self, size: int) -> None:
        # If even that fails, the entry's number is used again by the next one, which then counts.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, size)
            os.fsync(self._descriptor)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = self._segment = -1


def _triggers(table: sa.Table) -> Iterator[str]:
    """The statements that note what happens to a table's rows."""
    lasting = [column.name for column in table.columns if not column.info.get("fleeting")]
    changed = " OR ".join(f'OLD."{name}" IS NOT NEW."{name}"' for name in lasting)
    if "ended_at" in table.columns and len(lasting) < len(table.columns):
        # The last word on something that has ended is no fleeting one.
        changed += " OR NEW.ended_at IS NOT NULL"
    for event, condition, rows in (
        ("INSERT", "", ("NEW",)),
        ("UPDATE", f" WHEN {changed}", ("OLD", "NEW")),
        ("DELETE", "", ("OLD",)),
    ):
        notes = "; ".join(
            f"INSERT INTO {_NOTES} VALUES ('{table.name}', json_array({_keys(table, row)}))"  # noqa: S608
            for row in rows
        )
        name = f"journal_{table.name}_{event.lower()}"
        yield f'CREATE TEMP TRIGGER {name} AFTER {event} ON main."{table.name}"{condition} BEGIN {notes}; END'


def _keys(table: sa.Table, row: str) -> str:
    return ", ".join(f'{row}."{column.name}"' for column in table.primary_key)


def _row(connection: sa.Connection, table: sa.Table, key: list[Any]) -> dict[str, Any] | None:
    where = " AND ".join(f'"{column.name}" = ?' for column in table.primary_key)
    statement = f'SELECT * FROM "{table.name}" WHERE {where}'  # noqa: S608
    row = connection.exec_driver_sql(statement, tuple(key)).mappings().first()
    if row is None:
        return None
    return {
        name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in row.items()
    }


def _unpack(row: dict[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {
        name: base64.b64decode(value["base64"]) if isinstance(value, dict) else value
        for name, value in row.items()
    }
