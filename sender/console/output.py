"""Output of the commands on the daemon: tables on a terminal, plain columns in a pipe, JSON lines for scripts."""

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
from sender.labels import StateLabel, Tone

T = TypeVar("T")

_PIPE_COLUMNS: Final = 1000
"""Width of output that isn't a terminal: no line is cut."""
_TONE_STYLES: Final = {
    Tone.GOOD: "green",
    Tone.BUSY: "cyan",
    Tone.SOFT: "yellow",
    Tone.CALM: "",
    Tone.WARN: "yellow",
    Tone.BAD: "red",
    Tone.OFF: "dim",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column of a table.

    Attributes:
        title: the heading.
        text: returns the cell of a record.
        right: aligned to the right, for numbers.
        cut: cut where the terminal is too narrow.
    """

    title: str
    text: Callable[[T], str | Text]
    right: bool = False
    cut: bool = False


class Output:
    """The output of a command.

    Args:
        json_lines: print one object per line, the last with ``"event": "result"``.
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
        """Print a list as a table, or as one ``event`` per line.

        Args:
            event: the name of each JSON line, such as ``room``.
            records: consumed lazily, at most one more than ``limit``.
            columns: the table's columns.
            limit: None for all records.
            nothing: the message for an empty list.
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
            print_message(nothing)
        if more:
            print_message(f"showing the first {len(shown)}; use --limit N or --all for more")

    def table(self, records: Iterable[T], columns: Sequence[Column[T]]) -> None:
        """Print a table without frames; columns without any text are left out."""
        rows = [[_cell(column.text(record)) for column in columns] for record in records]
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
            table.add_row(*(row[index] for index in kept))
        self.console.print(table)

    def record(self, record: object, fields: Sequence[tuple[str, str | Text]]) -> None:
        """Print one record as the result line, or field by field; empty fields are left out."""
        if self.json_lines:
            emit("result", ok=True, exit_code=EXIT_OK, **to_json(record))
            return
        shown = [(title, _cell(text)) for title, text in fields if text]
        width = max(len(title) for title, _ in shown)
        for title, text in shown:
            self.console.print(Text.assemble(f"{title:<{width}}  ", text), soft_wrap=True)

    def done(self, text: str, record: object = None, **fields: object) -> None:
        """Print the result of an action: ``text`` for people, ``record`` and ``fields`` for scripts."""
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


def state_text(label: StateLabel) -> Text:
    """Return a state's label as the command line shows it: lower case, in the colour of its tone."""
    return Text(label.text.lower(), style=_TONE_STYLES[label.tone])


def _cell(text: str | Text) -> Text:
    """Return text on one line, without control characters; long text is cut where its column allows it."""
    plain, style = (text, "") if isinstance(text, str) else (text.plain, text.style)
    return Text(printable(plain), style=style, no_wrap=True, overflow="ellipsis")


def new_console(*, stderr: bool = False) -> Console:
    """Return a console that cuts lines to a terminal's width, and none elsewhere."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else _PIPE_COLUMNS, highlight=False)


def emit(event: str, **fields: Any) -> None:
    """Print one JSON line."""
    click.echo(json.dumps({"event": event, **fields}))


def print_message(text: str) -> None:
    """Print a message to stderr; stdout is for results."""
    click.echo(printable(text), err=True)


def printable(text: str) -> str:
    """Return ``text`` with control characters replaced, since a machine's name may hold escape sequences."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def natural_order(text: str) -> list[tuple[int, str]]:
    """Return a sorting key that puts pc2 before pc10."""
    pieces = re.split(r"(\d+)", text.casefold())
    return [(int(piece), "") if index % 2 else (0, piece) for index, piece in enumerate(pieces)]


def local_time(at: datetime | None, *, seconds: bool = False) -> str:
    """Return a time such as ``2026-11-21 22:00`` in this machine's time zone; empty for None."""
    if at is None:
        return ""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")
