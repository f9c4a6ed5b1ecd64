"""Identification of machines by hardware addresses, serial number and asset tag."""

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
"""Values of an IN list: SQLite allows thousands, but query plans stay small."""

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
"""Placeholders that vendors leave in firmware tables, the same in every machine of a model (lists of dmidecode and
fwupd)."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_PLACEHOLDER_UUIDS = frozenset(
    {
        "03000200-0400-0500-0006-000700080009",
        "00020003-0004-0005-0006-000700080009",
        "12345678-1234-5678-90ab-cddeefaabbcc",
    }
)
"""UUIDs that vendors leave in the firmware of many machines."""

_MACHINE = tables.machines.c


def uuid_key(text: str) -> str:
    """Return the form in which firmware UUIDs are compared; empty for a placeholder or another text."""
    key = text.strip().lower()
    if not _UUID.fullmatch(key) or key in _PLACEHOLDER_UUIDS or len(set(key)) <= 2:
        return ""
    return key


def identity_key(text: str) -> str:
    """Return the form in which serial numbers and asset tags are compared; empty for a placeholder."""
    key = " ".join(text.split()).lower()
    letters = re.sub(r"[^a-z0-9]", "", key)
    if key in _PLACEHOLDERS or len(set(letters)) < 2 < len(key) or not letters:
        return ""
    return key


def normal_mac(text: str) -> str:
    """Return a hardware address as ``aa:bb:cc:dd:ee:ff``, from any of the usual notations.

    Raises ``ConfigurationError`` for other texts, and for addresses that belong to no single machine: zero, multicast.
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
        raise ConfigurationError(
            f"{text.strip()!r} can't identify a machine (it is zero, or a multicast address): use the address of its "
            "network adapter"
        )
    return ":".join(digits[i : i + 2] for i in range(0, 12, 2))


def serial_and_tag(
    connection: sa.Connection, machine_ids: Iterable[str]
) -> dict[str, tuple[str, str, str | None]]:
    """Return serial number, asset tag and room of the known ones among these machines, by id."""
    found: dict[str, tuple[str, str, str | None]] = {}
    for chunk in chunks(list(dict.fromkeys(machine_ids))):
        rows = connection.execute(
            sa.select(_MACHINE.machine_id, _MACHINE.serial, _MACHINE.asset_tag, _MACHINE.room_id).where(
                _MACHINE.machine_id.in_(chunk)
            )
        )
        found |= {row.machine_id: (row.serial, row.asset_tag, row.room_id) for row in rows}
    return found


def chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    """Yield ``values`` in chunks that fit an IN list."""
    for start in range(0, len(values), IN_LIST_MAX):
        yield values[start : start + IN_LIST_MAX]


@dataclasses.dataclass(frozen=True, slots=True)
class MachineFingerprint:
    """A machine's identifiers in comparable form: see :func:`normal_mac` and :func:`identity_key`."""

    macs: Sequence[str]
    serial_key: str
    asset_key: str


def distinct_runs(fingerprints: Sequence[MachineFingerprint]) -> Iterable[range]:
    """Divide ``fingerprints`` into runs without a common identifier within a run; yield their index ranges."""
    start, seen = 0, set[tuple[str, str]]()
    for index, fingerprint in enumerate(fingerprints):
        identifiers = {("mac", mac) for mac in fingerprint.macs}
        identifiers |= {("serial", fingerprint.serial_key), ("tag", fingerprint.asset_key)}
        identifiers -= {("serial", ""), ("tag", "")}
        if seen & identifiers:
            yield range(start, index)
            start, seen = index, set()
        seen |= identifiers
    if start < len(fingerprints):
        yield range(start, len(fingerprints))


def find_machines(connection: sa.Connection, fingerprints: Sequence[MachineFingerprint]) -> list[str | None]:
    """Return the id of the matching machine, or None, for each of ``fingerprints``.

    A hardware address decides, unless both serial numbers are known and differ: the address is then that of a USB
    adapter or a docking station that has moved. Otherwise a serial number decides, and then an asset tag, if exactly
    one machine has it.
    """
    owned = tables.machine_macs.c
    owners: dict[str, tuple[str, str]] = {}
    for chunk in chunks(list(dict.fromkeys(mac for fingerprint in fingerprints for mac in fingerprint.macs))):
        query = sa.select(owned.mac, _MACHINE.machine_id, _MACHINE.serial_key)
        query = query.join(tables.machine_macs, owned.machine_id == _MACHINE.machine_id)
        for row in connection.execute(query.where(owned.mac.in_(chunk))):
            owners[row.mac] = (row.machine_id, row.serial_key)
    serials = _by_key(
        connection, _MACHINE.serial_key, [fingerprint.serial_key for fingerprint in fingerprints]
    )
    tags = _by_key(connection, _MACHINE.asset_key, [fingerprint.asset_key for fingerprint in fingerprints])
    return [_match(fingerprint, owners, serials, tags) for fingerprint in fingerprints]


def find_machine(connection: sa.Connection, fingerprint: MachineFingerprint) -> str | None:
    """Return the id of the matching machine, or None, as :func:`find_machines` does."""
    return find_machines(connection, [fingerprint])[0]


def _match(
    fingerprint: MachineFingerprint,
    owners: Mapping[str, tuple[str, str]],
    serials: Mapping[str, list[str]],
    tags: Mapping[str, list[str]],
) -> str | None:
    by_mac = [owners[mac] for mac in fingerprint.macs if mac in owners]
    same_serial = [
        machine_id for machine_id, key in by_mac if fingerprint.serial_key and key == fingerprint.serial_key
    ]
    unknown_serial = [machine_id for machine_id, key in by_mac if not fingerprint.serial_key or not key]
    if same_serial or unknown_serial:
        return (same_serial or unknown_serial)[0]
    for machine_ids in (serials.get(fingerprint.serial_key, []), tags.get(fingerprint.asset_key, [])):
        if len(machine_ids) == 1:
            return machine_ids[0]
    return None


def _by_key(
    connection: sa.Connection, column: sa.ColumnElement[str], keys: Iterable[str]
) -> dict[str, list[str]]:
    """Return the ids of the machines with each of ``keys``; no machine counts as having the empty key."""
    found: dict[str, list[str]] = {}
    for chunk in chunks([key for key in dict.fromkeys(keys) if key]):
        for machine_id, key in connection.execute(
            sa.select(_MACHINE.machine_id, column).where(column.in_(chunk))
        ):
            found.setdefault(key, []).append(machine_id)
    return found
