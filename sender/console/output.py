"""What commands on the daemon print: tables on a terminal, plain columns in a pipe, JSON lines for scripts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from protocol.errors import EXIT_OK
from sender.console.client import to_json

T = TypeVar("T")

_PIPE_COLUMNS: Final = 1000
"""What isn't a terminal is as wide as its longest line."""
STATE_STYLES: Final = {
    "available": "green",
    "complete": "green",
    "done": "green",
    "casting": "cyan",
    "receiving": "cyan",
    "fetching": "cyan",
    "gathering": "yellow",
    "joined": "yellow",
    "slow": "yellow",
    "tail": "yellow",
    "paused": "yellow",
    "cancelled": "yellow",
    "failed": "red",
    "lost": "red",
    "dropped": "red",
    "damaged": "red",
    "offline": "dim",
    "gone": "dim",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column of a table.

    Attributes:
        title: its heading.
        text: of one record.
        right: numbers stand on the right.
        cut: it gives way where the terminal is too narrow.
    """

    title: str
    text: Callable[[T], str]
    right: bool = False
    cut: bool = False


class Output:
    """Where a command's answer goes.

    Args:
        json_lines: one object a line, the last with ``"event": "result"``.
    """

    def __init__(self, *, json_lines: bool) -> None:
        self.json_lines = json_lines
        self.console = new_console()

    def listed(
        self,
        event: str,
        records: Iterable[T],
        columns: Sequence[Column[T]],
        *,
        limit: int | None = None,
        nothing: str,
    ) -> None:
        """A list as a table, or as one ``event`` a line.

        Args:
            event: name of a line's kind, for example ``room``.
            records: taken one by one, at most one more than ``limit``.
            columns: of the table.
            limit: None: all of them.
            nothing: what is said of an empty list.
        """
        taken = list(itertools.islice(records, None if limit is None else limit + 1))
        shown = taken[:limit]
        more = len(taken) > len(shown)
        if self.json_lines:
            for record in shown:
                emit(event, **to_json(record))
            emit("result", ok=True, exit_code=EXIT_OK, count=len(shown), more=more)
            return
        if shown:
            self.table(shown, columns)
        else:
            say(nothing)
        if more:
            say(f"the first {len(shown)}; there are more: --limit N or --all")

    def table(self, records: Iterable[T], columns: Sequence[Column[T]]) -> None:
        """A table without frames; columns that are empty throughout are left out."""
        rows = [[printable(column.text(record)) for column in columns] for record in records]
        kept = [index for index in range(len(columns)) if any(row[index] for row in rows)]
        table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="dim")
        for index in kept:
            column = columns[index]
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=not column.cut,
            )
        for row in rows:
            table.add_row(*(_cell(row[index]) for index in kept))
        self.console.print(table)

    def record(self, record: object, fields: Sequence[tuple[str, str]]) -> None:
        """One record: as the result line, or field by field; empty fields are left out."""
        if self.json_lines:
            emit("result", ok=True, exit_code=EXIT_OK, **to_json(record))
            return
        shown = [(title, printable(text)) for title, text in fields if text]
        width = max(len(title) for title, _ in shown)
        for title, text in shown:
            style = STATE_STYLES.get(text, "")
            self.console.print(Text.assemble(f"{title:<{width}}  ", (text, style)), soft_wrap=True)

    def done(self, text: str, record: object = None, **fields: object) -> None:
        """What was done, in a sentence for people; ``record`` and ``fields`` for scripts."""
        if self.json_lines:
            emit(
                "result",
                ok=True,
                exit_code=EXIT_OK,
                **(to_json(record) if record is not None else {}),
                **fields,
            )
        else:
            self.console.print(Text(printable(text)), soft_wrap=True)


def _cell(text: str) -> Text:
    """One line: what is too long is cut, and only in the columns that give way."""
    return Text(text, style=STATE_STYLES.get(text, ""), no_wrap=True, overflow="ellipsis")


def new_console(*, stderr: bool = False) -> Console:
    """A console that cuts to a terminal's width, and cuts nothing of what goes elsewhere."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else _PIPE_COLUMNS, highlight=False)


def emit(event: str, **fields: Any) -> None:
    """Print one JSON line."""
    click.echo(json.dumps({"event": event, **fields}))


def say(text: str) -> None:
    """A remark, on stderr: stdout is for what was asked for."""
    click.echo(printable(text), err=True)


def printable(text: str) -> str:
    """Without control characters: a machine that names itself by an escape sequence shall not steer the terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def natural_order(text: str) -> list[tuple[int, str]]:
    """A sorting key by which pc2 comes before pc10."""
    pieces = re.split(r"(\d+)", text.casefold())
    return [(int(piece), "") if index % 2 else (0, piece) for index, piece in enumerate(pieces)]


def local_time(at: datetime | None, *, seconds: bool = False) -> str:
    """``2026-11-21 22:00`` by this machine's clock; empty for None."""
    if at is None:
        return ""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")
