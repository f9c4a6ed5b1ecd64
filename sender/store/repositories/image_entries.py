"""Entries of images: version numbers, notes, pins and origins."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, TypedDict, Unpack

import sqlalchemy as sa
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from sender.store.database import tables
from sender.store.records.image_entries import ImageEntry, ImageOrigin
from sender.store.repositories.audit import AuditedRepository, AuditNote
from sender.store.repositories.transactions import reading, writing

ENTRIES_PAGE = 500
"""Entries that one call reads."""

_ENTRIES_LOCK = 0x6469736B6D67
"""PostgreSQL's advisory lock of numbers and of times of change: both are the highest ones of all daemons plus one."""

_CHANGE_STEP = timedelta(microseconds=1)
"""Least difference of two times of change: the resolution of the database's times."""

ORIGIN_ADAPTER = TypeAdapter(ImageOrigin)

_ENTRY = tables.image_entries.c
_CONTENTS = tables.image_contents.c


class EntryUpdate(TypedDict, total=False):
    """Fields of an entry that can change."""

    note: str
    pinned: bool


class ImageEntries(AuditedRepository):
    """Repository of entries."""

    @writing
    def enter(
        self, image_id: str, name: str, added_by: str = "", origin: ImageOrigin | None = None
    ) -> ImageEntry:
        """Return the entry of an image, with the next number of its name if it is new.

        ``added_by`` and ``origin`` are recorded unless the entry has them.
        """
        self._lock()
        known = self._get(image_id)
        if known is None:
            highest = sa.select(sa.func.max(_ENTRY.number)).where(_ENTRY.name == name)
            number = (self._connection.execute(highest).scalar() or 0) + 1
            entry = ImageEntry(image_id, name, number, "", False, added_by, origin, self._change_time())
            values = {field: getattr(entry, field) for field in ImageEntry.__dataclass_fields__}
            self._connection.execute(
                sa.insert(tables.image_entries).values(**values | {"origin": _json(origin)})
            )
            return entry
        missing: dict[str, object] = {}
        if added_by and not known.added_by:
            missing["added_by"] = added_by
        if origin is not None and known.origin is None:
            missing["origin"] = _json(origin)
        return self._update(known, missing)

    @writing
    def change(
        self, image_id: str, *, audit: AuditNote | None = None, **fields: Unpack[EntryUpdate]
    ) -> ImageEntry | None:
        """Change some fields and return the changed entry; None if there is none."""
        self._lock()
        before = self._get(image_id)
        if before is None:
            return None
        changed = {name: value for name, value in fields.items() if getattr(before, name) != value}
        if changed:
            detail = {
                "name": f"{before.name}@{before.number}",
                "from": {name: getattr(before, name) for name in changed},
                "to": changed,
            }
            self._audit.note(audit, "image.change", f"image {image_id}", detail)
        return self._update(before, changed)

    @reading
    def changed(self, since: datetime | None = None, after_id: str = "") -> list[ImageEntry]:
        """Return entries by the time of their last change, at most :data:`ENTRIES_PAGE`.

        Args:
            since: time and, with ``after_id``, id after which to continue; None: from the beginning.
            after_id: id of the last entry at that time; empty: include all of that time.
        """
        query = sa.select(tables.image_entries).order_by(_ENTRY.changed_at, _ENTRY.image_id)
        if since is not None:
            here = sa.tuple_(_ENTRY.changed_at, _ENTRY.image_id)
            query = query.where(
                here > sa.tuple_(sa.literal(since, _ENTRY.changed_at.type), sa.literal(after_id))
            )
        return [_entry(row) for row in self._connection.execute(query.limit(ENTRIES_PAGE)).mappings()]

    @reading
    def contents(self, image_id: str, version: int) -> dict[str, Any] | None:
        """Return the contents that a reader of this version found in an image, or None."""
        query = sa.select(_CONTENTS.contents).where(
            _CONTENTS.image_id == image_id, _CONTENTS.version == version
        )
        found: dict[str, Any] | None = self._connection.execute(query).scalar()
        return found

    @writing
    def put_contents(self, image_id: str, version: int, contents: dict[str, Any]) -> None:
        """Keep the contents of an image."""
        values = {"image_id": image_id, "version": version, "contents": contents, "at": self._now()}
        insert = self._database.insert(tables.image_contents).values(**values)
        replaced = {name: insert.excluded[name] for name in values if name != "image_id"}
        self._connection.execute(insert.on_conflict_do_update(index_elements=["image_id"], set_=replaced))

    def _lock(self) -> None:
        """Exclude other daemons' changes of entries until the transaction ends; SQLite has one writer anyway."""
        if self._database.is_postgresql:
            self._connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ENTRIES_LOCK)))

    def _change_time(self) -> datetime:
        """Return a time after all earlier changes: readers continue from there, and daemons' clocks may differ."""
        highest = self._connection.execute(sa.select(sa.func.max(_ENTRY.changed_at))).scalar()
        return self._now() if highest is None else max(self._now(), highest + _CHANGE_STEP)

    def _get(self, image_id: str) -> ImageEntry | None:
        query = sa.select(tables.image_entries).where(_ENTRY.image_id == image_id)
        row = self._connection.execute(query).mappings().first()
        return None if row is None else _entry(row)

    def _update(self, before: ImageEntry, values: dict[str, object]) -> ImageEntry:
        if not values:
            return before
        query = sa.update(tables.image_entries).where(_ENTRY.image_id == before.image_id)
        self._connection.execute(query.values(**values, changed_at=self._change_time()))
        after = self._get(before.image_id)
        assert after is not None
        return after


def _json(origin: ImageOrigin | None) -> object:
    return None if origin is None else to_jsonable_python(origin)


def _entry(row: sa.RowMapping) -> ImageEntry:
    origin = None if row["origin"] is None else ORIGIN_ADAPTER.validate_python(row["origin"])
    return ImageEntry(**{**row, "origin": origin})
