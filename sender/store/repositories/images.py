"""Images that the library knows or knew, and URLs of remote images that operators added."""

from __future__ import annotations

import builtins
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.records.images import Image, ImageState, UploadedSignature
from sender.store.repositories.audit import AuditedRepository, AuditNote
from sender.store.repositories.image_entries import ORIGIN_ADAPTER
from sender.store.repositories.paging import read_page
from sender.store.repositories.transactions import reading, writing

REMOTES_MAX = 10_000
"""Remote images that one call reads."""

SIGNATURES_MAX = 10_000
"""Uploaded signatures that one call reads: 20 MB."""

_IMAGE = tables.images.c
_SIGNATURE = tables.image_signatures.c
_REMOTE = tables.remotes.c
_ENTRY = tables.image_entries.c
_STORED = list(tables.images.c.keys())
_ENTERED = ("number", "note", "pinned", "added_by", "origin")


class Images(AuditedRepository):
    """Repository of images."""

    @writing
    def put(self, image: Image, *, audit: AuditNote | None = None) -> None:
        """Add or replace an image, keeping its first ``first_seen_at``. Users and entries aren't stored here."""
        values = {name: getattr(image, name) for name in _STORED}
        insert = self._database.insert(tables.images).values(**values)
        replaced = {
            name: insert.excluded[name] for name in _STORED if name not in ("image_id", "first_seen_at")
        }
        self._connection.execute(insert.on_conflict_do_update(index_elements=["image_id"], set_=replaced))
        self._audit.note(audit, "image.change", f"image {image.image_id}", {"name": image.name})

    @reading
    def get(self, image_id: str) -> Image | None:
        """Return an image, or None."""
        query = _with_entries().where(_IMAGE.image_id == image_id)
        row = self._connection.execute(query).mappings().first()
        return None if row is None else _image(row)

    @reading
    def list(self, after: str | None = None, limit: int = 50) -> tuple[builtins.list[Image], str | None]:
        """Return a page of images, by name."""
        query = _with_entries()
        return read_page(self._connection, query, [_IMAGE.name, _IMAGE.image_id], after, limit, _image)

    @writing
    def remove(self, image_id: str, *, audit: AuditNote | None = None) -> bool:
        """Remove an image; history keeps its id and name. Return False if it doesn't exist."""
        query = sa.delete(tables.images).where(_IMAGE.image_id == image_id)
        found = self._connection.execute(query).rowcount == 1
        if found:
            self._audit.note(audit, "image.remove", f"image {image_id}")
        return found

    @writing
    def put_signature(
        self, image_id: str, signed: bytes, public_key: str, *, audit: AuditNote | None = None
    ) -> UploadedSignature:
        """Add or replace the uploaded signature of an image."""
        uploaded = UploadedSignature(image_id, signed, public_key, self._now())
        values = {name: getattr(uploaded, name) for name in UploadedSignature.__dataclass_fields__}
        insert = self._database.insert(tables.image_signatures).values(**values)
        replaced = {name: insert.excluded[name] for name in values if name != "image_id"}
        self._connection.execute(insert.on_conflict_do_update(index_elements=["image_id"], set_=replaced))
        self._audit.note(audit, "image.sign", f"image {image_id}")
        return uploaded

    @reading
    def signatures(self, since: datetime | None = None) -> builtins.list[UploadedSignature]:
        """Return the signatures that were uploaded at ``since`` or later, the oldest first; all of them for None."""
        query = sa.select(tables.image_signatures).order_by(_SIGNATURE.at, _SIGNATURE.image_id)
        if since is not None:
            query = query.where(_SIGNATURE.at >= since)
        rows = self._connection.execute(query.limit(SIGNATURES_MAX)).mappings()
        return [UploadedSignature(**{**row, "signed": bytes(row["signed"])}) for row in rows]

    @reading
    def remotes(self) -> builtins.list[tuple[str, str]]:
        """Return URL and name (possibly empty) of each remote image that :meth:`add_remote` added."""
        query = sa.select(_REMOTE.url, _REMOTE.name).order_by(_REMOTE.created_at, _REMOTE.url)
        return [(row.url, row.name) for row in self._connection.execute(query.limit(REMOTES_MAX))]

    @writing
    def add_remote(self, url: str, name: str = "", *, audit: AuditNote | None = None) -> None:
        """Add the URL of a remote image, or rename it if it is known."""
        insert = self._database.insert(tables.remotes).values(url=url, name=name, created_at=self._now())
        self._connection.execute(
            insert.on_conflict_do_update(index_elements=["url"], set_={"name": insert.excluded.name})
        )
        self._audit.note(audit, "image.add", f"image {name or url}", {"url": url})

    @writing
    def remove_remote(self, url: str, *, audit: AuditNote | None = None) -> bool:
        """Remove the URL of a remote image; return False if it isn't known."""
        found = self._connection.execute(sa.delete(tables.remotes).where(_REMOTE.url == url)).rowcount == 1
        if found:
            self._audit.note(audit, "image.remove", f"image {url}", {"url": url})
        return found


def _with_entries() -> sa.Select[Any]:
    entered = [_ENTRY[name] for name in _ENTERED]
    joined = tables.images.outerjoin(tables.image_entries, _IMAGE.image_id == _ENTRY.image_id)
    return sa.select(tables.images, *entered).select_from(joined)


def _image(row: sa.RowMapping) -> Image:
    values = {name: value for name, value in row.items() if name not in _ENTERED or value is not None}
    if "origin" in values:
        values["origin"] = ORIGIN_ADAPTER.validate_python(values["origin"])
    return Image(**{**values, "state": ImageState(row["state"])})
