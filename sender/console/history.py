"""``diskcast history``: the results of past casts, and the audit."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from protocol.errors import ConfigurationError
from sender.console.options import api_command, checked_cast, checked_room, list_options

if TYPE_CHECKING:
    from sender.console.client import Client, Query
    from sender.console.output import Output

_DETAIL_CHARACTERS_MAX = 80
_IMAGE_ID: Final = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
"""The first digits identify an image, and `diskcast images` accepts them."""
_since_option = click.option(
    "--since", metavar="TIME", help="Not before 2026-11-01, 2026-11-01T12:00 or 7d (ago)."
)
_until_option = click.option("--until", metavar="TIME", help="Before this time; the formats of --since.")
_csv_option = click.option(
    "--csv",
    "csv_path",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write all matching lines as CSV to FILE; '-' for stdout.",
)


@click.group(invoke_without_command=True)
@click.option("--room", "room_id", metavar="ROOM", callback=checked_room, help="Only this room.")
@click.option("--machine", metavar="MACHINE", help="Only this machine.")
@click.option("--image", metavar="IMAGE", help="Only this image.")
@click.option("--cast", "cast_id", metavar="CAST", callback=checked_cast, help="Only this cast.")
@click.option("--failed", is_flag=True, help="Only machines that ended incomplete.")
@_since_option
@_until_option
@_csv_option
@list_options
@api_command
def history(
    client: Client,
    output: Output,
    *,
    room_id: str | None,
    machine: str | None,
    image: str | None,
    cast_id: str | None,
    failed: bool,
    since: str | None,
    until: str | None,
    csv_path: Path | None,
    limit: int,
    everything: bool,
) -> None:
    """List which image went to which machine, with the result.

    One line per machine and cast, the newest first.

    \b
    Examples:
      diskcast history --room lab-1 --since 7d --failed
      diskcast history --since 2026-01-01 --csv year.csv
      diskcast history audit --since 30d
    """  # noqa: D301
    if click.get_current_context().invoked_subcommand is not None:
        return
    from sender.console.lookup import find_image, find_machine
    from sender.console.tables import print_history
    from sender.store.records.casts import HistoryLine
    from sender.store.records.machine_states import MachineState

    query = {
        "room_id": room_id,
        "machine_id": None if machine is None else find_machine(client, machine).machine_id,
        "image_id": None if image is None else find_image(client, image).image_id,
        "cast_id": cast_id,
        **_period(since, until),
    }
    if csv_path is not None:
        _write_csv(
            client, output, "/history.csv", query, csv_path, wanted=_ended_incomplete if failed else None
        )
        return
    lines = client.listed("/history", HistoryLine, query)
    if failed:
        lines = (
            line for line in lines if line.ended_at is not None and line.state is not MachineState.COMPLETE
        )
    print_history(output, lines, limit=None if everything else limit)


@history.command()
@click.option(
    "--who", "actor", metavar="NAME", help="Only actions of this actor: a token's name, local, 'daemon NAME'."
)
@click.option(
    "--subject", metavar="SUBJECT", help="Only actions on this subject: 'cast 1a2b3c4d', 'room lab-1'."
)
@_since_option
@_until_option
@_csv_option
@list_options
@api_command
def audit(
    client: Client,
    output: Output,
    *,
    actor: str | None,
    subject: str | None,
    since: str | None,
    until: str | None,
    csv_path: Path | None,
    limit: int,
    everything: bool,
) -> None:
    """List the audit: operators' and daemons' actions, the newest first.

    \b
    Examples:
      diskcast history audit --since 30d --csv audit.csv
      diskcast history audit --who anna --since 2026-11-01
      diskcast history audit --subject "cast 1a2b3c4d"
    """  # noqa: D301
    from sender.console.output import Column, local_time
    from sender.store.records.access import AuditEntry

    query = {"actor": actor, "subject": subject, **_period(since, until)}
    if csv_path is not None:
        _write_csv(client, output, "/audit.csv", query, csv_path)
        return

    def detail(entry: AuditEntry) -> str:
        """Return the short fields; ``--json`` has all of them."""
        return ", ".join(f"{key}={value}" for key, value in entry.detail.items() if _is_short(value))

    columns: list[Column[AuditEntry]] = [
        Column("at", lambda entry: local_time(entry.at, seconds=True)),
        Column("actor", lambda entry: entry.actor, cut=True),
        Column("action", lambda entry: entry.action),
        Column("subject", lambda entry: _IMAGE_ID.sub(r"\1", entry.subject)),
        Column("detail", detail, cut=True),
    ]
    output.listed(
        "audit",
        client.listed("/audit", AuditEntry, query),
        columns,
        limit=None if everything else limit,
        nothing="no actions in that time",
    )


def _period(since: str | None, until: str | None) -> dict[str, str | None]:
    from datetime import UTC, datetime

    from sender.console.time_parsing import parse_past

    now = datetime.now(UTC)
    return {
        "since": None if since is None else parse_past(since, now).isoformat(),
        "until": None if until is None else parse_past(until, now).isoformat(),
    }


def _ended_incomplete(row: dict[str, str]) -> bool:
    from sender.store.records.machine_states import MachineState

    return bool(row.get("ended_at")) and row.get("state") != MachineState.COMPLETE


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


def _write_csv(
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


def _is_short(value: object) -> bool:
    return (
        value not in (None, "") and not isinstance(value, dict) and len(str(value)) <= _DETAIL_CHARACTERS_MAX
    )
