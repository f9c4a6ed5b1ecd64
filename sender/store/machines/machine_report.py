"""MachineReport: the fields of a machine that change when its agent checks in."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from protocol.errors import ConfigurationError
from protocol.model.hardware import Hardware
from sender.store.database.column_types import clean_json, clean_text
from sender.store.machines.identity import MACS_MAX, MachineFingerprint, identity_key, normal_mac
from sender.store.records.machines import EnrolmentState, Machine

LAST_SEEN_INTERVAL_S = 10.0
"""Shortest interval between two updates of ``last_seen_at`` by check-ins without other changes. In between,
:meth:`Machines.touch` updates all machines together."""


@dataclasses.dataclass(frozen=True, slots=True)
class MachineReport:
    """A machine as its agent describes it at a check-in.

    Attributes:
        machine_id: id that the machine has proved by its secret; empty: matched by its identifiers.
        room_id: room of a machine that has none yet.
        hardware: its hardware, if that may be new.
    """

    name: str
    macs: Sequence[str]
    serial: str
    asset_tag: str
    address: str
    agent_version: str
    inventory: Mapping[str, str]
    machine_id: str = ""
    room_id: str | None = None
    hardware: Hardware | None = None

    @property
    def fingerprint(self) -> MachineFingerprint:
        """The machine's identifiers, without addresses that can't identify it.

        The card of a dongle or a dock moves to another machine, so it counts only for a machine with nothing else.
        """
        macs = valid_macs(self.macs)
        if self.hardware is not None:
            moving = {card.mac for card in self.hardware.cards if card.on_usb}
            own = tuple(mac for mac in macs if mac not in moving)
            if own or identity_key(self.serial) or identity_key(self.asset_tag):
                macs = own
        return fingerprint_of(macs, self.serial, self.asset_tag)


def new_machine_id() -> str:
    """Return a unique machine id."""
    return f"m{secrets.token_hex(6)}"


def blank_machine(now: datetime) -> Machine:
    """Return a new machine without a name or any other field."""
    return Machine(new_machine_id(), "", None, (), "", "", "", "", "", "", {}, now, None)


def new_machine(report: MachineReport, macs: Sequence[str], now: datetime) -> Machine:
    """Return the record of a machine that checks in for the first time."""
    return dataclasses.replace(
        blank_machine(now),
        **_agent_fields(report),
        name=clean_text(report.name),
        room_id=report.room_id,
        macs=tuple(macs),
        serial=clean_text(report.serial),
        asset_tag=clean_text(report.asset_tag),
        last_seen_at=now,
    )


def check_in_changes(
    report: MachineReport,
    fingerprint: MachineFingerprint,
    macs: tuple[str, ...],
    before: Machine,
    now: datetime,
) -> dict[str, Any]:
    """Return the fields that change when a known machine checks in.

    Name, room, position and note belong to the operator. An agent only names a machine that is new.
    """
    values = _agent_fields(report)
    if fingerprint.serial_key:
        values["serial"] = clean_text(report.serial)
    if fingerprint.asset_key:
        values["asset_tag"] = clean_text(report.asset_tag)
    if report.room_id is not None and before.room_id is None:
        values["room_id"] = report.room_id
    if set(macs) != set(before.macs):
        values["macs"] = macs
    if report.machine_id and before.enrolment in (EnrolmentState.WAITING, EnrolmentState.APPROVED):
        values |= {
            "enrolment": EnrolmentState.ENROLLED,
            "approval_code": "",
        }  # the holder of the secret is back
    changed = {key: value for key, value in values.items() if getattr(before, key) != value}
    last = before.last_seen_at
    if changed or last is None or now - last > timedelta(seconds=LAST_SEEN_INTERVAL_S):
        changed["last_seen_at"] = now
    return changed


def fingerprint_of(macs: Sequence[str], serial: str, asset_tag: str) -> MachineFingerprint:
    """Return a machine's identifiers in comparable form; ``macs`` are normal already."""
    return MachineFingerprint(macs, identity_key(serial), identity_key(asset_tag))


def valid_macs(macs: Sequence[str]) -> tuple[str, ...]:
    """Return those of an agent's addresses that can identify the machine, in normal form."""
    valid: dict[str, None] = {}
    for mac in macs:
        try:
            valid[normal_mac(mac)] = None
        except ConfigurationError:
            continue
    return tuple(valid)[:MACS_MAX]


def _agent_fields(report: MachineReport) -> dict[str, Any]:
    """Return the fields that the agent alone decides."""
    return {
        "address": clean_text(report.address),
        "agent_version": clean_text(report.agent_version),
        "inventory": clean_json(dict(report.inventory)),
    }
