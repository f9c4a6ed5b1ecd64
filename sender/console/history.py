"""``diskcast history``: the results of past casts, and the audit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sender.console.csv_file import csv_option, write_csv
from sender.console.options import api_command, checked_cast, checked_room, list_options

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output

_DETAIL_CHARACTERS_MAX = 80
_IMAGE_ID: Final = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
"""The first digits identify an image, and `diskcast images` accepts them."""
_since_option = click.option(
    "--since", metavar="TIME", help="Not before 2026-11-01, 2026-11-01T12:00 or 7d (ago)."
)
_until_option = click.option("--until", metavar="TIME", help="Before this time; the formats of --since.")


@click.group(invoke_without_command=True)
@click.option("--room", "room_id", metavar="ROOM", callback=checked_room, help="Only this room.")
@click.option("--machine", metavar="MACHINE", help="Only this machine.")
@click.option("--image", metavar="IMAGE", help="Only this image.")
@click.option("--cast", "cast_id", metavar="CAST", callback=checked_cast, help="Only this cast.")
@click.option("--failed", is_flag=True, help="Only machines that ended incomplete.")
@_since_option
@_until_option
@csv_option
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
        write_csv(
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
@csv_option
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
        write_csv(client, output, "/audit.csv", query, csv_path)
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


def _is_short(value: object) -> bool:
    return (
        value not in (None, "") and not isinstance(value, dict) and len(str(value)) <= _DETAIL_CHARACTERS_MAX
    )
