"""The verdict on an ended cast, and the history lines of machines that never joined it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final

from protocol.shared.units import format_duration
from sender.store.records.casts import Cast, CastMachine, CastPhase
from sender.store.records.machine_states import NOT_JOINED_STATES, MachineState

_NAMED_MAX: Final = 10
"""Machines that a reason names; history names all."""


def verdict(cast: Cast, machines: Collection[CastMachine], reason: str) -> tuple[CastPhase, str]:
    """Return the cast's final phase, and the reason in words.

    It is done if every required and every joined machine verified every byte.

    Args:
        cast: the record.
        machines: its machines, absent ones included.
        reason: the session's own reason for its end.
    """
    joined = [row for row in machines if row.state not in NOT_JOINED_STATES]
    incomplete = [row for row in joined if row.state is not MachineState.COMPLETE]
    absent = [row for row in machines if row.state is MachineState.ABSENT]
    if not joined:
        waited_s = cast.plan.max_wait_s
        after = "" if waited_s is None else f" within {format_duration(waited_s)}"
        return CastPhase.FAILED, (
            f"no machine joined{after}: check that their agents run (diskcast-agent run) and that multicast passes the "
            "switch"
        )
    if incomplete:
        named = "; ".join(f"{row.name}: {row.error or row.state}" for row in incomplete[:_NAMED_MAX])
        more = f"; and {len(incomplete) - _NAMED_MAX} more" if len(incomplete) > _NAMED_MAX else ""
        return (
            CastPhase.FAILED,
            f"{len(incomplete)} of {len(joined)} machines aren't complete ({named}{more})",
        )
    if len(joined) < cast.required_count:
        names = ", ".join(row.name for row in absent[:_NAMED_MAX])
        missing = f" (missing: {names})" if names else ""
        return CastPhase.FAILED, (
            f"only {len(joined)} of {cast.required_count} machines joined{missing}; those are complete: cast again for "
            "the others"
        )
    if reason and not machines:
        return CastPhase.FAILED, reason
    return CastPhase.DONE, f"every byte verified on {len(joined)} machine{'' if len(joined) == 1 else 's'}"


def absent_machine(cast_id: str, machine_id: str, name: str) -> CastMachine:
    """Return the line of a planned machine that never joined."""
    error = "it never joined: check that it is switched on and that its agent runs"
    row = _unjoined_machine(cast_id, machine_id, name, MachineState.ABSENT, error)
    return dataclasses.replace(row, ended_at=datetime.now(UTC))


def assigned_machine(cast_id: str, machine_id: str, name: str) -> CastMachine:
    """Return the line of a machine that was assigned to a cast."""
    return _unjoined_machine(cast_id, machine_id, name, MachineState.ASSIGNED, "")


def _unjoined_machine(
    cast_id: str, machine_id: str, name: str, state: MachineState, error: str
) -> CastMachine:
    return CastMachine(
        cast_id=cast_id,
        machine_id=machine_id,
        name=name,
        address="",
        state=state,
        error=error,
        exit_code=None,
        bottleneck="",
        progress=0.0,
        bytes_verified=0,
        bytes_kept=0,
        blocks_rewritten=0,
        seconds=0.0,
        rate_bytes_per_s=0.0,
        loss=0.0,
        nacks_count=0,
        socket_drops_count=0,
        demoted=False,
        joined_at=None,
        ended_at=None,
    )
