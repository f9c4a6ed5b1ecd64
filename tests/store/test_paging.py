"""Lists in pages, and history as CSV."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import sqlalchemy as sa
from hypothesis import strategies as st

from sender.api.bodies.csv_download import csv_cell, csv_download
from sender.store.database.errors import CursorError
from sender.store.open_store import open_database
from sender.store.records.access import AuditEntry
from sender.store.records.casts import HistoryLine
from sender.store.store import Store
from tests.store.samples import START, Clock, add_cast, line, machine, room


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    path: Path = tmp_path_factory.mktemp("paging") / "diskcast.db"
    store = open_database(sa.URL.create("sqlite", database=str(path)), now=Clock(), upkeep=False)
    for number in range(37):
        # Many rows are equal in the first sort column, so that the second one decides.
        store.machines.add(machine(f"pc-{number // 5}"))
    add_cast(store)
    store.casts.put_machines(
        [line(name=f"pc-{n}", joined_at=START + timedelta(seconds=n // 7)) for n in range(41)]
    )
    yield store
    store.close()


@hypothesis.settings(max_examples=25)
@hypothesis.given(limits=st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_pages_of_any_size_have_every_row_once_and_in_order(filled: Store, limits: list[int]) -> None:
    for read, key in (
        (filled.machines.list, lambda item: (item.name, item.machine_id)),
        (filled.history.lines, lambda item: item.machine_name),
    ):
        whole, end = read(limit=1000)
        assert end is None
        shown: list[object] = []
        cursor = None
        for turn in range(1000):
            items, cursor = read(after=cursor, limit=limits[turn % len(limits)])
            shown += items
            if cursor is None:
                break
        assert list(map(key, shown)) == list(map(key, whole))


def test_rows_added_between_pages_shift_no_page(store: Store) -> None:
    for number in range(6):
        store.rooms.add(room(f"room-{number}"))
    first, cursor = store.rooms.list(limit=3)
    store.rooms.add(room("room-0a"))
    store.rooms.remove("room-2")
    second, end = store.rooms.list(after=cursor, limit=9)
    assert end is None
    assert [item.room_id for item in first + second] == [f"room-{number}" for number in range(6)]


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "é",
        "W10",
        "bnVsbA",
        "WyIyMDI2IiwgMV0",
        "WzEsMl0",
        "A" * 5000,
        "WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwxXQ",
    ],
)
def test_an_invalid_cursor_is_refused(filled: Store, cursor: str) -> None:
    with pytest.raises(CursorError, match="isn't one of this list"):
        filled.history.lines(after=cursor)


def download(record: type, page: Callable[[str | None, int], tuple[Sequence[Any], str | None]]) -> str:
    async def fetch(after: str | None, rows: int) -> tuple[Sequence[Any], str | None]:
        return page(after, rows)

    async def read() -> bytes:
        answer = await csv_download(record, "list", fetch)
        return b"".join([bytes(part) async for part in answer.body_iterator])

    return asyncio.run(read()).decode()


def test_history_as_csv_equals_the_list_and_has_no_formulas(store: Store) -> None:
    add_cast(store, name='=HYPERLINK("http://evil","x")')
    store.casts.put_machines(
        [line(name=f"pc-{n}", joined_at=START + timedelta(seconds=n)) for n in range(1200)]
        + [line(name='+cmd|" /C calc"!A0', error="a\nb", joined_at=START - timedelta(1))]
    )
    text = download(HistoryLine, lambda after, rows: store.history.lines(after=after, limit=rows))
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["machine_name"] for row in rows[:1200]] == [f"pc-{n}" for n in reversed(range(1200))]
    assert rows[-1]["machine_name"] == '\'+cmd|" /C calc"!A0'
    assert rows[-1]["error"] == "a\nb"
    assert rows[0]["cast_name"].startswith("'=HYPERLINK")
    assert rows[0]["joined_at"] == "2026-03-01T08:19:59.123Z"
    store.audit.add("anna", "x", "@y", {"a": 1})
    text = download(AuditEntry, lambda after, rows: store.audit.list(after=after, limit=rows))
    assert '\'@y,"{""a"": 1}"' in text


@pytest.mark.parametrize(
    ("value", "cell"),
    [(None, ""), (True, "true"), (-0.25, "-0.25"), (-3, "-3"), ("-3", "'-3"), ("\t=x", "'\t=x")],
)
def test_cells(value: object, cell: str) -> None:
    assert csv_cell(value) == cell
