"""Rooms and the counts of their machines."""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.database.errors import ConflictError
from sender.store.records.machines import Room
from sender.store.repositories.audit import AuditedRepository, AuditNote
from sender.store.repositories.paging import read_page
from sender.store.repositories.transactions import reading, writing

_ROOM = tables.rooms.c


class RoomUpdate(TypedDict, total=False):
    """Fields of a room that can change."""

    name: str
    description: str
    site: str
    interface: str
    enrolment: str
    unknown_machines: str
    boot_menu: bool
    wake_wave_size: int | None
    wake_pause_s: float | None


class Rooms(AuditedRepository):
    """Repository of rooms."""

    @writing
    def add(self, room: Room, *, audit: AuditNote | None = None) -> Room:
        """Add a room and return it as recorded; raise ``ConflictError`` if its id is taken."""
        if self._get(room.room_id) is not None:
            raise ConflictError(f"room {room.room_id!r} exists already; choose another id")
        values = {
            "room_id": room.room_id,
            "name": room.name,
            "description": room.description,
            "site": room.site,
            "interface": room.interface,
            "enrolment": room.enrolment,
            "unknown_machines": room.unknown_machines,
            "boot_menu": room.boot_menu,
            "wake_wave_size": room.wake_wave_size,
            "wake_pause_s": room.wake_pause_s,
        }
        self._connection.execute(sa.insert(tables.rooms).values(**values, created_at=room.created_at))
        self._audit.note(audit, "room.create", f"room {room.room_id}", values)
        added = self._get(room.room_id)
        assert added is not None
        return added

    @reading
    def get(self, room_id: str) -> Room | None:
        """Return a room, or None."""
        return self._get(room_id)

    @reading
    def list(self, after: str | None = None, limit: int = 50) -> tuple[list[Room], str | None]:
        """Return a page of rooms, by name."""
        return read_page(
            self._connection,
            _with_count(),
            [_ROOM.name, _ROOM.room_id],
            after,
            limit,
            lambda row: Room(**row),
        )

    @writing
    def change(
        self, room_id: str, *, audit: AuditNote | None = None, **fields: Unpack[RoomUpdate]
    ) -> Room | None:
        """Change some fields and return the changed room; None if it doesn't exist."""
        before = self._get(room_id)
        if before is None:
            return None
        changed: dict[str, Any] = {
            name: value for name, value in fields.items() if getattr(before, name) != value
        }
        if changed:
            self._connection.execute(
                sa.update(tables.rooms).where(_ROOM.room_id == room_id).values(**changed)
            )
            old_values = {name: getattr(before, name) for name in changed}
            self._audit.note(audit, "room.change", f"room {room_id}", {"from": old_values, "to": changed})
        return self._get(room_id)

    @writing
    def remove(self, room_id: str, *, audit: AuditNote | None = None) -> bool:
        """Remove a room and keep its machines, without a room; return False if it doesn't exist."""
        before = self._get(room_id)
        if before is None:
            return False
        self._connection.execute(sa.delete(tables.rooms).where(_ROOM.room_id == room_id))
        detail = {"name": before.name, "machine_count": before.machine_count}
        self._audit.note(audit, "room.remove", f"room {room_id}", detail)
        return True

    def _get(self, room_id: str) -> Room | None:
        row = self._connection.execute(_with_count().where(_ROOM.room_id == room_id)).mappings().first()
        return None if row is None else Room(**row)


def _with_count() -> sa.Select[Any]:
    count = (
        sa.select(sa.func.count())
        .select_from(tables.machines)
        .where(tables.machines.c.room_id == _ROOM.room_id)
        .scalar_subquery()
    )
    return sa.select(tables.rooms, count.label("machine_count"))
