"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Iterable

from protocol.shared.units import format_bytes, format_duration
from sender.console.output import Column, Output, local_time, natural_order, state_text
from sender.labels import MACHINE_STATES
from sender.store.records.casts import CastMachine, HistoryLine
from sender.store.records.machine_states import MachineState


def print_cast_machines(output: Output, found: Iterable[CastMachine], *, limit: int | None) -> None:
    """Print the result of each machine of a cast, incomplete machines first."""
    found = sorted(
        found, key=lambda machine: (machine.state is MachineState.COMPLETE, natural_order(machine.name))
    )

    columns: list[Column[CastMachine]] = [
        Column("machine", lambda machine: machine.name, cut=True),
        Column("state", lambda machine: state_text(MACHINE_STATES[machine.state])),
        Column("customised", lambda machine: "yes" if machine.patch_id else ""),
        Column("", lambda machine: f"{machine.progress:.0%}", right=True),
        Column(
            "verified",
            lambda machine: format_bytes(machine.bytes_verified) if machine.ended_at else "",
            right=True,
        ),
        Column(
            "kept", lambda machine: format_bytes(machine.bytes_kept) if machine.bytes_kept else "", right=True
        ),
        Column(
            "took", lambda machine: format_duration(machine.seconds) if machine.ended_at else "", right=True
        ),
        Column("loss", lambda machine: f"{machine.loss:.1%}", right=True),
        Column("exit", lambda machine: str(machine.exit_code) if machine.exit_code else "", right=True),
        Column("error", lambda machine: machine.error, cut=True),
    ]
    output.listed("machine", found, columns, limit=limit, nothing="no machine has joined")


def print_history(output: Output, lines: Iterable[HistoryLine], *, limit: int | None) -> None:
    """Print a table of history lines."""
    columns: list[Column[HistoryLine]] = [
        Column("ended", lambda line: local_time(line.ended_at)),
        Column("machine", lambda line: line.machine_name, cut=True),
        Column("room", lambda line: line.room_id or ""),
        Column("image", lambda line: line.image_name, cut=True),
        Column("cast", lambda line: line.cast_id),
        Column("state", lambda line: state_text(MACHINE_STATES[line.state])),
        Column("customised", lambda line: "yes" if line.patch_id else ""),
        Column("took", lambda line: format_duration(line.seconds) if line.ended_at else "", right=True),
        Column("error", lambda line: line.error, cut=True),
    ]
    output.listed("history", lines, columns, limit=limit, nothing="no machines were imaged in that time")
