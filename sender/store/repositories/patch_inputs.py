"""Templates of rooms and variables of machines. Audit entries name them; they never have their contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.database.errors import ConflictError
from sender.store.machines.identity import chunks
from sender.store.records.patch_inputs import MachineVariables, RoomPatchSet, RoomTemplate
from sender.store.repositories.audit import AuditedRepository, AuditNote
from sender.store.repositories.transactions import reading, writing

_TEMPLATE = tables.room_templates.c
_SET = tables.patch_sets.c
SETS_MAX = 32
"""Signed sets of a room: one for each image that is in use there."""
_VARIABLES = tables.machine_variables.c


class PatchInputs(AuditedRepository):
    """Repository of templates and variables."""

    @reading
    def template(self, room_id: str) -> RoomTemplate | None:
        """Return a room's template, or None."""
        return self._template(room_id)

    @writing
    def put_template(self, room_id: str, text: str, *, audit: AuditNote) -> RoomTemplate:
        """Replace a room's template and return it.

        Raises:
            ConflictError: the room doesn't exist.
        """
        if self._connection.execute(sa.select(1).where(tables.rooms.c.room_id == room_id)).scalar() is None:
            raise ConflictError(f"there is no room {room_id!r}")
        before = self._template(room_id)
        if before is not None and before.text == text:
            return before
        values = {"room_id": room_id, "text": text, "changed_at": self._now(), "changed_by": audit.actor}
        insert = self._database.insert(tables.room_templates).values(**values)
        self._connection.execute(
            insert.on_conflict_do_update(
                index_elements=["room_id"],
                set_={name: insert.excluded[name] for name in values if name != "room_id"},
            )
        )
        self._audit.note(audit, "room.template", f"room {room_id}", {"bytes": len(text.encode())})
        after = self._template(room_id)
        assert after is not None
        return after

    @writing
    def remove_template(self, room_id: str, *, audit: AuditNote) -> bool:
        """Remove a room's template; return False if there is none."""
        if self._template(room_id) is None:
            return False
        self._connection.execute(sa.delete(tables.room_templates).where(_TEMPLATE.room_id == room_id))
        self._audit.note(audit, "room.template_remove", f"room {room_id}")
        return True

    @reading
    def sets(self, room_id: str) -> list[RoomPatchSet]:
        """Return the signed sets of a room, without their patches, the latest first."""
        query = sa.select(*(_SET[name] for name in RoomPatchSet.__dataclass_fields__))
        query = query.where(_SET.room_id == room_id).order_by(_SET.changed_at.desc()).limit(SETS_MAX)
        return [RoomPatchSet(**row) for row in self._connection.execute(query).mappings()]

    @reading
    def bundle(self, room_id: str, image_id: str) -> bytes | None:
        """Return the signed set of a room for an image, with its patches; None without one."""
        query = sa.select(_SET.bundle).where(_SET.room_id == room_id, _SET.image_id == image_id)
        found: bytes | None = self._connection.execute(query).scalar()
        return found

    @writing
    def put_set(
        self, room_id: str, image_id: str, name: str, machine_count: int, bundle: bytes, *, audit: AuditNote
    ) -> RoomPatchSet:
        """Replace the signed set of a room for an image.

        Raises:
            ConflictError: the room doesn't exist, or has sets for too many images.
        """
        others = {one.image_id for one in self.sets(room_id)} - {image_id}
        if len(others) >= SETS_MAX:
            raise ConflictError(
                f"room {room_id!r} has sets for {len(others)} images: remove one that isn't used"
            )
        if self._connection.execute(sa.select(1).where(tables.rooms.c.room_id == room_id)).scalar() is None:
            raise ConflictError(f"there is no room {room_id!r}")
        values = {
            "room_id": room_id,
            "image_id": image_id,
            "name": name,
            "machine_count": machine_count,
            "bundle": bundle,
            "changed_at": self._now(),
            "changed_by": audit.actor,
        }
        insert = self._database.insert(tables.patch_sets).values(**values)
        keys = ("room_id", "image_id")
        self._connection.execute(
            insert.on_conflict_do_update(
                index_elements=keys, set_={key: insert.excluded[key] for key in values if key not in keys}
            )
        )
        detail = {"image_id": image_id, "name": name, "machines": machine_count}
        self._audit.note(audit, "room.patch_set", f"room {room_id}", detail)
        return next(one for one in self.sets(room_id) if one.image_id == image_id)

    @writing
    def remove_set(self, room_id: str, image_id: str, *, audit: AuditNote) -> bool:
        """Remove a signed set; return False if there is none."""
        query = sa.delete(tables.patch_sets).where(_SET.room_id == room_id, _SET.image_id == image_id)
        if self._connection.execute(query).rowcount == 0:
            return False
        self._audit.note(audit, "room.patch_set_remove", f"room {room_id}", {"image_id": image_id})
        return True

    @reading
    def variables(self, machine_ids: Sequence[str]) -> dict[str, MachineVariables]:
        """Return the variables of those machines that have some, by machine."""
        return self._variables(machine_ids)

    @writing
    def put_variables(self, new: Mapping[str, Mapping[str, str]], *, audit: AuditNote) -> int:
        """Replace the variables of machines, by id, all or none; return the number of machines that changed.

        Raises:
            ConflictError: a machine doesn't exist.
        """
        before = self._variables(list(new))
        changed = {
            machine_id: dict(variables)
            for machine_id, variables in new.items()
            if dict(variables) != (dict(before[machine_id].variables) if machine_id in before else {})
        }
        names = self._names(list(changed))
        if missing := sorted(set(changed) - set(names)):
            raise ConflictError(f"there is no machine {missing[0]!r}")
        now = self._now()
        for machine_id, variables in changed.items():
            values = {
                "machine_id": machine_id,
                "variables": variables,
                "changed_at": now,
                "changed_by": audit.actor,
            }
            insert = self._database.insert(tables.machine_variables).values(**values)
            self._connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["machine_id"],
                    set_={name: insert.excluded[name] for name in values if name != "machine_id"},
                )
            )
            old = dict(before[machine_id].variables) if machine_id in before else {}
            differing = sorted(name for name in {*old, *variables} if old.get(name) != variables.get(name))
            detail = {"name": names[machine_id], "variables": differing}
            self._audit.note(audit, "machine.variables", f"machine {machine_id}", detail)
        return len(changed)

    def _template(self, room_id: str) -> RoomTemplate | None:
        query = sa.select(tables.room_templates).where(_TEMPLATE.room_id == room_id)
        row = self._connection.execute(query).mappings().first()
        return None if row is None else RoomTemplate(**row)

    def _variables(self, machine_ids: Sequence[str]) -> dict[str, MachineVariables]:
        found = {}
        for chunk in chunks(list(dict.fromkeys(machine_ids))):
            query = sa.select(tables.machine_variables).where(_VARIABLES.machine_id.in_(chunk))
            for row in self._connection.execute(query).mappings():
                found[row["machine_id"]] = MachineVariables(**row)
        return found

    def _names(self, machine_ids: Sequence[str]) -> dict[str, str]:
        names: dict[str, str] = {}
        for chunk in chunks(list(machine_ids)):
            query = sa.select(tables.machines.c.machine_id, tables.machines.c.name)
            rows = self._connection.execute(query.where(tables.machines.c.machine_id.in_(chunk)))
            names |= {row.machine_id: row.name for row in rows}
        return names
