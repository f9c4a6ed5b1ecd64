"""The option ``--csv``: a list of the daemon as a file, copied as a stream."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from protocol.errors import ConfigurationError

if TYPE_CHECKING:
    from sender.console.client import Client, Query
    from sender.console.output import Output

csv_option = click.option(
    "--csv",
    "csv_path",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write all matching lines as CSV to FILE; '-' for stdout.",
)


def _rows_wanted(parts: Iterable[bytes], wanted: Callable[[dict[str, str]], bool]) -> Iterator[bytes]:
    """Yield the header and the wanted rows of a CSV file that arrives in parts."""
    import codecs
    import csv
    import io

    def lines() -> Iterator[str]:
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        rest = ""
        for part in parts:
            *whole, rest = (rest + decode(part)).split("\n")
            yield from (f"{line}\n" for line in whole)
        if rest:
            yield rest

    reader = csv.DictReader(lines())
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, reader.fieldnames or (), extrasaction="ignore")
    writer.writeheader()
    for row in reader:
        if wanted(row):
            writer.writerow(row)
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode()


def write_csv(
    client: Client,
    output: Output,
    path: str,
    query: Query,
    csv_path: Path,
    *,
    wanted: Callable[[dict[str, str]], bool] | None = None,
) -> None:
    """Copy the daemon's CSV as a stream: years of history may not fit into memory."""
    to_stdout = str(csv_path) == "-"
    if to_stdout and output.json_lines:
        raise ConfigurationError(
            "--csv - and --json both write to stdout: name a file, or leave one of them out"
        )
    with client.stream(path, query) as response:
        parts = response.iter_bytes() if wanted is None else _rows_wanted(response.iter_bytes(), wanted)
        try:
            if to_stdout:
                for part in parts:
                    sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()
                return
            with csv_path.open("wb") as file:
                for part in parts:
                    file.write(part)
                size_bytes = file.tell()
        except OSError as error:
            raise ConfigurationError(f"cannot write {csv_path}: {error.strerror or error}") from error
    output.done(f"wrote {csv_path}", path=str(csv_path), size_bytes=size_bytes)
