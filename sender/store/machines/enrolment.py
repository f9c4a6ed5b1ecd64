"""Enrolment: which fields of a machine change when its agent checks in."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from protocol.errors import ConfigurationError
from sender.store.database.column_types import clean_json, clean_text
from sender.store.machines.identity import MACS_MAX, MachineFingerprint, identity_key, normal_mac
from sender.store.records.machines import Machine

SEEN_AGAIN_S = 10.0
"""A check-in that brings nothing new is noted this often at most; :meth:`Machines.touch` does the rest, in one go."""


@dataclasses.dataclass(frozen=True, slots=True)
class Enrolment:
    """What a machine that checks in says of itself."""

    name: str
    macs: Sequence[str]
    serial: str
    asset_tag: str
    address: str
    agent_version: str
    inventory: Mapping[str, str]


def new_machine_id() -> str:
    """An id that no other machine has."""
    return f"m{secrets.token_hex(6)}"


def blank_machine(now: datetime) -> Machine:
    """A new machine of which nothing is known."""
    return Machine(new_machine_id(), "", None, (), "", "", "", "", "", "", {}, now, None)


def new_machine(told: Enrolment, macs: Sequence[str], now: datetime) -> Machine:
    """Return the record of a machine that checks in for the first time."""
    return dataclasses.replace(
        blank_machine(now),
        **_told(told),
        name=clean_text(told.name),
        macs=tuple(macs),
        serial=clean_text(told.serial),
        asset_tag=clean_text(told.asset_tag),
        last_seen_at=now,
    )


def check_in_changes(
    told: Enrolment, identity: MachineFingerprint, macs: tuple[str, ...], before: Machine, now: datetime
) -> dict[str, Any]:
    """The fields that change when a known machine checks in."""
    values = _told(told)
    if identity.serial_key:
        values["serial"] = clean_text(told.serial)
    if identity.asset_key:
        values["asset_tag"] = clean_text(told.asset_tag)
    if set(macs) != set(before.macs):
        values["macs"] = macs
    changed = {key: value for key, value in values.items() if getattr(before, key) != value}
    last = before.last_seen_at
    if changed or last is None or now - last > timedelta(seconds=SEEN_AGAIN_S):
        changed["last_seen_at"] = now
    return changed


def fingerprint_of(macs: Sequence[str], serial: str, asset_tag: str) -> MachineFingerprint:
    """Return the forms of a machine's identifiers that are compared."""
    return MachineFingerprint(macs, identity_key(serial), identity_key(asset_tag))


def valid_macs(macs: Sequence[str]) -> tuple[str, ...]:
    """Those of an agent's addresses that can identify it."""
    valid: dict[str, None] = {}
    for mac in macs:
        try:
            valid[normal_mac(mac)] = None
        except ConfigurationError:
            continue
    return tuple(valid)[:MACS_MAX]


def _told(told: Enrolment) -> dict[str, Any]:
    """The fields that are always an agent's own."""
    return {
        "address": clean_text(told.address),
        "agent_version": clean_text(told.agent_version),
        "inventory": clean_json(dict(told.inventory)),
    }
