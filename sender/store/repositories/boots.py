"""Boots over the network: the machines that boot, and their boot tokens.

A boot token travels over a network that anybody may read. It therefore enrols one machine, for one run of an agent,
and soon expires. A used one stays for a while, so that its replay is recognised.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.machines.claims import CLAIM_AUDIT_INTERVAL, SECRET_BYTES
from sender.store.machines.identity import find_machine, uuid_key
from sender.store.machines.machine_report import fingerprint_of
from sender.store.records.boots import BootAction, BootReport, BootToken
from sender.store.records.machines import Machine, Room
from sender.store.repositories.audit import Audit, AuditedRepository, AuditNote
from sender.store.repositories.machines import Machines
from sender.store.repositories.rooms import Rooms
from sender.store.repositories.transactions import Database, reading, writing

BOOT_TOKEN_PREFIX: Final = "dcb_"  # noqa: S105 - a prefix
TOKEN_LIFETIME: Final = timedelta(minutes=10)
"""Time from a boot to the first check-in: a slow machine that loads the live system by TFTP takes some minutes."""
USED_KEPT: Final = timedelta(hours=24)
"""Time for which a used token is kept: its agent may wait for approval that long, and replays are recognised."""
TOKENS_PER_MAC_MAX: Final = 4
"""Unused tokens of one address: a firmware asks again after a timeout, and a loader may ask twice."""
TOKENS_UNUSED_MAX: Final = 4096
"""Unused tokens in all, four rooms of the largest size: invented addresses must not fill the database."""
BOOTING_FOR: Final = timedelta(minutes=3)
"""Time from a boot to the first check-in after which a machine no longer counts as booting."""

_TOKEN = tables.boot_tokens.c
_MACHINE = tables.machines.c


@dataclasses.dataclass(frozen=True, slots=True)
class BootSubject:
    """The records about a machine that boots.

    Attributes:
        machine: the machine; None for an unknown one.
        by_mac: it has the address that boots, or has no recorded address.
        room: its room, or that of the boot service for a machine without one; None without a room.
    """

    machine: Machine | None
    by_mac: bool
    room: Room | None


@dataclasses.dataclass(frozen=True, slots=True)
class DecidedBoot:
    """A decision to record.

    Attributes:
        machine_id: the machine; None for an unknown one.
        text: reason for the decision, for people.
        token: boot token to issue; None for a machine that boots from its disk.
        audit: the boot service's request.
    """

    report: BootReport
    machine_id: str | None
    action: BootAction
    text: str
    token: BootToken | None
    audit: AuditNote


@dataclasses.dataclass(frozen=True, slots=True)
class BootingMachine:
    """A machine that loads the live system and hasn't checked in yet.

    Attributes:
        machine_id: None for an unknown machine.
        room_id: its room, or the room that an unknown machine enters; None without a room.
    """

    mac: str
    machine_id: str | None
    room_id: str | None


class Boots(AuditedRepository):
    """Repository of boots and boot tokens."""

    def __init__(self, database: Database, audit: Audit, machines: Machines, rooms: Rooms) -> None:
        super().__init__(database, audit)
        self._machines = machines
        self._rooms = rooms

    @reading
    def subject(self, report: BootReport) -> BootSubject:
        """Return the machine of a report, by its address or else by its serial number or UUID, and its room."""
        machine_id = find_machine(self._connection, fingerprint_of((report.mac,), report.serial, ""))
        machine_id = machine_id or self._machine_of_uuid(uuid_key(report.uuid))
        machine = None if machine_id is None else self._machines.get(machine_id)
        by_mac = machine is not None and (report.mac in machine.macs or not machine.macs)
        room_id = report.room_id if machine is None else machine.room_id or report.room_id
        return BootSubject(machine, by_mac, None if room_id is None else self._rooms.get(room_id))

    @writing
    def record(self, boots: Sequence[DecidedBoot]) -> list[bool]:
        """Record decisions and issue their tokens; return False for each token that isn't issued.

        None is issued while too many are unused.
        """
        issued = [self._issue(boot) for boot in boots]
        pairs = [
            (boot, done) for boot, done in zip(boots, issued, strict=True) if boot.machine_id is not None
        ]
        # In one order, so that of two daemons neither holds a row that the other waits for.
        for boot, done in sorted(pairs, key=lambda pair: pair[0].machine_id or ""):
            if not done:
                continue
            values: dict[str, object] = {
                "booted_at": self._now(),
                "boot_action": boot.action.value,
                "boot_text": boot.text,
                "boot_firmware": boot.report.firmware.value,
            }
            if uuid := uuid_key(boot.report.uuid):
                values["uuid"] = uuid
            update = sa.update(tables.machines).where(_MACHINE.machine_id == boot.machine_id)
            self._connection.execute(update.values(**values))
        return issued

    @reading
    def find(self, token_hash: str) -> BootToken | None:
        """Return a token that is unused and valid, or used already; None otherwise."""
        row = self._row(token_hash, lock=False)
        if row is None or (row["used_at"] is None and row["expires_at"] <= self._now()):
            return None
        return _token_of(row)

    @writing
    def bind(self, token_hash: str, macs: Sequence[str], run_hash: str, address: str) -> BootToken | None:
        """Bind a token to the run of the agent that uses it first; return None for any other run.

        Args:
            token_hash: from :func:`hash_secret`.
            macs: addresses of the agent's machine. A token of another address is returned, but not bound.
            run_hash: SHA-256 of the id of the agent's run.
            address: of the agent, for the audit.
        """
        row = self._row(token_hash, lock=True)
        if row is None:
            return None
        if row["used_at"] is not None:
            if row["run_hash"] == run_hash:
                return _token_of(row)
            self.note_misuse(token_hash, "boot.replayed", address)
            return None
        if row["expires_at"] <= self._now():
            return None
        token = _token_of(row)
        if token.mac in macs:
            self._set(token_hash, run_hash=run_hash, used_at=self._now())
            # Its boot loader may have asked more than once.
            unused = sa.and_(_TOKEN.mac == token.mac, _TOKEN.used_at.is_(None))
            self._connection.execute(sa.delete(tables.boot_tokens).where(unused))
        return token

    @writing
    def note_misuse(self, token_hash: str, action: str, address: str) -> None:
        """Write an audit entry about an agent that may not use a token, but not for each of its retries."""
        now, row = self._now(), self._row(token_hash, lock=True)
        if row is None or (row["misused_at"] is not None and now - row["misused_at"] < CLAIM_AUDIT_INTERVAL):
            return
        self._set(token_hash, misused_at=now)
        detail = {"mac": row["mac"], "issued_by": row["issued_by"]}
        note = AuditNote(f"an agent at {address}")
        self._audit.note(note, action, _subject(row["machine_id"], row["mac"]), detail)

    @reading
    def booting(self) -> list[BootingMachine]:
        """Return the machines that load the live system now and may join a cast without approval."""
        room_id = sa.func.coalesce(_MACHINE.room_id, _TOKEN.room_id).label("room_id")
        query = sa.select(_TOKEN.mac, _TOKEN.machine_id, room_id).distinct()
        query = query.outerjoin_from(
            tables.boot_tokens, tables.machines, _MACHINE.machine_id == _TOKEN.machine_id
        ).where(
            _TOKEN.used_at.is_(None),
            _TOKEN.issued_at > self._now() - BOOTING_FOR,
            _TOKEN.needs_approval.is_(False),
        )
        rows = self._connection.execute(query.limit(TOKENS_UNUSED_MAX))
        return [BootingMachine(row.mac, row.machine_id, row.room_id) for row in rows]

    @writing
    def expire(self) -> None:
        """Remove tokens that have expired unused, and those that were used long ago."""
        now = self._now()
        unused = sa.and_(_TOKEN.used_at.is_(None), _TOKEN.expires_at <= now)
        self._connection.execute(
            sa.delete(tables.boot_tokens).where(sa.or_(unused, _TOKEN.used_at <= now - USED_KEPT))
        )

    def _machine_of_uuid(self, key: str) -> str | None:
        """Return the only machine with this firmware UUID, or None."""
        if not key:
            return None
        query = sa.select(_MACHINE.machine_id).where(_MACHINE.uuid == key).limit(2)
        found = list(self._connection.execute(query).scalars())
        return found[0] if len(found) == 1 else None

    def _issue(self, boot: DecidedBoot) -> bool:
        token = boot.token
        if token is None:
            return True
        unused = _TOKEN.used_at.is_(None)
        count = sa.select(sa.func.count()).select_from(tables.boot_tokens)
        valid_count = self._connection.execute(
            count.where(unused, _TOKEN.expires_at > self._now())
        ).scalar_one()
        if valid_count >= TOKENS_UNUSED_MAX:
            return False
        own = sa.select(_TOKEN.token_hash).where(unused, _TOKEN.mac == token.mac)
        own = own.order_by(_TOKEN.issued_at.desc(), _TOKEN.token_hash).offset(TOKENS_PER_MAC_MAX - 1)
        outdated = list(self._connection.execute(own).scalars())
        if outdated:
            self._connection.execute(sa.delete(tables.boot_tokens).where(_TOKEN.token_hash.in_(outdated)))
        latest = sa.select(sa.func.max(_TOKEN.issued_at)).where(_TOKEN.mac == token.mac)
        noted_at = self._connection.execute(latest).scalar()
        values = {field: getattr(token, field) for field in BootToken.__dataclass_fields__}
        self._connection.execute(sa.insert(tables.boot_tokens).values(**values))
        # A firmware that asks again and again must not fill the audit log.
        if noted_at is None or token.issued_at - noted_at >= CLAIM_AUDIT_INTERVAL:
            report = boot.report
            detail = {
                "mac": report.mac,
                "address": report.address,
                "firmware": report.firmware.value,
                "room_id": token.room_id,
                "reason": boot.text,
            }
            self._audit.note(boot.audit, "boot.issued", _subject(token.machine_id, token.mac), detail)
        return True

    def _row(self, token_hash: str, *, lock: bool) -> sa.RowMapping | None:
        query = sa.select(tables.boot_tokens).where(_TOKEN.token_hash == token_hash)
        if lock and self._database.is_postgresql:
            query = query.with_for_update()
        return self._connection.execute(query).mappings().first()

    def _set(self, token_hash: str, **values: object) -> None:
        query = sa.update(tables.boot_tokens).where(_TOKEN.token_hash == token_hash)
        self._connection.execute(query.values(**values))


def new_boot_token() -> str:
    """Return the secret of a new boot token."""
    return BOOT_TOKEN_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def _token_of(row: sa.RowMapping) -> BootToken:
    return BootToken(**{field: row[field] for field in BootToken.__dataclass_fields__})


def _subject(machine_id: str | None, mac: str) -> str:
    return f"mac {mac}" if machine_id is None else f"machine {machine_id}"
