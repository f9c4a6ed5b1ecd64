"""Version numbers, notes, pins and origins of the library's images, shared by all daemons of a database."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Unpack

from protocol.errors import DiskcastError
from sender.refusals import conflict
from sender.store.records.image_entries import ImageEntry, ImageOrigin
from sender.store.records.images import Image, latest_of

if TYPE_CHECKING:
    from sender.store.repositories.audit import AuditNote
    from sender.store.repositories.image_entries import EntryUpdate
    from sender.store.store import Store

REFRESH_S: Final = 30.0
"""Interval at which entries that other daemons changed are read."""

ENTRIES_MAX: Final = 100_000
"""Entries in memory, some tens of MB: ten times the files of a folder, since entries outlive images."""

_RETRY_S: Final = 5.0


class LibraryEntries:
    """Entries of all images. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store | None, on_change: Callable[[], None]) -> None:
        """Use ``store``; None: number images in memory."""
        self._store = store
        self._on_change = on_change
        self._entries: dict[str, ImageEntry] = {}
        self._read_until: tuple[datetime, str] | None = None
        self._new: dict[str, Image] = {}
        self._has_new = asyncio.Event()

    async def run(self) -> None:
        """Give new images their numbers, and read the changes of other daemons, until cancelled."""
        while True:
            await self.refresh()
            refresh_at = time.monotonic() + REFRESH_S
            while (wait_s := refresh_at - time.monotonic()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._has_new.wait()
                await self._enter_new()

    async def refresh(self) -> None:
        """Read changed entries; keep the known ones while the database is unavailable."""
        if self._store is None:
            return
        before = dict(self._entries)
        try:
            while len(self._entries) < ENTRIES_MAX:
                found = await self._store.run(self._store.image_entries.changed, *(self._read_until or ()))
                if not found:
                    break
                for entry in found:
                    self._entries[entry.image_id] = entry
                self._read_until = found[-1].changed_at, found[-1].image_id
        except DiskcastError:  # the store reports its own problem
            pass
        if self._entries != before:
            self._on_change()

    def note_new(self, images: Iterable[Image]) -> None:
        """Give numbers to new images among ``images``, soon."""
        for image in images:
            if image.image_id not in self._entries and ":" not in image.image_id:
                self._new[image.image_id] = image
        if self._new:
            self._has_new.set()

    async def enter(self, image_id: str, name: str, added_by: str, origin: ImageOrigin | None = None) -> None:
        """Record who added an image, and its source.

        Raises:
            DatabaseError: it can't be recorded.
        """
        if self._store is not None:
            enter = self._store.image_entries.enter
            self._entries[image_id] = await self._store.run(enter, image_id, name, added_by, origin)
            self._on_change()

    async def change(
        self, image: Image, audit: AuditNote | None = None, **fields: Unpack[EntryUpdate]
    ) -> None:
        """Change note or pin of an image.

        Raises:
            RequestRefusedError: the image has no entry yet.
            DatabaseError: it can't be recorded.
        """
        entry = None
        if self._store is not None:
            change = self._store.image_entries.change
            entry = await self._store.run(change, image.image_id, audit=audit, **fields)
        if entry is None:
            raise conflict(f"{image.name} hasn't been read yet: {image.problem or 'try again in a moment'}")
        self._entries[image.image_id] = entry
        self._on_change()

    def completed(self, images: Mapping[str, Image]) -> dict[str, Image]:
        """Return ``images`` with the facts of their entries, and the newest of each name marked."""
        found = {image_id: self._completed(image) for image_id, image in images.items()}
        by_name: dict[str, list[Image]] = collections.defaultdict(list)
        for image in found.values():
            by_name[image.name].append(image)
        for named in by_name.values():
            if (newest := latest_of(named)) is not None:
                found[newest.image_id] = dataclasses.replace(newest, latest=True)
        return found

    def _completed(self, image: Image) -> Image:
        entry = self._entries.get(image.image_id)
        if entry is None:
            return image
        return dataclasses.replace(
            image,
            number=entry.number,
            note=entry.note,
            pinned=entry.pinned,
            added_by=entry.added_by,
            origin=entry.origin or image.origin,
        )

    async def _enter_new(self) -> None:
        """Give new images their numbers, in the order of their packing."""
        self._has_new.clear()
        new, self._new = self._new, {}
        if not new:
            return
        earliest = datetime.min.replace(tzinfo=UTC)
        for image in sorted(new.values(), key=lambda each: (each.packed_at or earliest, each.image_id)):
            if image.image_id in self._entries:
                continue
            try:
                self._entries[image.image_id] = await self._entered(image)
            except DiskcastError:  # the store reports its own problem
                self.note_new(new.values())
                await asyncio.sleep(_RETRY_S)
                break
        self._on_change()

    async def _entered(self, image: Image) -> ImageEntry:
        if self._store is not None:
            return await self._store.run(self._store.image_entries.enter, image.image_id, image.name)
        numbers = (entry.number for entry in self._entries.values() if entry.name == image.name)
        number = max(numbers, default=0) + 1
        return ImageEntry(
            image.image_id, image.name, number, "", False, "", None, changed_at=datetime.now(UTC)
        )
