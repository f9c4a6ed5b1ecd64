"""``diskcast casts preflight``, and the preflight of ``casts create``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from protocol.errors import ConfigurationError, PreflightRefusedError
from sender.console.options import api_command, checked_room

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output
    from sender.store.records.preflight import Preflight, PreflightMachine

_NAMED_MAX: Final = 5
"""Machines that an error names; the matrix has all of them."""


@click.command()
@click.option("--image", metavar="IMAGE", required=True, help="Name, file name or id of the image.")
@click.option(
    "--room", "room_id", metavar="ROOM", callback=checked_room, help="Room of the machines to check."
)
@click.option("--machine", metavar="MACHINE", multiple=True, help="Only this machine; repeat it for several.")
@api_command
def preflight(
    client: Client, output: Output, *, image: str, room_id: str | None, machine: tuple[str, ...]
) -> None:
    """Check whether machines fit an image, before a cast.

    A cast of the image excludes a refused machine before anything is written to its disk; a warning is a doubt. Checks
    use the hardware that agents have reported. Exits with 0 only if no machine is refused.

    \b
    Examples:
      diskcast casts preflight --image lab --room lab-1
      diskcast casts preflight --image lab@3 --machine pc07 --json
    """  # noqa: D301
    from sender.console.client import to_json as json_of
    from sender.console.lookup import find_image, find_machine
    from sender.console.output import emit

    if room_id is None and not machine:
        raise click.UsageError("name a room with --room, or machines with --machine")
    ids = [find_machine(client, text).machine_id for text in machine]
    found = ask_preflight(client, find_image(client, image).image_id, room_id, ids)
    if output.json_lines:
        for row in found.machines:
            emit("machine", **json_of(row))
    else:
        _show_matrix(output, found)
    if found.refused_count:
        raise PreflightRefusedError(f"{_summary(found)}; a cast excludes the refused machines")
    output.done(_summary(found), refused_count=found.refused_count, warned_count=found.warned_count)


def ask_preflight(
    client: Client, image_id: str, room_id: str | None, machine_ids: Sequence[str]
) -> Preflight:
    """Return the daemon's matrix."""
    from sender.store.records.preflight import Preflight

    body = {"image": image_id, "room_id": room_id, "machine_ids": list(machine_ids)}
    return client.order("/casts/preflight", Preflight, body)


def require_consent(found: Preflight, output: Output, *, accept_warnings: bool) -> None:
    """List the machines that a cast will exclude, and require the operator's consent to warnings.

    Raises:
        PreflightRefusedError: no machine fits.
        ConfigurationError: machines have warnings that the operator hasn't accepted.
    """
    from protocol.preflight.judgement import Grade
    from sender.console.client import to_json as json_of
    from sender.console.output import emit, print_message

    refused = [row for row in found.machines if row.grade is Grade.REFUSE]
    if refused and len(refused) == len(found.machines):
        raise PreflightRefusedError(f"no machine fits {found.image_name}: {_reasons(refused, Grade.REFUSE)}")
    warned = [row for row in found.machines if row.grade is Grade.WARN]
    if warned and not accept_warnings:
        raise ConfigurationError(
            f"{len(warned)} of {len(found.machines)} machines have warnings: {_reasons(warned, Grade.WARN)}; see "
            "`diskcast casts preflight`, and add --accept-warnings to cast to them all the same"
        )
    for row in refused:
        if output.json_lines:
            emit("machine_excluded", **json_of(row))
        else:
            print_message(f"excluded: {_reasons([row], Grade.REFUSE)}")


def _show_matrix(output: Output, found: Preflight) -> None:
    from protocol.preflight.judgement import Grade, Subject
    from sender.console.output import Column, print_message, state_text
    from sender.labels import PREFLIGHT_GRADES

    def column(index: int, subject: Subject) -> Column[PreflightMachine]:
        return Column(subject.value, lambda row: state_text(PREFLIGHT_GRADES[row.checks[index].grade]))

    columns: list[Column[PreflightMachine]] = [Column("machine", lambda row: row.name, cut=True)]
    columns += [column(index, subject) for index, subject in enumerate(Subject)]
    if not found.machines:
        print_message("no machines to check")
        return
    output.table(found.machines, columns)
    for row in found.machines:
        for check in row.checks:
            if check.grade in (Grade.REFUSE, Grade.WARN):
                print_message(f"{row.name}: {check.subject}: {check.text}")
    if not found.image_known:
        print_message(
            f"only the image's size counts: {found.problem or 'it is being read, so ask again in a moment'}"
        )


def _summary(found: Preflight) -> str:
    count = len(found.machines)
    fine = count - found.refused_count - found.warned_count
    return (
        f"{found.image_name}: {found.refused_count} of {count} machines refused, {found.warned_count} with warnings, "
        f"{fine} without either"
    )


def _reasons(rows: Sequence[PreflightMachine], grade: object) -> str:
    texts = [
        f"{row.name}: {check.subject}: {check.text}"
        for row in rows[:_NAMED_MAX]
        for check in row.checks
        if check.grade is grade
    ]
    more = [f"and {len(rows) - _NAMED_MAX} more machines"] if len(rows) > _NAMED_MAX else []
    return "; ".join([*texts, *more])
