"""What a machine is recognised by: hardware addresses, its serial number, its asset tag, and what doesn't count."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import sqlalchemy as sa

from protocol.errors import ConfigurationError
from sender.store.database import tables

MACS_MAX = 16
"""Hardware addresses of a machine: servers have that many ports, hardly more."""
IN_LIST_MAX = 500
"""Values asked for in one statement: SQLite allows thousands, plans stay small."""

_PLACEHOLDERS = {
    "0123456789",
    "123456789",
    "1234567890",
    "asset tag",
    "asset-1234567890",
    "base board serial number",
    "chassis serial number",
    "default",
    "default string",
    "empty",
    "invalid",
    "n/a",
    "na",
    "no asset information",
    "no asset tag",
    "no enclosure",
    "none",
    "not applicable",
    "not available",
    "not defined",
    "not set",
    "not specified",
    "null",
    "o.e.m.",
    "oem",
    "serial number",
    "system serial number",
    "to be filled by o.e.m",
    "to be filled by o.e.m.",
    "tbd",
    "undefined",
    "unknown",
    "unspecified",
}
"""What vendors leave in the firmware's tables, the same in every machine of a model (dmidecode's and fwupd's lists)."""

_MACHINE = tables.machines.c


def identity_key(text: str) -> str:
    """What a serial number or an asset tag is compared by; empty if it identifies nothing."""
    key = " ".join(text.split()).lower()
    letters = re.sub(r"[^a-z0-9]", "", key)
    if key in _PLACEHOLDERS or len(set(letters)) < 2 < len(key) or not letters:
        return ""
    return key


def normal_mac(text: str) -> str:
    """A hardware address as ``aa:bb:cc:dd:ee:ff``, from any of the usual ways to write it.

    Raises ``ConfigurationError`` for what isn't one, and for those that don't belong to one machine: zero, and groups'.
    """
    digits = text.strip().lower()
    if not re.fullmatch(
        r"[0-9a-f]{12}|([0-9a-f]{2}[:-]){5}[0-9a-f]{2}|([0-9a-f]{4}\.){2}[0-9a-f]{4}|([0-9a-f]{6}[:-])[0-9a-f]{6}"
        r"|([0-9a-f]{2} ){5}[0-9a-f]{2}",
        digits,
    ):
        raise ConfigurationError(
            f"{text.strip()[:40]!r} isn't a hardware address: write it as aa:bb:cc:dd:ee:ff"
        )
    digits = re.sub(r"[^0-9a-f]", "", digits)
    if digits == "0" * 12 or int(digits[1], 16) & 1:
        raise ConfigurationError(f"{text.strip()!r} is no machine's own address (it is zero, or a group's)")
    return ":".join(digits[i : i + 2] for i in range(0, 12, 2))


def serial_and_tag(
    connection: sa.Connection, machine_ids: Iterable[str]
) -> dict[str, tuple[str, str, str | None]]:
    """Serial number, asset tag and room of those machines that are known."""
    wanted = list(dict.fromkeys(machine_ids))
    found: dict[str, tuple[str, str, str | None]] = {}
    for part in parts(wanted):
        rows = connection.execute(
            sa.select(_MACHINE.machine_id, _MACHINE.serial, _MACHINE.asset_tag, _MACHINE.room_id).where(
                _MACHINE.machine_id.in_(part)
            )
        )
        found |= {row.machine_id: (row.serial, row.asset_tag, row.room_id) for row in rows}
    return found


def parts(values: Sequence[str]) -> Iterable[Sequence[str]]:
    """``values`` in pieces that one statement can ask for."""
    for start in range(0, len(values), IN_LIST_MAX):
        yield values[start : start + IN_LIST_MAX]


@dataclasses.dataclass(frozen=True, slots=True)
class MachineFingerprint:
    """What a machine says of itself, in the forms that are compared: see :func:`normal_mac`, :func:`identity_key`."""

    macs: Sequence[str]
    serial_key: str
    asset_key: str


def distinct_runs(identities: Sequence[MachineFingerprint]) -> Iterable[range]:
    """``identities`` in runs, of each of which no two have anything in common."""
    start, met = 0, set[tuple[str, str]]()
    for index, identity in enumerate(identities):
        marks = {("mac", mac) for mac in identity.macs}
        marks |= {("serial", identity.serial_key), ("tag", identity.asset_key)}
        marks -= {("serial", ""), ("tag", "")}
        if met & marks:
            yield range(start, index)
            start, met = index, set()
        met |= marks
    if start < len(identities):
        yield range(start, len(identities))


def find_machines(connection: sa.Connection, identities: Sequence[MachineFingerprint]) -> list[str | None]:
    """For each of ``identities`` the id of the machine that has it, or None.

    A hardware address decides unless both serial numbers are known and differ: the address is then a USB adapter's or a
    docking station's that has moved. After that a serial number, and then an asset tag, if just one machine has it.
    """
    owned = tables.machine_macs.c
    owners: dict[str, tuple[str, str]] = {}
    for part in parts(list(dict.fromkeys(mac for identity in identities for mac in identity.macs))):
        query = sa.select(owned.mac, _MACHINE.machine_id, _MACHINE.serial_key)
        query = query.join(tables.machine_macs, owned.machine_id == _MACHINE.machine_id)
        for row in connection.execute(query.where(owned.mac.in_(part))):
            owners[row.mac] = (row.machine_id, row.serial_key)
    serials = _by_key(connection, _MACHINE.serial_key, [identity.serial_key for identity in identities])
    tags = _by_key(connection, _MACHINE.asset_key, [identity.asset_key for identity in identities])
    return [_decide(identity, owners, serials, tags) for identity in identities]


def find_machine(connection: sa.Connection, identity: MachineFingerprint) -> str | None:
    """:func:`find_machines` for one."""
    return find_machines(connection, [identity])[0]


def _decide(
    identity: MachineFingerprint,
    owners: Mapping[str, tuple[str, str]],
    serials: Mapping[str, list[str]],
    tags: Mapping[str, list[str]],
) -> str | None:
    found = [owners[mac] for mac in identity.macs if mac in owners]
    same = [machine_id for machine_id, key in found if identity.serial_key and key == identity.serial_key]
    open_to = [machine_id for machine_id, key in found if not identity.serial_key or not key]
    if same or open_to:
        return (same or open_to)[0]
    for machine_ids in (serials.get(identity.serial_key, []), tags.get(identity.asset_key, [])):
        if len(machine_ids) == 1:
            return machine_ids[0]
    return None


def _by_key(
    connection: sa.Connection, column: sa.ColumnElement[str], keys: Iterable[str]
) -> dict[str, list[str]]:
    """The machines that have each of ``keys``; that none has the empty one is part of its meaning."""
    found: dict[str, list[str]] = {}
    for part in parts([key for key in dict.fromkeys(keys) if key]):
        for machine_id, key in connection.execute(
            sa.select(_MACHINE.machine_id, column).where(column.in_(part))
        ):
            found.setdefault(key, []).append(machine_id)
    return found
