"""Records of images in the store: images of earlier runs, and images that are gone."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from protocol.errors import DiskcastError
from sender.store.records.image_entries import PACKED
from sender.store.records.images import Image, ImageState

if TYPE_CHECKING:
    from sender.store.store import Store

RECORDS_MAX: Final = 20_000
"""Records that are read at the start: a few MB."""

_RECORDS_PAGE: Final = 500
_STORE_RETRY_S: Final = 5.0

_log = structlog.get_logger(__name__)


class ImageRecords:
    """The store's records, written on a best-effort basis; the files are authoritative.

    Not thread-safe: use it on the event loop.
    """

    def __init__(self, store: Store | None) -> None:
        """Use ``store``; None: keep no records."""
        self._store = store
        self._recorded: list[Image] = []
        self._first_seen: dict[str, datetime] = {}
        self._unwritten: dict[str, Image] = {}
        self._write = asyncio.Event()

    def seen(self, image_id: str) -> datetime:
        """Return the time at which an image was first seen; now for a new image."""
        return self._first_seen.setdefault(image_id, datetime.now(UTC))

    async def load(self) -> list[tuple[str, str]]:
        """Read the records of earlier runs; return URLs and names of the remote images that were added.

        The list is empty if the database is unavailable.
        """
        if self._store is None:
            return []
        try:
            self._recorded = await self._read(self._store)
            remotes: list[tuple[str, str]] = await self._store.run(self._store.images.remotes)
        except DiskcastError as error:
            _log.warning("library_records_unreadable", reason=str(error))
            return []
        self._first_seen.update({image.image_id: image.first_seen_at for image in self._recorded})
        return remotes

    async def _read(self, store: Store) -> list[Image]:
        images: list[Image] = []
        after: str | None = None
        while len(images) < RECORDS_MAX:
            page, after = await store.run(store.images.list, after, _RECORDS_PAGE)
            images += page
            if after is None:
                break
        return images

    def note_gone(self, folders: Collection[str], images: Mapping[str, Image]) -> None:
        """Record the files that vanished from ``folders`` while no daemon ran.

        Args:
            folders: readable folders.
            images: existing images, by id.
        """
        for image in self._recorded:
            ours = image.source == "folder" and str(Path(image.location).parent) in folders
            if ours and image.image_id not in images:
                self._unwritten[image.image_id] = dataclasses.replace(image, state=ImageState.GONE, source="")
        self._recorded = []
        self._write.set()

    def note(self, before: Mapping[str, Image], images: Mapping[str, Image]) -> None:
        """Record the changes between two states of the library."""
        for image_id, image in images.items():
            old = before.get(image_id)
            if ":" in image_id:  # a damaged file, or a URL that was never read: history can't name it
                continue
            if old is None or _durable(old) != _durable(image):
                self._unwritten[image_id] = _durable(image)
        for image_id in before.keys() - images.keys():
            gone = dataclasses.replace(_durable(before[image_id]), state=ImageState.GONE, source="")
            self._unwritten[image_id] = gone
        if self._unwritten:
            self._write.set()

    async def write(self) -> None:
        """Write noted changes to the store, until cancelled."""
        while True:
            await self._write.wait()
            self._write.clear()
            while self._unwritten and self._store is not None:
                image_id, image = next(iter(self._unwritten.items()))
                try:
                    await self._store.run(self._store.images.put, image)
                except DiskcastError:  # the store reports its own problem
                    await asyncio.sleep(_STORE_RETRY_S)
                    continue
                if self._unwritten.get(image_id) is image:
                    del self._unwritten[image_id]
            self._unwritten.clear()


def _durable(image: Image) -> Image:
    """Return the image without its transient fields, and without those that its entry records."""
    return dataclasses.replace(
        image,
        in_use_by=(),
        fetched_bytes=0,
        number=0,
        latest=False,
        note="",
        pinned=False,
        added_by="",
        origin=PACKED,
    )
